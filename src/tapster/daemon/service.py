# SPDX-License-Identifier: Apache-2.0
"""Carries out the methods of the interface, one call after the other.

Methods run in the worker's thread, unless their docstrings say otherwise.
"""

from collections.abc import Hashable, Sequence

from tapster.daemon.log import Log
from tapster.daemon.methods.access import Access
from tapster.daemon.methods.acquiring import Acquiring, Result
from tapster.daemon.methods.call import Answer, Call, Method, Unfinished
from tapster.daemon.methods.changing import Changing
from tapster.daemon.methods.figures import Figures
from tapster.daemon.methods.looking import Looking
from tapster.daemon.methods.maintaining import Maintaining
from tapster.daemon.methods.requests import Requests
from tapster.daemon.metrics import Metrics
from tapster.daemon.upkeep import Upkeep
from tapster.errors import MacTaken, NameTaken
from tapster.operations.operations import Operations


class Service:
    """The methods, by their names."""

    def __init__(
        self,
        operations: Operations,
        access: Access,
        metrics: Metrics,
        log: Log,
        upkeep: Upkeep,
    ) -> None:
        self.access = access
        self.figures = Figures(operations, access, metrics)
        requests = Requests(operations, access, metrics)
        self._acquiring = Acquiring(operations, access, requests, upkeep, metrics, log)
        changing = Changing(operations, access, requests, upkeep, metrics)
        looking = Looking(operations, access)
        maintaining = Maintaining(operations, access, requests, upkeep)
        self._methods: dict[str, Method] = {
            "Acquire": self._acquiring.acquire,
            "Bind": changing.bind,
            "Release": changing.release,
            "Get": looking.get,
            "Set": changing.set,
            "List": looking.list,
            "History": looking.history,
            "Events": looking.events,
            "Reopen": changing.reopen,
            "Reap": maintaining.reap,
            "Recover": maintaining.recover,
            "Examine": maintaining.examine,
            "RemoveLeftovers": maintaining.remove_leftovers,
            "Explain": maintaining.explain,
            "GetStatistics": self.figures.statistics,
        }

    def kind_of(self, method: str, call: Call) -> Hashable:
        """Return the kind of a call: calls of one kind may be carried out together.

        None means that a call must be carried out alone. Any thread may ask.
        """
        return self._acquiring.kind_of(call) if method == "Acquire" else None

    def call_together(self, calls: Sequence[Call]) -> list[Result]:
        """Carry out calls of one kind; return the answer or the error of each."""
        return [
            self.access.conceal(result, call.caller)
            if isinstance(result, NameTaken | MacTaken)
            else result
            for call, result in zip(
                calls, self._acquiring.acquire_together(calls), strict=True
            )
        ]

    def call(self, method: str, call: Call) -> Answer | Unfinished:
        """Carry out a call. Raises TapsterError."""
        try:
            return self._methods[method](call)
        except (NameTaken, MacTaken) as error:
            raise self.access.conceal(error, call.caller) from None
