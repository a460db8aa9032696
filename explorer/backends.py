# SPDX-License-Identifier: Apache-2.0
"""Two backends of the explorer: a switch that knows ports by name, and a filter.

The state of a backend is a set of entries. Tests with the real services check the real
backends. The explorer checks when the operations call a backend, and what follows in
every schedule.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from explorer.calls import Call, Raised, StandIn
from tapster.backends.backend import Leftover, Observation
from tapster.errors import ConflictError, ServiceUnavailable
from tapster.kernel.port import Namespace
from tapster.model import Lease, State, Wiring

PORTS = "ovs"
"""The backend whose entries are keyed by name, and whose service may be away."""
RULES = "filter"
"""The backend whose entries are keyed by ifindex."""


class Entry(NamedTuple):
    """A part of a lease that a backend has, or a stranger's entry."""

    backend: str
    key: str | int
    lease: str
    """The id of the lease in its stamp; "" if the entry is a stranger's."""


class BackendStandIn(StandIn):
    """Stands for a backend. Each verb is one transaction, and so one call."""

    name: str

    def concerns(self, wiring: Wiring) -> bool:
        return bool(wiring.ovs if self.name == PORTS else wiring.filter)

    def check(self, _: Namespace, __: Wiring) -> None:
        """Accept every request."""

    def attach(self, _: Namespace, lease: Lease) -> None:
        key = lease.name if self.name == PORTS else lease.ifindex
        self._put("attach", (Entry(self.name, key, lease.id),), {})

    def restore(self, _: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Restore rules in one transaction; leave ports to be restored one by one."""
        if self.name == PORTS:
            return frozenset()
        self._put(
            "attach",
            tuple(Entry(self.name, lease.ifindex, lease.id) for lease in leases),
            {},
        )
        return frozenset(lease.id for lease in leases)

    def detach(self, _: Namespace | None, lease: Lease) -> None:
        self._put("detach", (self.name, lease.id), {})

    def observe(self, _: Namespace, leases: Sequence[Lease]) -> Observation:
        entries: tuple[Entry, ...] = self._put("entries", (self.name,), {})
        there = {entry.lease for entry in entries}
        wrong = {}
        for lease in leases:
            wants = lease.state is State.ACTIVE and self.concerns(lease.wiring)
            if lease.state is not State.RESERVED and wants != (lease.id in there):
                wrong[lease.id] = "missing" if wants else "left"
        others = there - {lease.id for lease in leases} - {""}
        return Observation(
            wrong, tuple(Leftover(id, self.name) for id in sorted(others))
        )

    def remove(self, _: Namespace, leftover: Leftover) -> None:
        self._put("detach", (self.name, leftover.lease), {})


def answer(
    entries: frozenset[Entry], away: bool, call: Call
) -> tuple[frozenset[Entry], bool, Any]:
    """Return the entries after a call, whether the switch is away, and the answer."""
    if call.verb in ("stop", "start"):
        return entries, call.verb == "stop", None
    if call.verb == "attach":
        attached = entries
        for new in call.args:
            if away and new.backend == PORTS:
                return entries, away, Raised(ServiceUnavailable, "away", 0)
            same = {entry for entry in attached if entry[:2] == new[:2]}
            if Entry(new.backend, new.key, "") in same:
                return entries, away, Raised(ConflictError, f"{new.key} is in use", 0)
            before = {
                entry
                for entry in attached
                if (entry.backend, entry.lease) == (new.backend, new.lease)
            }
            attached = attached - same - before | {new}
        return attached, away, None
    backend = call.args[0]
    if away and backend == PORTS:
        return entries, away, Raised(ServiceUnavailable, "away", 0)
    if call.verb == "entries":
        found = sorted(entry for entry in entries if entry.backend == backend)
        return entries, away, tuple(found)
    if call.verb == "add_port":  # a stranger's
        return entries | {Entry(backend, call.args[1], "")}, away, None
    field = 2 if call.verb == "detach" else 1
    assert call.verb in ("detach", "del_port")
    gone = {
        entry
        for entry in entries
        if entry.backend == backend and entry[field] == call.args[1]
    }
    return entries - gone, away, None
