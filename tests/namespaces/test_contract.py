# SPDX-License-Identifier: Apache-2.0
"""Leases in other namespaces, on the fake kernel and on the real one."""

from pathlib import Path

import pytest

from lab.fake_and_real import ContractLab
from lab.library import acquire, no_reaper
from tapster import Action, Host, Tap


@pytest.fixture
def host(lab_host: Host) -> Host:
    return lab_host


def test_one_ledger_serves_every_namespace_I1(
    lab: ContractLab, host: Host, ledger: Path
) -> None:
    lab.add_netns("blue")
    lab.others("blue").add_bridge("br0")
    with Host(ledger, netns="blue", system=lab.system, reaper=no_reaper) as there:
        theirs = acquire(there, Tap(bridge="br0"))
        assert there.find("vnet0").id == theirs.id
    ours = acquire(host, Tap(bridge="br0"))
    assert theirs.name == ours.name == "vnet0"
    assert host.find("vnet0").id == ours.id
    host.release(theirs.id)
    assert lab.show("blue")["vnet0"].master == ""
    assert lab.show()["vnet0"].master == "br0", "ours is untouched"
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show("blue")
    assert "vnet0" in lab.show()


def test_leases_of_a_deleted_namespace_are_closed(
    lab: ContractLab, host: Host, ledger: Path
) -> None:
    lab.add_netns("blue")
    with Host(ledger, netns="blue", system=lab.system, reaper=no_reaper) as there:
        lease = acquire(there, Tap())
    lab.delete_netns("blue")
    (repairs,) = host.recover()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.CLOSE)
    assert host.leases() == []
    (entry,) = host.who(lease.name)
    assert (entry.lease, entry.netns) == (lease.id, "/run/netns/blue")
    assert host.recover() == []
