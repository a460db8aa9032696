# SPDX-License-Identifier: Apache-2.0
"""What the daemon hears when another program takes rules or entries from a device."""

from collections.abc import Iterator
from select import select

import pytest

from lab.shell import sh
from tapster.kernel.mirred import PREFERENCE
from tapster.kernel.port import HERE, REDIRECTED
from tapster.kernel.rule_watch import EntryWatch, TcWatch
from tapster.ledger import FIRST_IFINDEX

pytestmark = pytest.mark.kernel

TAP = FIRST_IFINDEX + 5
ALL = "protocol all u32 match u32 0 0"
OURS = f"ingress pref {PREFERENCE} {ALL}"
"""A stand-in for a redirection, which some kernels lack. The watch does not look at
what a filter does."""


@pytest.fixture
def watch(world: None) -> Iterator[TcWatch]:
    """A watch on a veth of other programs, and on a device with an ifindex of ours."""
    sh("ip link add other type veth peer name far")
    sh(f"ip link add ours index {TAP} type veth peer name away")
    for device in ("other", "ours"):
        sh(f"tc qdisc add dev {device} clsact")
        sh(f"tc filter add dev {device} {OURS}")
        sh(f"tc filter add dev {device} ingress pref 7 {ALL}")
        sh(f"tc filter add dev {device} egress pref 7 {ALL}")
    watch = TcWatch(FIRST_IFINDEX, elsewhere=False)
    yield watch
    watch.close()


def heard(watch: TcWatch) -> set[int]:
    """Return the devices that were reported, as far as the kernel has reported."""
    found: set[int] = set()
    while select([watch.fileno()], [], [], 0)[0]:
        changes = watch.changes()
        assert changes is not None
        found |= changes.rules.get(HERE, set())
    return found


@pytest.mark.parametrize(
    ("change", "own", "foreign"),
    [
        ("qdisc del dev {} clsact", True, True),
        ("filter del dev {} ingress", True, True),
        (f"filter del dev {{}} ingress pref {PREFERENCE}", True, True),
        (f"filter replace dev {{}} {OURS}", True, True),
        ("filter del dev {} ingress pref 7", True, False),
        ("filter del dev {} egress", True, False),
        (f"filter add dev {{}} ingress pref 8 {ALL}", False, False),
        ("qdisc add dev {} root pfifo", False, False),
    ],
)
def test_what_may_concern_a_device_is_reported(
    watch: TcWatch, change: str, own: bool, foreign: bool
) -> None:
    sh(f"tc {change.format('ours')}")
    assert heard(watch) == ({TAP} if own else set())
    sh(f"tc {change.format('other')}")
    assert heard(watch) == ({REDIRECTED} if foreign else set())


def test_another_qdisc_of_another_device_is_not_reported(watch: TcWatch) -> None:
    sh("tc qdisc add dev other root pfifo")
    sh("tc qdisc del dev other root")
    assert heard(watch) == set()


def test_only_a_lost_sticky_entry_of_a_device_of_ours_is_reported(world: None) -> None:
    sh("ip link add other type veth peer name far")
    sh(f"ip link add ours index {TAP} type veth peer name away")
    watch = EntryWatch(FIRST_IFINDEX, elsewhere=False)
    lost = set()
    for device, kind in (
        ("other", "static sticky"),
        ("ours", "static"),
        ("ours", "static sticky"),
    ):
        sh(f"ip link set {device} master br0")
        sh(f"bridge fdb add 52:54:00:00:00:01 dev {device} master {kind}")
        sh(f"bridge fdb del 52:54:00:00:00:01 dev {device} master")
        if select([watch.fileno()], [], [], 0)[0]:
            changes = watch.changes()
            assert changes is not None
            assert changes.entries == {HERE: {TAP}}
            lost.add((device, kind))
    assert lost == {("ours", "static sticky")}
    watch.close()
