# SPDX-License-Identifier: Apache-2.0
"""I5 on Open vSwitch: killed at each system call, then recover; its rows included."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import iproute, shell
from lab.crashes import Crashes
from lab.openvswitch import OpenVswitch, rows, vsctl
from tapster import Lease, State
from tests.backends.ovs_vms import FULL

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("world"),
]

OPTIONS = ["--ovs", "ovs0", "--vlan", "5", "--external-id", "iface-id=nic-1"]
OPTIONS += ["--inbound", "1000", "--outbound", "1000"]


class OvsCrashes(Crashes):
    calls = {"sendto": 1, "pwrite64": 5}  # noqa: RUF012 - nobody changes it
    """Those of OVSDB and netlink, and of the ledger."""

    def check(self, where: str) -> None:
        """What carries a stamp belongs to a lease, and is as the lease wants."""
        leases = self.host.leases()
        active = [lease for lease in leases if lease.state is State.ACTIVE]
        assert devices() == {lease.id for lease in leases}, where
        for table in ("Port", "Interface"):
            assert stamped(table) == ids(active), (where, table)
        limited = [lease for lease in active if lease.wiring.inbound]
        for table in ("QoS", "Queue"):
            assert stamped(table) == ids(limited), (where, table)
        for lease in active:
            assert self.host.differences(lease) == {}, where


def ids(leases: list[Lease]) -> list[str]:
    return sorted(lease.id for lease in leases)


def stamped(table: str) -> list[str]:
    """The leases whose stamp rows of a table carry."""
    marks = [one["external_ids"].get("tapster", "") for one in rows(table)]
    return sorted(mark.split(":")[2] for mark in marks if mark)


def devices() -> set[str]:
    aliases = [link.get("ifalias", "") for link in iproute.links().values()]
    return {one.split(":")[2] for one in aliases if one.startswith("tapster:")}


@pytest.fixture
def crashes(ledger: Path, switch: OpenVswitch) -> Iterator[OvsCrashes]:
    shell.sh("ip tuntap add other mode tap")
    vsctl("add-port ovs0 other tag=9")
    crashes = OvsCrashes(ledger)
    yield crashes
    crashes.host.close()
    assert vsctl("list-ports ovs0") == "other"


def test_add_killed_anywhere_I5(crashes: OvsCrashes) -> None:
    for where in crashes.killed("add", *OPTIONS):
        crashes.repair(where)
        crashes.clear()
        crashes.check(where)
    crashes.clear()
    assert crashes.kills > 14


def test_rm_killed_anywhere_I5(crashes: OvsCrashes) -> None:
    name = crashes.acquire(FULL).name
    for where in crashes.killed("rm", name):
        crashes.repair(where)
        crashes.clear()
        assert crashes.acquire(FULL).name == name, where
    crashes.clear()
    assert crashes.kills > 5


def test_set_killed_anywhere_I5(crashes: OvsCrashes) -> None:
    """Between two switches: it is wholly on one of them."""
    name = crashes.acquire(FULL).name
    change = ["set", "--ovs", "ovs1", "--vlan", "8", "--outbound", "2000", name]
    for where in crashes.killed(*change):
        crashes.repair(where)
        crashes.clear()
        assert crashes.acquire(FULL).name == name, where
    crashes.clear()
    assert crashes.kills > 10
