# SPDX-License-Identifier: Apache-2.0
"""Get, List, History and Events: what a caller may see."""

from collections.abc import Sequence
from functools import partial

from tapster.daemon.methods.access import Access
from tapster.daemon.methods.call import Answer, Call
from tapster.errors import RequestError, ServiceUnavailable
from tapster.model import EventQuery, HistoryQuery, Lease
from tapster.operations.look import Look
from tapster.operations.operations import Operations
from tapster.rpc import interface
from tapster.rpc.wire import Difference

PAGE = 100
"""Leases or events in one part of an answer."""
HISTORY_PAGE = 25
"""Entries of the history in one part of an answer: each may have long labels."""
HISTORY_LIMIT = 1000
"""Entries of the history, or events, in one answer."""


class Looking:
    """The methods that only read."""

    def __init__(self, operations: Operations, access: Access) -> None:
        self._look = operations.look
        self._access = access

    def get(self, call: Call) -> Answer:
        """Return a lease with its device and how that differs from the request."""
        asked: interface.Get = call.parameters
        if asked.netns is None:
            return self._get(self._look, call)
        with self._access.open_inside(call.caller, asked.netns) as operations:
            return self._get(operations.look, call)

    def _get(self, look: Look, call: Call) -> Answer:
        asked: interface.Get = call.parameters
        lease = self._access.find(
            call.caller, asked.lease, owner=asked.owner, look=look
        )
        differences = _differences(look, lease)
        return Answer(interface.Got(lease, look.device(lease), differences))

    def list(self, call: Call) -> Answer:
        """Return the leases that the caller may see, page by page."""
        return self._lease_page(call, 0)

    def _lease_page(self, call: Call, after: int) -> Answer:
        leases, more = self._look.page(
            after=after,
            limit=PAGE,
            caller_uid=self._access.visible_uid(call.caller),
            all=call.parameters.all,
        )
        following = None if more is None else partial(self._lease_page, call, more)
        return Answer(interface.Leases(tuple(leases)), next_page=following)

    def history(self, call: Call) -> Answer:
        """Return the entries of the history that the caller may see, page by page."""
        asked: interface.History = call.parameters
        if len(asked.label) not in (0, 2):
            raise RequestError("label has a key and a value")
        query = HistoryQuery(
            asked.name,
            asked.owner,
            asked.mac,
            asked.lease,
            (asked.label[0], asked.label[1]) if asked.label else None,
            asked.at,
            asked.since,
            asked.until,
            self._access.visible_uid(call.caller),
            _history_limit(asked.limit),
        )
        return self._history_page(query, frozenset())

    def _history_page(self, query: HistoryQuery, seen: frozenset[str]) -> Answer:
        """Return the next page of a history. The daemon keeps no later entry in memory.

        `seen` has the ids of the leases of earlier pages that began at `query.until`.
        """
        assert query.limit is not None
        size = min(query.limit, HISTORY_PAGE)
        # One more tells whether there are more.
        look_for = query._replace(limit=size + 1 + len(seen))
        found = [
            entry for entry in self._look.history(look_for) if entry.lease not in seen
        ]
        page, left = found[:size], query.limit - size
        next_page = None
        if left and len(found) > size:
            until = page[-1].created
            if until != query.until:
                seen = frozenset()
            seen |= {entry.lease for entry in page if entry.created == until}
            rest = query._replace(until=until, limit=left)
            next_page = partial(self._history_page, rest, seen)
        return Answer(interface.HistoryEntries(tuple(page)), next_page=next_page)

    def events(self, call: Call) -> Answer:
        """Return the recorded events that the caller may see, page by page."""
        asked: interface.Events = call.parameters
        query = EventQuery(
            asked.since,
            asked.until,
            asked.event,
            asked.name,
            asked.owner,
            asked.lease,
            self._access.visible_uid(call.caller),
            _history_limit(asked.limit),
        )
        return self._event_page(self._look.event_numbers(query))

    def _event_page(self, numbers: Sequence[int]) -> Answer:
        """Return the first of these events. Only the numbers of the rest are kept."""
        page, rest = numbers[:PAGE], numbers[PAGE:]
        return Answer(
            interface.HistoryEvents(tuple(self._look.numbered_events(page))),
            next_page=partial(self._event_page, rest) if rest else None,
        )


def _history_limit(limit: int | None) -> int:
    """Return how many entries an answer may have. Raises RequestError."""
    if limit is not None and limit < 1:
        raise RequestError(f"limit must be 1 or more, not {limit}")
    return HISTORY_LIMIT if limit is None else min(limit, HISTORY_LIMIT)


def _differences(look: Look, lease: Lease) -> tuple[Difference, ...]:
    try:
        differ = look.differences(lease)
    except ServiceUnavailable as error:
        differ = {"service": str(error)}
    return tuple(Difference(*difference) for difference in differ.items())
