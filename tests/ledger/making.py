# SPDX-License-Identifier: Apache-2.0
"""Leases in a ledger, made as a Host makes them."""

from tapster import model
from tapster.ledger import Ledger, Reservation
from tapster.model import Lease, Netns, Process, Spec

HERE = Netns("boot", 1, "/run/netns/here")
THERE = Netns("boot", 2, "/run/netns/there")
PROCESS = Process(pid=10, start=20, pidns=30)
ME, OTHER, GONE = 1, 2, 3
TEN = "fourteen-bytes%d"  # room for one digit


class Clock:
    """The clocks, set by hand."""

    def __init__(self) -> None:
        self.boot = 10.0
        self.wall = 100.0

    def boottime(self) -> float:
        return self.boot

    def wallclock(self) -> float:
        return self.wall


def nobody_has(_: str) -> int:
    return 0


def nothing_changed() -> set[int]:
    return set()


def alive(_: int) -> bool:
    return True


def dead(_: int) -> bool:
    return False


def reserve(
    ledger: Ledger, *specs: Spec, netns: Netns = HERE, caller_uid: int | None = None
) -> list[Lease]:
    """Reserve where no foreign device is; for a user, as the daemon does."""
    return ledger.reserve(
        netns,
        [
            Reservation(
                spec,
                model.check_spec(spec),
                spec.mac,
                spec.wiring,
                caller_uid=caller_uid,
                max_keys=None if caller_uid is None else 1000,
            )
            for spec in specs
        ],
        manager=ME,
        holder_of=nobody_has,
        changed_links=nothing_changed,
    )


def hold(ledger: Ledger, *specs: Spec, netns: Netns = HERE) -> list[Lease]:
    """Active leases."""
    reserved = reserve(ledger, *specs, netns=netns)
    return ledger.activate(reserved, [None] * len(reserved))


def release(ledger: Ledger, *leases: Lease) -> None:
    for lease in leases:
        ledger.begin_release(lease.id)


def end(ledger: Ledger, *leases: Lease) -> None:
    release(ledger, *leases)
    ledger.end([lease.id for lease in leases])


def names_of(leases: list[Lease]) -> list[str]:
    return [lease.name for lease in leases]
