# SPDX-License-Identifier: Apache-2.0
"""Acquires of one user that wait at the same time: the daemon does them together, and
each call gets what it would get by itself."""

import os
from collections.abc import Iterator, Sequence
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from tapster import KernelError, Lease, Macvtap, Rate, Spec, Tap
from tapster.kernel import process
from tapster.kernel.port import LinkChange
from tapster.rpc import interface, varlink
from tapster.rpc.interface import Binding
from tapster.testing.backends import make_backends
from tests.daemon.parts import ALICE, BOB, ROOT, RULES, Parts, Peer, parts

BR0 = Tap(bridge="br0")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path, devices=4, connections_per_user=8) as made:
        made.access.loaded = made.access.loaded._replace(
            rules=tuple(rule._replace(features=("mac",)) for rule in RULES)
        )
        yield made


def ask(peer: Peer, *specs: Spec, bind: Binding = Binding.NOTHING) -> None:
    """Send an acquire of devices."""
    asked = interface.Acquire(tuple(map(interface.nic, specs)), bind)
    peer.send("io.tapster.Acquire", parameters=varlink.to_json(asked))


def answer(peer: Peer) -> Any:
    """The names of the devices that the answer has, or the name of its error."""
    (message,) = peer.received()
    if error := message.get("error"):
        return error.rpartition(".")[2]
    return [one["lease"]["name"] for one in message["parameters"]["devices"]]


def test_acquires_that_wait_are_done_together(made: Parts) -> None:
    peers = [made.connect() for _ in range(3)]
    for peer in peers:
        ask(peer, BR0)
    made.turn()
    assert made.work() == 1
    assert [answer(peer) for peer in peers] == [["vnet0"], ["vnet1"], ["vnet2"]]
    assert [event.event for event in made.events] == ["acquired"] * 3
    names = {lease.name: lease for lease in made.host.leases()}
    assert {lease.caller_uid for lease in names.values()} == {ALICE.uid}
    made.host.release(names["vnet1"])
    assert {lease.name for lease in made.host.leases(all=False)} == {
        *("vnet0", "vnet2")
    }, "a lease of a call can end without those of the other calls"


@pytest.mark.parametrize(
    "slow",
    [
        [BR0, BR0],
        [BR0._replace(queues=2)],
        [BR0._replace(filter=True)],
        [Tap(ovs="ovs0", vlan=5)],
        [BR0._replace(inbound=Rate(1000))],
        [BR0._replace(outbound=Rate(1000))],
        [Tap(redirect="eth0")],
        [Macvtap(lower="eth0")],
    ],
)
def test_an_acquire_that_takes_long_is_done_alone(
    made: Parts, slow: list[Spec]
) -> None:
    """Another user that comes meanwhile waits for it only, not for seven like it."""
    made.host.operations.context.backends = make_backends({}, lambda _: None, "ledger")
    peers = [made.connect(ROOT) for _ in range(3)]
    for peer in peers:
        ask(peer, *slow)
    made.turn()
    assert made.worker.waiting
    made.worker.run_one()
    made.turn()
    assert [bool(peer.received()) for peer in peers] == [True, False, False]


@pytest.mark.parametrize(
    ("other", "bind"), [(BOB, Binding.NOTHING), (ALICE, Binding.CLOSE)]
)
def test_acquires_of_two_users_or_with_two_ends_are_not_done_together(
    made: Parts, other: Any, bind: Binding
) -> None:
    first, second = made.connect(), made.connect(other)
    ask(first, BR0)
    ask(second, BR0, bind=bind)
    made.turn()
    assert made.work() == 2
    assert [answer(first), answer(second)] == [["vnet0"], ["vnet1"]]


def test_an_acquire_that_fails_spoils_none_that_is_done_with_it(made: Parts) -> None:
    web = BR0._replace(mac="52:54:00:00:00:77")
    wanted: Sequence[Tap] = [BR0, BR0._replace(bridge="br9"), web, web, BR0]
    peers = [made.connect() for _ in wanted]
    for peer, spec in zip(peers, wanted, strict=True):
        ask(peer, spec)
    made.turn()
    assert made.work() == 1
    answers = [answer(peer) for peer in peers]
    assert answers == [["vnet0"], "NotAllowed", ["vnet1"], "MacTaken", ["vnet2"]]
    assert made.metrics.counts().count(interface.Count("refused", 1, "policy")) == 1


def test_a_device_that_cannot_be_made_spoils_none_that_is_made_with_it(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = made.host.operations.devices.connect

    def fail(namespace: Any, lease: Lease, *changes: Sequence[LinkChange]) -> None:
        if lease.owner == "unlucky":
            raise KernelError(EIO, "connecting it")
        connect(namespace, lease, *changes)

    monkeypatch.setattr(made.host.operations.acquire.devices, "connect", fail)
    peers = [made.connect() for _ in range(3)]
    for peer, owner in zip(peers, ("a", "unlucky", "c"), strict=True):
        ask(peer, BR0._replace(owner=owner))
    made.serve()
    answers = [answer(peer) for peer in peers]
    assert (answers[0], answers[1]) == (["vnet0"], "KernelError")
    leases = made.host.leases()
    assert sorted(lease.owner for lease in leases) == ["a", "c"]
    there = made.system.stranger().names()
    assert there == {"lo", "br0", *(lease.name for lease in leases)}


def test_a_quota_counts_the_devices_that_are_made_together(made: Parts) -> None:
    peers = [made.connect() for _ in range(5)]
    for peer in peers:
        ask(peer, BR0)
    made.turn()
    assert made.work() == 1
    answers = [answer(peer) for peer in peers]
    assert answers == [*([f"vnet{number}"] for number in range(4)), "QuotaExceeded"]


def test_a_caller_that_has_ended_gets_nothing_and_spoils_nothing(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = (11, 12, 13)
    cookie = made.host.operations.context.namespace.netns.cookie
    for pid in pids:
        made.system.world.start(pid, cookie)
    pidfds = [os.pidfd_open(os.getpid()) for _ in pids]
    monkeypatch.setattr(process, "over", lambda pidfd: pidfd == pidfds[1])
    peers = [
        made.connect(ALICE._replace(pid=pid), pidfd)
        for pid, pidfd in zip(pids, pidfds, strict=True)
    ]
    for peer in peers:
        ask(peer, BR0, bind=Binding.CALLER)
    made.serve()
    assert [answer(peer) for peer in peers] == [["vnet0"], "RequestError", ["vnet2"]]
    active = made.host.leases(all=False)
    assert {lease.name: lease.process and lease.process.pid for lease in active} == {
        "vnet0": 11,
        "vnet2": 13,
    }


def test_a_client_that_leaves_while_it_waits_gets_no_device(made: Parts) -> None:
    peers = [made.connect(ROOT) for _ in range(3)]
    for peer in peers:
        ask(peer, BR0)
    made.turn()
    peers[1].socket.close()
    made.serve()
    assert [answer(peers[0]), answer(peers[2])] == [["vnet0"], ["vnet1"]]
    assert len(made.host.leases()) == 2
