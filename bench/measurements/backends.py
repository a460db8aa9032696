# SPDX-License-Identifier: Apache-2.0
"""What each backend adds to a start and a stop, and how exact rates are."""

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median

from bench.clock import timed
from bench.measurements import Run
from bench.processes import run as run_process
from bench.result import Goal, Row, Table, interleave
from bench.switch import switch
from bench.ways.tapster import no_reaper
from bench.world import BenchWorld, world
from tapster import Host, Rate, Tap

SAMPLES = 20
"""A round, of each wiring."""
CROWDS = (1, 100, 900)
PORTS = (1, 300)
"""Ports of Open vSwitch's bridge."""
FOREIGN = 10_000

TAP = Tap(bridge="br0")
PORT = Tap(ovs="ovs0")
RATE = Rate(10_000, 20_000)
ADDRESSES = ("192.0.2.5", "2001:db8::5")
ALL = TAP._replace(filter=True, addresses=ADDRESSES, inbound=RATE, outbound=RATE)
BRIDGE = "bridge alone"
WIRINGS = {
    BRIDGE: TAP,
    "filter": TAP._replace(filter=True),
    "filter, 2 addresses": TAP._replace(filter=True, addresses=ADDRESSES),
    "outbound rate": TAP._replace(outbound=RATE),
    "inbound rate": TAP._replace(inbound=RATE),
    "all of it": ALL,
    "Open vSwitch": PORT,
    "Open vSwitch, VLAN": PORT._replace(vlan=5),
    "Open vSwitch, VLAN, both rates": PORT._replace(
        vlan=5, inbound=RATE, outbound=RATE
    ),
}

ASKED = 5_000
"""Kilobytes a second."""
WARM, MEASURED = 1.5, 2.0
"""Seconds until the first burst is over, and of the measurement."""
FRAME = bytes.fromhex("ffffffffffff") + bytes.fromhex("020000000001") + b"\x88\xb5"
SIZE = 1500
FREE, OUTBOUND, INBOUND = "free", "outbound", "inbound"

Times = tuple[float, float]
"""Milliseconds of an acquire and a release."""


def measure(run: Run) -> Iterator[Table]:
    samples = run.size(SAMPLES, 2)
    with world(run.program) as place, switch(place.directory, "ovs0"):
        place.bridge("br0")
        with _host(place) as host:
            yield from _added(host, run.rounds, samples)
            ports = (1, 3) if run.small else PORTS
            yield from _switched(host, run.rounds, samples, ports)
    with world(run.program) as place:
        place.bridge("br0")
        with _host(place) as host:
            crowds = [1, 2, 3] if run.small else CROWDS
            yield _crowded(host, run.rounds, samples, crowds, run.size(FOREIGN, 10))
    with world(run.program) as place:
        place.bridge("br0")
        with _host(place) as host:
            yield _rates(host, run.rounds, 0.1 if run.small else 1)


def _host(place: BenchWorld) -> Host:
    return Host(place.directory / "ledger.db", reaper=no_reaper)


def _added(host: Host, rounds: int, samples: int) -> Iterator[Table]:
    for spec in WIRINGS.values():
        _pairs(host, spec, 1)  # libraries are loaded
    ways = {
        title: partial(_pairs, host, spec, samples) for title, spec in WIRINGS.items()
    }
    found = interleave(ways, rounds)
    for part, verb in enumerate(("start", "stop")):
        yield Table(
            f"backends-{verb}",
            f"What a backend adds to a {verb}",
            "ms",
            [Row(title, [times[part] for times in of]) for title, of in found.items()],
            base=BRIDGE,
            about="The median time. Open vSwitch's daemons do their part in userspace.",
        )


OURS, THEIRS = "Tapster", "ovs-vsctl"
OWN = "of that, Tapster's processor time"
NOTES = {
    OURS: "",
    OWN: "the rest is the switch's and the kernel's: Tapster waits for an answer",
    THEIRS: "adds a tap that exists, and removes it; with the start of its process",
}


def _switched(
    host: Host, rounds: int, samples: int, crowds: Sequence[int]
) -> Iterator[Table]:
    """Tell which part of a start and of a stop is the switch's."""
    ways: dict[str, Callable[[], tuple[float, ...]]] = {
        OURS: partial(_parts, host, samples),
        THEIRS: partial(_plugged, samples),
    }
    rows: dict[str, list[Row]] = {"start": [], "stop": []}
    there = 0
    for crowd in crowds:
        for _ in range(there, crowd):
            host.acquire(PORT).close()
        there = crowd
        found = interleave(ways, rounds)
        columns = {
            ("start", OURS): [times[0] for times in found[OURS]],
            ("start", OWN): [times[2] for times in found[OURS]],
            ("start", THEIRS): [times[0] for times in found[THEIRS]],
            ("stop", OURS): [times[1] for times in found[OURS]],
            ("stop", OWN): [times[3] for times in found[OURS]],
            ("stop", THEIRS): [times[1] for times in found[THEIRS]],
        }
        for (verb, title), values in columns.items():
            rows[verb].append(Row(_among(title, crowd), values, NOTES[title]))
    few, many = _among(OWN, crowds[0]), _among(OWN, crowds[-1])
    for verb, of in rows.items():
        yield Table(
            f"switch-{verb}",
            f"A {verb} at Open vSwitch, as its ports grow",
            "ms",
            of,
            goals=[Goal(many, 1.5, to=few)],
            about="The median. The bridge is in userspace.",
        )


def _among(title: str, ports: int) -> str:
    return f"{title}, {ports} ports" if ports > 1 else f"{title}, 1 port"


def _parts(host: Host, samples: int) -> tuple[float, ...]:
    """Return the medians of an acquire, a release, and the processor's part of each."""
    times = []
    for _ in range(samples):
        begin = time.process_time()
        acquired, lease = timed(partial(host.acquire, PORT))
        starting = time.process_time() - begin
        lease.close()
        host.device(lease)  # the kernel has noticed the close
        begin = time.process_time()
        released, _ = timed(partial(host.release, lease.id))
        stopping = time.process_time() - begin
        times.append((acquired, released, starting, stopping))
    host.reap(now=True)
    return tuple(median(column) * 1e3 for column in zip(*times, strict=True))


def _plugged(samples: int) -> Times:
    """Return the medians of adding and removing a tap by the switch's own tool."""
    subprocess.run(["ip", "tuntap", "add", "plug", "mode", "tap"], check=True)
    times = []
    for _ in range(samples):
        added = run_process("ovs-vsctl", "add-port", "ovs0", "plug")
        times.append((added * 1e3, run_process("ovs-vsctl", "del-port", "plug") * 1e3))
    subprocess.run(["ip", "link", "del", "plug"], check=True)
    adding, removing = zip(*times, strict=True)
    return median(adding), median(removing)


def _crowded(
    host: Host, rounds: int, samples: int, crowds: Sequence[int], foreign: int
) -> Table:
    ways = {
        BRIDGE: partial(_pairs, host, TAP, samples),
        "all": partial(_pairs, host, ALL, samples),
    }
    rows = []

    def add(title: str) -> None:
        found = interleave(ways, rounds)
        for part, verb in enumerate(("start", "stop")):
            pairs = zip(found["all"], found[BRIDGE], strict=True)
            ratios = [times[part] / other[part] for times, other in pairs]
            rows.append(Row(f"{verb} {title}", ratios))

    there = 0
    for crowd in crowds:
        for number in range(there, crowd):
            address = f"198.51.{number // 250}.{number % 250}"
            pair = (address, f"2001:db8::{number:x}")
            spec = ALL._replace(addresses=pair, inbound=None)
            host.acquire(spec).close()
        there = crowd
        add(f"among {crowd:,} leases")
    _firewall(foreign)
    add(f"and {foreign:,} rules of others")
    return Table(
        "backends-crowd",
        "Filter and rates on a bridge, among many leases",
        f"x {BRIDGE}",
        rows,
        about="A start or a stop takes so many times as long as with a bridge alone, "
        "measured in turns.",
    )


def _firewall(rules: int) -> None:
    accepted = "\n".join(
        f"ip saddr 10.{n >> 16}.{n >> 8 & 255}.{n & 255} accept" for n in range(rules)
    )
    table = f"table inet firewall {{\nchain input {{\n{accepted}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)


def _pairs(host: Host, spec: Tap, samples: int) -> Times:
    """Return the medians of some acquires and releases."""
    times = []
    for _ in range(samples):
        acquired, lease = timed(partial(host.acquire, spec))
        lease.close()
        host.device(lease)  # the kernel has noticed the close
        released, _ = timed(partial(host.release, lease.id))
        times.append((acquired * 1e3, released * 1e3))
    host.reap(now=True)
    acquires, releases = zip(*times, strict=True)
    return median(acquires), median(releases)


def _rates(host: Host, rounds: int, share: float) -> Table:
    asked = Rate(ASKED)
    limits: Mapping[str, tuple[Tap, Tap]] = {
        FREE: (TAP, TAP),
        OUTBOUND: (TAP._replace(outbound=asked), TAP),
        INBOUND: (TAP, TAP._replace(inbound=asked)),
    }
    found = interleave(
        {title: partial(_rate, host, *specs, share) for title, specs in limits.items()},
        rounds,
    )
    return Table(
        "backends-rate",
        f"Traffic under a rate of {ASKED:,} kB/s on a bridge",
        "kB/s",
        [Row(title, of) for title, of in found.items()],
        base=FREE,
        goals=[
            Goal(limited, ASKED * bound, least=least)
            for limited in (OUTBOUND, INBOUND)
            for bound, least in ((0.9, True), (1.1, False))
        ],
        about=f"One guest sends frames of {SIZE} bytes to another, as fast as it can. "
        "The measurement begins when the first burst is over.",
    )


def _rate(host: Host, sender: Tap, receiver: Tap, share: float) -> float:
    """Kilobytes a second; `share` is the part of the usual time that it may take."""
    from_, to = host.acquire(sender), host.acquire(receiver)
    (out,), (in_,) = from_.fds, to.fds
    for fd in (out, in_):
        os.set_blocking(fd, False)
    frame = bytes(10) + FRAME + bytes(SIZE - len(FRAME))
    start = time.perf_counter() + WARM * share
    received = 0
    while (now := time.perf_counter()) < start + MEASURED * share:
        for _ in range(32):
            os.write(out, frame)
        while select.select([in_], [], [], 0)[0]:
            size = len(os.read(in_, 65536)) - 10
            received += size if now > start and size == SIZE else 0
    for lease in (from_, to):
        lease.close()
        host.release(lease.id)
    host.reap(now=True)
    return received / MEASURED / share / 1e3
