# SPDX-License-Identifier: Apache-2.0
"""What grows with namespaces, filters and leases: processor time, not wall time.

Other programs on a busy host change these figures little. The cost of system calls is
in them; what the kernel does later is not.
"""

import os
import resource
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from bench.measurements import Run
from bench.result import Goal, Row, Table
from bench.ways.tapster import no_reaper
from bench.world import BenchWorld, world
from tapster import Host, Lease, Tap, doctor
from tapster.daemon.log import Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.upkeep import Upkeep
from tapster.ledger import FIRST_IFINDEX

SPACES, OTHER_SPACES = 600, (100, 1000)
FILTERED, OTHER_FILTERED = 2000, 100
LEASES = 1000, 4000, 10_000
PORTS = 900
"""Ports of one bridge: the kernel allows 1,023."""
LISTING = ["ip", "-j", "link"]
TOGETHER = 50
"""Leases that are acquired in one call."""


class Quiet(Log):
    """Logs nothing."""

    def __call__(self, level: int, event: str, **fields: Any) -> None:
        pass


def measure(run: Run) -> Iterator[Table]:
    found = [_spaces(run) | _filtered(run) | _leases(run) for _ in range(run.rounds)]
    rows = [Row(title, [one[title] for one in found]) for title in found[0]]
    many, filtered = run.size(SPACES, 4), run.size(FILTERED, 8)
    bounds = {
        _ended(many): 500,
        _sound(many): 300,
        ASKED: 4,
        LACKING: 1500,
        FLUSHED: 2000 * filtered / FILTERED,
    }
    yield Table(
        "limits",
        "What grows with namespaces, filters and leases",
        "ms of the processor",
        rows,
        goals=[Goal(title, bound) for title, bound in bounds.items()],
        about="Recover looks at every lease; the doctor says what recover would do.",
    )


def _ended(spaces: int) -> str:
    return f"daemon: half of {spaces:,} namespaces end at once"


def _sound(spaces: int) -> str:
    return f"recover, {spaces:,} namespaces with a lease each"


ASKED = "one's own plain tap is asked about, while others are filtered"
LACKING = "recover, 60 filtered leases lack an element each"
DOCTOR = "doctor, before that"
FLUSHED = "recover, after nft flush ruleset"


def spent(call: Callable[[], object]) -> float:
    """Return the milliseconds of the processor that a call takes."""
    before = time.process_time()
    call()
    return (time.process_time() - before) * 1e3


# Namespaces


def _spaces(run: Run) -> dict[str, float]:
    found = {}
    others = (2, 6) if run.small else OTHER_SPACES
    for number in (run.size(SPACES, 4), *others):
        with (
            world(run.program) as place,
            _in_spaces(place, number) as names,
            Host(place.directory / "ledger.db", reaper=no_reaper) as host,
        ):
            found[_sound(number)] = spent(host.recover)
            found[_ended(number)] = _end(host, names[: number // 2])
    return found


@contextmanager
def _in_spaces(place: BenchWorld, number: int) -> Iterator[list[str]]:
    """Make namespaces with a lease in each; delete those that are left."""
    names = [f"bench{one}" for one in range(number)]
    _ip(f"netns add {name}" for name in names)
    try:
        for name in names:
            with Host(
                place.directory / "ledger.db", netns=name, reaper=no_reaper
            ) as host:
                host.acquire(Tap()).close()
        yield names
    finally:
        left = set(os.listdir("/run/netns"))
        _ip(f"netns del {name}" for name in names if name in left)


def _end(host: Host, names: Sequence[str]) -> float:
    """Let namespaces end; what the daemon's upkeep takes until their leases have."""
    jobs: list[Callable[[], object]] = []
    upkeep = Upkeep(
        host.operations,
        Metrics(),
        Quiet(),
        on_event=lambda _: None,
        watch_process=lambda _: None,
        forget_process=lambda _: None,
        submit=jobs.append,
    )
    watch = host.operations.context.system.watch(first=FIRST_IFINDEX)
    upkeep.recover()
    watch.changes()
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    left = len(host.leases()) - len(names)
    _ip(f"netns del {name}" for name in names)

    def follow() -> None:
        while len(host.leases()) > left:
            if jobs:
                jobs.pop(0)()
                continue
            if not poll.poll(1000):
                upkeep.follow_new_namespaces()  # as the daemon does each second
            changes = watch.changes()
            assert changes is not None, "reports were lost"
            upkeep.look_at(changes)

    try:
        return spent(follow)
    finally:
        watch.close()


# Filters


def _filtered(run: Run) -> dict[str, float]:
    found = {}
    for number in (run.size(OTHER_FILTERED, 4), run.size(FILTERED, 8)):
        with world(run.program) as place:
            bridges = [f"br{one}" for one in range(number // PORTS + 1)]
            for bridge in (*bridges, "plain"):
                place.bridge(bridge)
            with Host(place.directory / "ledger.db", reaper=no_reaper) as host:
                leases = _acquire(
                    host,
                    [
                        Tap(
                            bridge=bridges[one // PORTS],
                            filter=True,
                            addresses=(f"10.0.{one >> 8}.{one & 255}",),
                        )
                        for one in range(number)
                    ],
                )
                recovered = f"recover, {number:,} filtered leases"
                found[recovered] = spent(host.recover)
                if number == run.size(FILTERED, 8):
                    found |= _break(host, leases)
    return found


def _break(host: Host, leases: Sequence[Lease]) -> dict[str, float]:
    """Take elements and tables away, and let them be found and restored."""
    (plain,) = _acquire(host, [Tap(bridge="plain")])
    table = f"bridge tapster_{host.operations.context.ledger.id}_filter"
    found = {ASKED: spent(partial(host.differences, plain))}
    _nft(
        f"delete element {table} macs {{ {lease.ifindex} . {_number(lease.mac)} }}"
        for lease in islice(leases, 60)
    )
    found[DOCTOR] = spent(partial(doctor.examine, host.operations))
    found[LACKING] = spent(host.recover)
    _nft(["flush ruleset"])
    found[FLUSHED] = spent(host.recover)
    assert host.recover() == []
    return found


def _number(mac: str) -> str:
    return f"0x{mac.replace(':', '')}"


# Leases


def _leases(run: Run) -> dict[str, float]:
    found = {}
    sizes = [2] if run.small else LEASES
    with (
        world(run.program) as place,
        Host(place.directory / "ledger.db", reaper=no_reaper) as host,
    ):
        for number in sizes:
            _acquire(host, [Tap()] * (number - len(host.leases())))
            found[f"recover, {number:,} leases"] = spent(host.recover)
            listing = partial(subprocess.run, LISTING, stdout=subprocess.DEVNULL)
            found[f"ip -j link, {number:,} devices"] = _spent_by_child(listing)
    return found


def _spent_by_child(call: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def _acquire(host: Host, specs: Sequence[Tap]) -> list[Lease]:
    leases = []
    for start in range(0, len(specs), TOGETHER):
        for opened in host.acquire_all(specs[start : start + TOGETHER]):
            opened.close()
            leases.append(opened.lease)
    return leases


def _ip(lines: Iterator[str] | list[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _nft(lines: Iterator[str] | list[str]) -> None:
    subprocess.run(["nft", "-f", "-"], input="\n".join(lines), text=True, check=True)
