# SPDX-License-Identifier: Apache-2.0
"""Planes as the explorer has them: a switch that knows ports by name, and rules.

What they hold is a set of entries. The real planes are tried on real services;
here it is tried when Host calls them, and what becomes of it in every schedule.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tapster.errors import ConflictError, ServiceUnavailable
from tapster.kernel.port import Kernel
from tapster.model import Lease, State, Wiring
from tapster.testing.explorer.calls import Call, Raised, Remote
from tapster.wiring.plane import Observed, Stray

PORTS = "ovs"
"""The plane whose entries are keyed by name, and whose service may be away."""
RULES = "filter"
"""The plane whose entries are keyed by ifindex."""


class Entry(NamedTuple):
    """Something that a plane holds."""

    plane: str
    key: str | int
    lease: str
    """The id in its stamp; "" if it is a stranger's."""


class RemotePlane(Remote):
    """Stands for a plane. Each verb is one transaction, so one call."""

    name: str

    def concerns(self, wiring: Wiring) -> bool:
        return bool(wiring.ovs if self.name == PORTS else wiring.filter)

    def check(self, _: Kernel, __: Wiring) -> None:
        """It can always be had."""

    def wire(self, _: Kernel, lease: Lease) -> None:
        key = lease.name if self.name == PORTS else lease.ifindex
        self._put("wire", (Entry(self.name, key, lease.id),), {})

    def unwire(self, _: Kernel | None, lease: Lease) -> None:
        self._put("unwire", (self.name, lease.id), {})

    def observe(self, _: Kernel, leases: Sequence[Lease]) -> Observed:
        entries: tuple[Entry, ...] = self._put("entries", (self.name,), {})
        there = {entry.lease for entry in entries}
        wrong = {}
        for lease in leases:
            wants = lease.state is State.ACTIVE and self.concerns(lease.wiring)
            if lease.state is not State.RESERVED and wants != (lease.id in there):
                wrong[lease.id] = "missing" if wants else "left"
        others = there - {lease.id for lease in leases} - {""}
        return Observed(wrong, tuple(Stray(one, self.name) for one in sorted(others)))

    def remove(self, _: Kernel, stray: Stray) -> None:
        self._put("unwire", (self.name, stray.lease), {})


def answer(
    entries: frozenset[Entry], away: bool, call: Call
) -> tuple[frozenset[Entry], bool, Any]:
    """What a call does to the entries, and whether the switch is away after it."""
    if call.verb in ("stop", "start"):
        return entries, call.verb == "stop", None
    if call.verb == "wire":
        (new,) = call.args
        if away and new.plane == PORTS:
            return entries, away, Raised(ServiceUnavailable, "away", 0)
        same = {one for one in entries if one[:2] == new[:2]}
        if Entry(new.plane, new.key, "") in same:
            return entries, away, Raised(ConflictError, f"{new.key} is in use", 0)
        before = {one for one in entries if (one.plane, one.lease) == (new[0], new[2])}
        return entries - same - before | {new}, away, None
    plane = call.args[0]
    if away and plane == PORTS:
        return entries, away, Raised(ServiceUnavailable, "away", 0)
    if call.verb == "entries":
        found = sorted(one for one in entries if one.plane == plane)
        return entries, away, tuple(found)
    if call.verb == "add_port":  # a stranger's
        return entries | {Entry(plane, call.args[1], "")}, away, None
    field = 2 if call.verb == "unwire" else 1
    assert call.verb in ("unwire", "del_port")
    gone = {one for one in entries if one[0] == plane and one[field] == call.args[1]}
    return entries - gone, away, None
