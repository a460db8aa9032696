# SPDX-License-Identifier: Apache-2.0
"""What a fleet costs: `python -m bench.fleet acquire | size [HOSTS VMS] |
handover [TIMES SEED]` (root).

`acquire` starts 20 VMs in turn on a host in no fleet, on one with a healthy etcd of
three nodes, and on one whose etcd swallows every packet. Before each round it commits
20 registrations to etcd without Tapster. `size` lets one process play many hosts
against a real etcd: each joins, pushes its leases, and restarts its VMs.
`handover` moves a talking guest between three hosts, and kills each command on the way.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.fleet.etcd import Cluster, cluster
from lab.fleet.handover import Relay, relay
from lab.library import acquire, no_reaper
from lab.namespaces import namespaces
from lab.shell import sh
from tapster import Host, Lease, Tap
from tapster.fleet import steps
from tapster.fleet.etcd import Etcd, parse_endpoint
from tapster.fleet.fleet import Overview
from tapster.fleet.keys import Block, InventoryRow, Keys, encode
from tapster.fleet.member import Member
from tapster.fleet.registration import Record, RecordState, own_vm, released_state
from tapster.fleet.settings import Settings
from tapster.fleet.steps import Me, Push
from tapster.fleet.sync_loop import INTERVAL

ROUNDS = 200
BLOCK = 20
"""VMs that start one after the other, before the next way has its turn."""
TEN_THOUSAND = 10_000
WAYS = ("no fleet", "healthy", "black hole")


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder, namespaces():
        sh("ip link set lo up")
        os.mkdir("/run/tapster")
        if arguments[:1] == ["size"]:
            hosts, vms = map(int, arguments[1:3] or (1000, 100))
            size(Path(folder), hosts, vms)
        elif list(arguments) == ["acquire"]:
            cost(Path(folder))
        elif arguments[:1] == ["handover"]:
            times, seed = map(int, arguments[1:3] or (1000, 1))
            return hand_over(Path(folder), times, seed)
        else:
            sys.stderr.write(
                "usage: python -m bench.fleet acquire | size [HOSTS VMS] | "
                "handover [TIMES SEED]\n"
            )
            return 2
    return 0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# The cost of an acquire


Seconds = dict[tuple[str, str], list[float]]
"""The times of each thing that was timed, by the way."""


def cost(folder: Path) -> None:
    for number in range(len(WAYS)):
        sh(f"ip link add br{number} type bridge")
        sh(f"ip link set br{number} up")
    with ExitStack() as stack:
        etcd = stack.enter_context(cluster(folder))
        hosts = [
            stack.enter_context(Host(folder / f"{way}.db", reaper=no_reaper))
            for way in WAYS
        ]
        for way, host in zip(WAYS[1:], hosts[1:], strict=True):
            join(stack, etcd, folder, way.replace(" ", "-"), host)
        # From here on every packet to these addresses is lost.
        sh("ip route add 10.98.0.0/24 via 10.99.0.77")
        sh("ip neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev fleet")
        lost = [f"http://10.98.0.{number}:2379" for number in (1, 2, 3)]
        configure(folder, "black-hole", lost)
        bare = Etcd([parse_endpoint(url) for url in etcd.endpoints])
        stack.callback(bare.close)
        seconds: Seconds = {}
        for first in range(0, ROUNDS, BLOCK):
            numbers = range(first, first + BLOCK)
            time_without_tapster(bare, hosts[0], numbers, seconds)
            for index, way in enumerate(WAYS):
                name = way.replace(" ", "-")
                os.environ["TAPSTER_CONFIG"] = str(folder / f"{name}.toml")
                if way != "black hole" or first == 0:
                    given = [f"02:00:00:00:{index:02x}:{n:02x}" for n in numbers]
                    time_vms(hosts[index], index, "given MAC", given, seconds)
                time_vms(hosts[index], index, "made-up MAC", [None] * BLOCK, seconds)
    print_times(seconds)


def time_without_tapster(
    bare: Etcd, host: Host, numbers: Iterable[int], seconds: Seconds
) -> None:
    """Time the same commit without Tapster, and the query of a host in no fleet."""
    for number in numbers:
        registration = f"/bench/{number}"
        expected = dict.fromkeys(("/bench/permit", "/bench/block", registration))
        with timing(seconds, "healthy", "etcd alone"):
            bare.commit(expected, {registration: "x" * 150})
        with timing(seconds, "no fleet", "query"):
            host.operations.context.ledger.in_fleet()


def time_vms(
    host: Host, index: int, what: str, macs: Iterable[str | None], seconds: Seconds
) -> None:
    """Time the start of a VM for each MAC, then the end of each."""
    leases: list[Lease] = []
    for mac in macs:
        with timing(seconds, WAYS[index], what):
            leases.append(acquire(host, Tap(bridge=f"br{index}", mac=mac)))
    for lease in leases:
        with timing(seconds, WAYS[index], "release"):
            host.release(lease.id)
    host.reap(now=True)


@contextmanager
def timing(seconds: Seconds, way: str, what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.setdefault((way, what), []).append(time.perf_counter() - began)


def print_times(seconds: Seconds) -> None:
    heads = f"{'fastest':>10}{'median':>10}{'p95':>10}{'slowest':>10}"
    say(f"{'milliseconds':<26}{heads}")
    for what in ("given MAC", "made-up MAC", "release", "etcd alone", "query"):
        for way in WAYS:
            if (way, what) not in seconds:
                continue
            times = sorted(seconds[way, what])
            p95 = times[int(len(times) * 0.95) - 1]
            median = statistics.median(times)
            say(
                f"{what:<12}  {way:<12}{times[0] * 1e3:>10.2f}{median * 1e3:>10.2f}"
                f"{p95 * 1e3:>10.2f}{times[-1] * 1e3:>10.2f}"
            )


def configure(folder: Path, name: str, endpoints: list[str]) -> None:
    (folder / f"{name}.toml").write_text(
        f'[fleet]\nname = "{name}"\nendpoints = {json.dumps(endpoints)}\n'
    )


def join(stack: ExitStack, etcd: Cluster, folder: Path, name: str, host: Host) -> None:
    configure(folder, name, etcd.endpoints)
    store = Etcd([parse_endpoint(url) for url in etcd.endpoints])
    stack.callback(store.close)
    Overview(store, Keys()).init("0a:54:00")
    settings = Settings(name, tuple(etcd.endpoints))
    Member(settings, host.operations.context.ledger, store).join()


# The size of a fleet


def size(folder: Path, hosts: int, vms: int) -> None:
    with cluster(folder, options=["--quota-backend-bytes=8589934592"]) as etcd:
        store = Etcd([parse_endpoint(url) for url in etcd.endpoints], timeout=30)
        where = Keys()
        Overview(store, where).init("0a:54:00")
        say(f"{hosts} hosts with {vms} VMs each")
        timed("join", hosts, lambda n: enter(store, where, n))
        push = lambda n: push_host(store, where, n, vms, RecordState.ACTIVE)  # noqa: E731
        pushing = timed("first push", hosts, push)
        keys, full = etcd_size(store)
        again = timed("push of all again", hosts, push)
        _, before = etcd_size(store)
        timed("one restart of a VM", hosts, lambda n: restart(store, where, n))
        _, after = etcd_size(store)
        session = [store.open_session(180) for _ in range(hosts)]
        timed("sync without news", hosts, lambda n: idle(store, where, n, session[n]))
        overview = Overview(store, where)
        timed("reading the inventory", 1, lambda _: sum(1 for _ in overview.rows()))
        registered = overview.registrations
        timed("reading the registrations", 1, lambda _: sum(1 for _ in registered()))
        memory = max(rss(node.process.pid) for node in etcd.nodes if node.process)
        store.close()
    say(f"memory of a node: {memory >> 20} MiB")
    restarts = TEN_THOUSAND * 100
    more = restarts / (hosts * vms)
    history = (after - before) / hosts * restarts
    say(f"carried to {TEN_THOUSAND} hosts with 100 VMs each:")
    say(f"{keys * more / 1e6:.1f} million keys, {full * more / 1e9:.1f} GB")
    say(f"memory of a node: {memory * more / 1e9:.1f} GB")
    say(f"each VM restarted daily: {2 * restarts / 86400:.0f} transactions/s")
    say(f"and {history / 1e9:.1f} GB of history a day before compaction")
    say(f"syncs: {TEN_THOUSAND / INTERVAL:.0f} /s, of 3 requests each")
    say(
        f"first push: {pushing * more / 60:.0f} min, again: {again * more / 60:.0f} min"
    )


def timed(what: str, count: int, do: Callable[[int], object]) -> float:
    began = time.perf_counter()
    for number in range(count):
        do(number)
    took = time.perf_counter() - began
    say(f"{what:<24}{took:>9.1f} s{count / took:>10.0f} /s")
    return took


def etcd_size(store: Etcd) -> tuple[int, int]:
    """Say and return how many keys there are, and the bytes of the database."""
    status = store.call("maintenance/status", {})
    answer = store.call(
        "kv/range", {"key": "Lw==", "range_end": "MA==", "count_only": True}
    )
    keys, size = int(answer.get("count", 0)), int(status["dbSize"])
    say(f"{'':<24}{keys} keys, {size / 1e6:.1f} MB")
    return keys, size


def rss(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def me(number: int) -> Me:
    return Me(f"host{number}", f"{number:08x}", f"boot{number}")


def block_of(number: int) -> str:
    return f"0a:54:00:{number.to_bytes(2, 'big').hex(':')}"


def enter(store: Etcd, where: Keys, number: int) -> None:
    host = me(number)
    steps.run(steps.enter(where, host, joins=True), store)
    value = encode(Block(host.host, host.ledger, 0.0))
    store.commit({}, {where.block(block_of(number)): value})


def record_of(number: int, vm: int, state: RecordState, life: int = 0) -> Push:
    lease = f"{number:08x}{vm:06x}{life:02x}"
    mac = f"{block_of(number)}:{vm:02x}"
    state = (
        released_state(own_vm(lease), lease) if state != RecordState.ACTIVE else state
    )
    record = Record(lease, "default", mac, own_vm(lease), None, state, 1.8e9, True)
    row = InventoryRow(
        f"vnet{vm}", mac, "default", own_vm(lease), "owner", "tap", "br0", state, 1.8e9
    )
    return Push(record, row)


def push_host(
    store: Etcd, where: Keys, number: int, vms: int, state: RecordState
) -> None:
    pushes = [record_of(number, vm, state) for vm in range(vms)]
    running = frozenset(pending.record.lease for pending in pushes)
    steps.run(steps.push_all(where, me(number), pushes, running), store)


def idle(store: Etcd, where: Keys, number: int, session: int) -> None:
    """Ask what a sync asks that has nothing to push."""
    steps.run(steps.enter(where, me(number)), store)
    store.keep_session(session)
    store.read([where.session(me(number).host)])


def restart(store: Etcd, where: Keys, number: int) -> None:
    ended = record_of(number, 0, RecordState.ENDED)
    begun = record_of(number, 0, RecordState.ACTIVE, life=1)
    running = frozenset({begun.record.lease})
    steps.run(steps.push_all(where, me(number), [ended, begun], running), store)


# Hand-overs


def hand_over(folder: Path, times: int, seed: int) -> int:
    """Move a talking guest; 1 if a frame went astray."""
    with cluster(folder) as etcd, relay(folder, etcd, seed) as guest:
        while guest.figures.handed_over < times and not guest.talk.faults:
            guest.step()
            if guest.figures.handed_over % 100 == 0:
                guest.rest()
                report(guest)
        guest.rest()
        report(guest)
        return int(bool(guest.talk.faults))


def report(guest: Relay) -> None:
    figures, talk = guest.figures, guest.talk
    kills = ", ".join(f"{verb} {n}" for verb, n in sorted(figures.kills.items()))
    say(f"{figures.handed_over} hand-overs, {figures.cancelled} cancelled ones")
    say(f"commands killed: {sum(figures.kills.values())} ({kills})")
    say(f"registrations checked at rest: {figures.at_rest}, all right")
    say(f"questions: {talk.asked}, answers: {talk.answered}")
    say(f"frames at the wrong host: {len(talk.faults)} {talk.faults[:1] or ''}")
    for what, silences in (
        ("take not killed", figures.silences),
        ("take killed", figures.silences_killed),
    ):
        found = sorted(silences) or [0.0]
        say(
            f"silence, {what:<16} median {statistics.median(found) * 1e3:.0f} ms, "
            f"longest {found[-1] * 1e3:.0f} ms"
        )
    say(f"longest silence at any time: {talk.longest * 1e3:.0f} ms")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
