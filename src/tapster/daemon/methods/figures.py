# SPDX-License-Identifier: Apache-2.0
"""GetStatistics: the figures that are computed on demand, beside those that count."""

from collections.abc import Sequence

from tapster.daemon import policy
from tapster.daemon.methods.access import Access
from tapster.daemon.methods.call import Answer, Call
from tapster.daemon.metrics import Metrics
from tapster.operations.operations import Operations
from tapster.rpc import interface

LABELS = 500
"""Labels by which the figures count leases."""


class Figures:
    """The method GetStatistics, and what a scrape measures."""

    def __init__(
        self, operations: Operations, access: Access, metrics: Metrics
    ) -> None:
        self._operations = operations
        self._access = access
        self._metrics = metrics
        operations.context.watch_fleet(self._count_registrations)

    def statistics(self, call: Call) -> Answer:
        """Return every figure."""
        self._access.permit(call.caller, policy.SEE_OTHERS)
        self.measure()
        return Answer(interface.Statistics(self._metrics.counts()))

    def measure(self) -> None:
        """Update the figures that are computed on demand."""
        for state, number in self._operations.look.count().items():
            self._metrics.put("leases", number, state)
        self._metrics.replace("labelled_leases", self._labelled())
        self._metrics.put("collisions", self._operations.acquire.collisions)
        self._metrics.put("reap_batches", self._operations.reap.batches)
        context = self._operations.context
        if context.ledger.in_fleet():
            # Outside a fleet nothing of it is imported.
            from tapster.fleet.book import Book, figures

            shown = figures(Book(context.ledger), context.system.wallclock())
            for figure, value in {**shown, **context.fleet_figures()}.items():
                self._metrics.put("fleet", value, figure)

    def _labelled(self) -> dict[str, float]:
        """Return how many active leases have each label that the configuration counts.

        A user chooses the values of a label, so only the most frequent are shown.
        """
        keys = self._access.loaded.config.metrics.labels
        counted = self._operations.look.count_labels() if keys else {}
        found = [item for item in counted.items() if item[0][0] in keys]
        found.sort(key=lambda item: (-item[1], item[0]))
        return {f"{key}={value}": n for (key, value), n in found[:LABELS]}

    def _count_registrations(self, results: Sequence[str], seconds: float) -> None:
        for result in results:
            self._metrics.add("fleet_registrations", result)
        self._metrics.observe("fleet_request_seconds", seconds)
