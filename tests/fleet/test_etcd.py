# SPDX-License-Identifier: Apache-2.0
"""Hosts on a real etcd of three nodes that are killed, stopped, cut off or set back.

In each failure the same must hold: a VM starts within the budget, a VM ends at once,
and when the store is back, it says what runs.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import pytest

from lab.fleet.etcd import Cluster, Node, cluster
from lab.namespaces import namespaces
from lab.shell import sh
from tapster import Lease
from tapster.fleet import keys
from tapster.fleet.etcd import Etcd, EtcdRefusal
from tapster.fleet.fleet import Overview
from tapster.fleet.keys import Keys
from tapster.fleet.registration import Registration
from tapster.fleet.steps import NoPermit
from tapster.fleet.store import FleetUnavailable, FleetUnclear, MacRegistered
from tests.fleet.clusters import seconds_until, store_of
from tests.fleet.hosts import MAC, FleetHost, X

pytestmark = pytest.mark.kernel

BUDGET = 0.5
SLACK = 0.25
"""Seconds by which a busy host may exceed the budget."""
ELECTION = 5.0


@pytest.fixture
def net() -> Iterator[None]:
    with namespaces():
        sh("ip link set lo up")
        yield


@pytest.fixture
def etcd(net: None, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as running:
        yield running


class Hosts:
    """Two hosts that have joined, on a real store."""

    def __init__(self, etcd: Cluster, folder: Path) -> None:
        self.etcd = etcd
        self.store = store_of(etcd)
        self.fleet = Overview(self.store, Keys())
        self.fleet.init("0a:54:00")
        self.a, self.b = (
            FleetHost(name, store_of(etcd), folder, etcd.endpoints)
            for name in ("a", "b")
        )
        for host in (self.a, self.b):
            host.member.join()

    def registration(self, mac: str = MAC) -> Registration | None:
        key = Keys().registration("default", mac)
        return keys.registration_of(key, self.store.read([key]).get(key))

    def close(self) -> None:
        for host in (self.a, self.b):
            host.host.close()
            host.store.close()
        self.store.close()


@pytest.fixture
def hosts(etcd: Cluster, tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(etcd, tmp_path)
    yield made
    made.close()


def timed_add(host: FleetHost) -> tuple[Lease, float]:
    began = monotonic()
    lease = host.add(MAC, X)
    return lease, monotonic() - began


def check_that_vms_start_and_end(host: FleetHost) -> None:
    """What must hold whatever the store does."""
    lease, seconds = timed_add(host)
    assert seconds < BUDGET + SLACK
    began = monotonic()
    host.host.release(lease.id)
    host.host.reap(now=True)
    own = host.add()
    host.host.release(own.id)
    assert monotonic() - began < SLACK
    assert own.mac.startswith("0a:54:00:")


def synced(host: FleetHost) -> None:
    seconds_until(lambda: host.start().sync(everything=True), within=3 * ELECTION)


def check_that_the_store_is_right(hosts: Hosts) -> None:
    """The one who asked first has the MAC; the other is refused."""
    for host in (hosts.a, hosts.b):
        synced(host)
        host.configure(f"budget = {ELECTION}")  # a busy host may need more than BUDGET
    registration = hosts.registration()
    assert registration is None or registration.state != "active"
    lease = hosts.b.add(MAC, X)
    registration = hosts.registration()
    assert registration is not None
    assert (registration.host, registration.lease) == ("b", lease.id)
    with pytest.raises(MacRegistered):
        hosts.a.add(MAC)
    shown = hosts.etcd.values(Keys().registration("default", MAC))
    assert [value["host"] for value in shown.values()] == ["b"]


def fill(store: Etcd) -> None:
    for number in range(200):
        store.commit({}, {f"/fill/{number}": "x" * 100_000})


@pytest.mark.parametrize("how", ["killed", "stopped", "cut off"])
def test_vms_start_and_end_while_the_leader_is_lost(hosts: Hosts, how: str) -> None:
    leader = hosts.etcd.leader()
    if how == "killed":
        leader.kill()
    elif how == "stopped":
        leader.signal(signal.SIGSTOP)
    else:
        leader.cut()
    check_that_vms_start_and_end(hosts.a)
    probe = {"/probe": how}
    assert seconds_until(lambda: hosts.store.commit({}, probe), within=20) < ELECTION
    check_that_the_store_is_right(hosts)
    if how == "stopped":
        leader.signal(signal.SIGCONT)
    elif how == "cut off":
        leader.join()


def test_no_vm_notices_that_a_follower_fails(hosts: Hosts) -> None:
    followers = [n for n in hosts.etcd.nodes if n is not hosts.etcd.leader()]
    followers[0].kill()
    check_that_vms_start_and_end(hosts.a)
    check_that_the_store_is_right(hosts)


def test_vms_start_and_end_while_the_majority_is_lost(hosts: Hosts) -> None:
    leader = hosts.etcd.leader()
    others = [node for node in hosts.etcd.nodes if node is not leader]
    for node in others:
        node.kill()
    check_that_vms_start_and_end(hosts.a)
    with pytest.raises(FleetUnavailable):
        hosts.a.start().sync()
    hosts.etcd.start(*others)
    check_that_the_store_is_right(hosts)


def test_vms_start_and_end_while_the_disks_are_slow(hosts: Hosts) -> None:
    with slow_disks(hosts, 0.1):
        began = monotonic()
        hosts.store.commit({}, {"/probe": "1"})
        assert monotonic() - began > 0.1
        check_that_vms_start_and_end(hosts.a)
    check_that_the_store_is_right(hosts)


def test_the_disks_are_slower_than_the_budget(hosts: Hosts) -> None:
    """etcd may apply the registration when its lease has ended."""
    with slow_disks(hosts, 1.5 * BUDGET):
        hasty = store_of(hosts.etcd, timeout=BUDGET)
        with pytest.raises(FleetUnclear):
            hasty.commit({}, {"/probe": "1"})
        hasty.close()
        for _ in range(2):
            check_that_vms_start_and_end(hosts.a)
    check_that_the_store_is_right(hosts)


@contextmanager
def slow_disks(hosts: Hosts, seconds: float) -> Iterator[None]:
    with ExitStack() as stack:
        for node in hosts.etcd.nodes:
            stack.enter_context(node.slow_disk(seconds))
        yield


def test_the_leader_has_a_slow_disk(hosts: Hosts) -> None:
    with hosts.etcd.leader().slow_disk(1.0):
        check_that_vms_start_and_end(hosts.a)
    check_that_the_store_is_right(hosts)


def test_vms_start_and_end_while_the_store_is_full(net: None, tmp_path: Path) -> None:
    with cluster(tmp_path, 1, options=["--quota-backend-bytes=2097152"]) as etcd:
        hosts = Hosts(etcd, tmp_path)
        with pytest.raises(EtcdRefusal, match="database space exceeded"):
            fill(hosts.store)
        assert hosts.store.alarms() == ["NOSPACE"]
        check_that_vms_start_and_end(hosts.a)
        for number in range(200):
            hosts.store.commit({}, {f"/fill/{number}": None})
        revision = hosts.store.call("kv/range", {"key": "YQ=="})["header"]["revision"]
        etcd.ctl(f"compact {revision}")
        etcd.ctl("defrag")
        etcd.ctl("alarm disarm")
        check_that_the_store_is_right(hosts)
        hosts.close()


def test_the_store_is_set_back_to_a_backup(
    hosts: Hosts, etcd: Cluster, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    etcd.ctl(f"snapshot save {backup}", only=etcd.nodes[0])
    lease = hosts.a.add(MAC, X)
    hosts.a.host.release(lease.id)
    hosts.a.member.sync()
    moved = hosts.b.add(MAC, X)
    made_up = hosts.a.add()
    for host in (hosts.a, hosts.b):
        host.member.sync()
    for node in etcd.nodes:
        node.kill()
    for node in etcd.nodes:
        shutil.rmtree(node.data)
        restore(node, backup)
    etcd.start()
    assert hosts.registration() is None
    for host in (hosts.a, hosts.b):
        synced(host)
    registration = hosts.registration()
    assert registration is not None
    assert (registration.host, registration.lease) == ("b", moved.id)
    assert str(registration.epoch) == "1.0"
    owned = hosts.registration(made_up.mac)
    assert owned is not None
    assert owned.host == "a"
    assert {owner.host for _, owner in hosts.fleet.blocks()} == {"a", "b"}


def test_the_store_has_lost_its_data(hosts: Hosts, etcd: Cluster) -> None:
    running = hosts.a.add(MAC, X)
    hosts.a.member.sync()
    blocks = {block: owner.host for block, owner in hosts.fleet.blocks()}
    for node in etcd.nodes:
        node.kill()
    for node in etcd.nodes:
        shutil.rmtree(node.data)
    etcd.start()
    for host in (hosts.a, hosts.b):
        with pytest.raises(NoPermit, match="tapster fleet join"):
            host.member.sync()
    check_that_vms_start_and_end(hosts.b)
    hosts.fleet.init("0a:54:00")
    for host in (hosts.a, hosts.b):
        host.start().join()
    registration = hosts.registration()
    assert registration is not None
    assert (registration.host, registration.lease) == ("a", running.id)
    assert {block: owner.host for block, owner in hosts.fleet.blocks()} == blocks


def restore(node: Node, backup: Path) -> None:
    options = [
        option
        for option in node.options
        if option.startswith(
            ("--name=", "--data-dir=", "--initial-advertise", "--initial-cluster=")
        )
    ]
    command = ["env", "ETCDCTL_API=3", "etcdctl", "snapshot", "restore", str(backup)]
    sh(" ".join([*command, *options]))


def test_vms_start_and_end_after_every_node_was_killed(hosts: Hosts) -> None:
    for node in hosts.etcd.nodes:
        node.kill()
    hosts.etcd.start()
    check_that_vms_start_and_end(hosts.a)
    check_that_the_store_is_right(hosts)


def test_nothing_of_the_host_is_in_the_answers_way(hosts: Hosts) -> None:
    """A name server that does not answer holds up an acquire no longer either."""
    hosts.a.settings = hosts.a.settings._replace(endpoints=("http://etcd.invalid:1",))
    hosts.a.configure()
    os.makedirs("/run/resolv")
    Path("/run/resolv/resolv.conf").write_text("nameserver 10.99.0.77\n")
    sh("mount --bind /run/resolv/resolv.conf /etc/resolv.conf")
    check_that_vms_start_and_end(hosts.a)
