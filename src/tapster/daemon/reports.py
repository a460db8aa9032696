# SPDX-License-Identifier: Apache-2.0
"""Events of leases: counted, logged, recorded, and sent to the clients that watch."""

import time
from collections.abc import Callable
from contextlib import suppress

from tapster.daemon.log import INFO, Log
from tapster.daemon.metrics import Metrics
from tapster.errors import LedgerError
from tapster.model import HistoryEvent, Lease
from tapster.operations.context import Context
from tapster.rpc.interface import Event, event_of

LIFE = ("acquired", "released", "ended", "restored")
"""Events that the history already records: of leases, and of repairs as `repaired`."""


class EventReports:
    """Reports events."""

    def __init__(
        self,
        context: Context,
        metrics: Metrics,
        log: Log,
        on_event: Callable[[Event], None],
    ) -> None:
        self._context = context
        self._metrics = metrics
        self._log = log
        self._on_event = on_event

    def report(self, event: str, lease: Lease, detail: str | None = None) -> None:
        """Count an event, log it, and send it to the clients that watch."""
        self._metrics.add("events", event)
        self._log(
            INFO,
            event,
            lease=lease.id,
            name=lease.name,
            owner=lease.owner or None,
            caller_uid=lease.caller_uid,
            detail=detail,
        )
        reported = event_of(lease, time.time(), event, detail)
        self._on_event(reported)
        if event not in LIFE:
            self._record(reported, lease)

    def _record(self, event: Event, lease: Lease) -> None:
        """Record an event in the history. A full disk loses the event, not the
        daemon."""
        kept = HistoryEvent(
            event.time,
            event.event,
            lease.id,
            lease.name,
            lease.owner,
            lease.caller_uid,
            event.detail or "",
        )
        with suppress(LedgerError), self._context.gate:
            self._context.ledger.record_event(kept)
