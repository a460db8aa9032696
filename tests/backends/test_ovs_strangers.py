# SPDX-License-Identifier: Apache-2.0
"""Ports of Open vSwitch that others made, moved or edited."""

from typing import Any

import pytest

from lab import iproute, library, shell
from lab.openvswitch import OpenVswitch, ports, row, rows, vsctl
from tapster import Action, ConflictError, Host, NoSuchLink, RequestError, Tap
from tests.backends.ovs_vms import FULL, acquire, shown, stamp

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

# Of the same name

SQUATS = {
    "a libvirt that died": (
        "add-port ovs0 vnet0 -- set Interface vnet0 external_ids:vm-id=web1",
        "vm-id=web1",
    ),
    "somebody who says nothing": ("add-port ovs1 vnet0", "no owner"),
    "another ledger": (
        "add-port ovs0 vnet0 -- set Port vnet0 external_ids:tapster=tapster:0:1",
        "tapster=tapster:0:1",
    ),
    "a bond": ("add-bond ovs0 bond0 vnet0 vnet1", "no owner"),
}


@pytest.mark.parametrize(("squat", "owner"), SQUATS.values(), ids=SQUATS)
def test_a_strangers_port_is_untouched_and_its_owner_named_I4(
    host: Host, switch: OpenVswitch, squat: str, owner: str
) -> None:
    vsctl(squat)
    before = rows("Bridge"), rows("Port")
    with pytest.raises(ConflictError, match=owner):
        acquire(host)
    assert (rows("Bridge"), rows("Port")) == before
    assert host.leases() == []
    assert "vnet0" not in iproute.links()


def test_a_dead_port_of_ours_is_replaced(host: Host, switch: OpenVswitch) -> None:
    acquire(host)
    mark = f"external_ids:tapster={stamp()}"
    host.release(host.find("vnet0").id)
    host.reap(now=True)
    vsctl(
        f"add-port ovs1 vnet0 tag=9 -- set Port vnet0 qos=@qos {mark} "
        f"-- --id=@qos create QoS type=linux-htb queues:0=@queue {mark} "
        f"-- --id=@queue create Queue {mark}"
    )
    lease = acquire(host)
    assert (ports("ovs0"), ports("ovs1")) == (["vnet0"], [])
    assert host.differences(lease) == {}
    assert row("Port", "vnet0")["external_ids"]["tapster"].endswith(lease.id)
    assert len(rows("QoS")) == len(rows("Queue")) == 1


def test_a_strangers_port_beside_ours_never_changes_I3(
    host: Host, switch: OpenVswitch
) -> None:
    shell.sh("ip tuntap add other mode tap")
    vsctl(
        "add-port ovs0 other tag=9 -- set Port other qos=@qos "
        "-- --id=@qos create QoS type=linux-htb queues:0=@queue "
        "-- --id=@queue create Queue other_config:max-rate=8000000"
    )
    before = shown("other"), rows("QoS"), rows("Queue")
    lease = acquire(host)
    host.set(lease.id, vlan=8, inbound=None)
    vsctl("del-port vnet0")
    host.recover()
    host.release(lease.id)
    assert (shown("other"), rows("QoS"), rows("Queue")) == before


# Bridges


def test_a_missing_bridge_is_refused_before_anything_is_made(
    host: Host, switch: OpenVswitch
) -> None:
    with pytest.raises(NoSuchLink, match="ovs-vsctl add-br ovs9"):
        acquire(host, Tap(ovs="ovs9"))
    with pytest.raises(NoSuchLink, match="no bridge 'br0'"):
        acquire(host, Tap(ovs="br0"))  # that is Linux's
    assert host.leases() == []


def test_a_bridge_of_another_network_namespace_is_refused(
    host: Host, switch: OpenVswitch, tmp_path: Any
) -> None:
    """A port would take in whatever has the device's name over there."""
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add ovs0 type bridge")
    path = tmp_path / "blue.db"
    with (
        Host(path, netns="blue", reaper=library.no_reaper) as blue,
        pytest.raises(NoSuchLink, match="not in this network namespace"),
    ):
        acquire(blue)
    assert ports("ovs0") == []


def test_the_owners_key_is_not_for_users(host: Host, switch: OpenVswitch) -> None:
    with pytest.raises(RequestError, match="reserved for Tapster"):
        acquire(host, FULL._replace(external_ids=(("tapster", "x"),)))


# Edited by hand

EDITS = {
    "tag": "set Port vnet0 tag=9",
    "trunks": "set Port vnet0 trunks=6",
    "mode": "set Port vnet0 vlan_mode=trunk",
    "not transient": "clear Port vnet0 other_config",
    "no id": "remove Interface vnet0 external_ids iface-id",
    "another id": "set Interface vnet0 external_ids:iface-id=nic-2",
    "no owner in the Interface": "remove Interface vnet0 external_ids tapster",
    "policing": "set Interface vnet0 ingress_policing_rate=1",
    "no qos": "clear Port vnet0 qos",
    "another qos": "set Port vnet0 qos=@qos -- --id=@qos create QoS type=linux-noop",
    "another kind of qos": "set QoS {qos} type=linux-noop",
    "more queues": "set QoS {qos} queues:1=@queue -- --id=@queue create Queue dscp=1",
    "another rate": "set Queue {queue} other_config:max-rate=80000",
    "another interface": "add Port vnet0 interfaces @other "
    "-- --id=@other create Interface name=other",
    "protected": "set Port vnet0 protected=true",
    "an MTU": "set Interface vnet0 mtu_request=1500",
    "gone": "del-port vnet0",
    "moved": "remove Bridge ovs0 ports {port} -- add Bridge ovs1 ports {port}",
    "put elsewhere": "del-port vnet0 -- add-port ovs1 vnet0 tag=9",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_port_edited_by_hand_is_noticed_and_repaired(
    host: Host, switch: OpenVswitch, edit: str
) -> None:
    shell.sh("ip tuntap add other mode tap")
    lease = acquire(host)
    before = shown()
    assert host.differences(lease) == {}
    (qos,), (queue,) = rows("QoS"), rows("Queue")
    uuids = {"qos": qos["_uuid"], "queue": queue["_uuid"]}
    vsctl(edit.format(port=row("Port", "vnet0")["_uuid"], **uuids))
    assert set(host.differences(lease)) == {"ovs"}
    assert [one.action for one in host.recover()] == [Action.REWIRE]
    assert shown() | {"works": 1} == before
    assert host.differences(lease) == {}
    assert host.recover() == []


def test_a_port_made_by_hand_of_a_released_device_takes_in_no_other(
    host: Host, switch: OpenVswitch
) -> None:
    """Open vSwitch knows devices by name: it would take the next VM's."""
    lease = acquire(host)
    vsctl("del-port vnet0 -- add-port ovs1 vnet0")
    host.release(lease.id)
    host.reap(now=True)
    assert ports("ovs1") == []
    assert rows("QoS") == rows("Queue") == []


def test_a_port_that_a_stranger_claimed_stays_when_its_device_is_released(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host)
    vsctl(
        "del-port vnet0 -- add-port ovs1 vnet0 "
        "-- set Interface vnet0 external_ids:vm-id=web1"
    )
    host.release(lease.id)
    assert ports("ovs1") == ["vnet0"]


def test_a_port_that_takes_in_the_device_of_another_bridge_is_a_problem(
    host: Host, switch: OpenVswitch
) -> None:
    """As one that a host's former libvirt left: Open vSwitch knows names alone."""
    lease = acquire(host, Tap(bridge="br0"))
    acquire(host)
    assert [one for one in host.examine() if "Open vSwitch" in one.description] == []
    vsctl("add-port ovs1 vnet0")
    (problem,) = [one for one in host.examine() if "Open vSwitch" in one.description]
    assert "a port vnet0 on its bridge ovs1, which takes in" in problem.description
    assert lease.id in problem.description
    shell.sh(problem.remedy)
    assert ports("ovs1") == []


def test_external_ids_of_others_on_our_port_stay(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host)
    vsctl("set Interface vnet0 external_ids:ovn-installed=true")
    vsctl("set Port vnet0 other_config:priority-tags=always")
    assert host.recover() == []
    host.set(lease.id, vlan=8)
    assert row("Interface", "vnet0")["external_ids"]["ovn-installed"] == "true"
    assert row("Port", "vnet0")["other_config"] == {
        "transient": "true",
        "priority-tags": "always",
    }


def test_a_port_claimed_by_hand_is_not_taken_back(
    host: Host, switch: OpenVswitch
) -> None:
    acquire(host)
    vsctl(
        "del-port vnet0 -- add-port ovs1 vnet0 "
        "-- set Interface vnet0 external_ids:vm-id=web1"
    )
    with pytest.raises(ConflictError, match="vm-id=web1"):
        host.recover()
    assert ports("ovs1") == ["vnet0"]


def test_rates_that_another_owner_shares_stay(host: Host, switch: OpenVswitch) -> None:
    lease = acquire(host)
    (qos,) = rows("QoS")
    vsctl(f"set Port ovs0 qos={qos['_uuid']}")
    host.release(lease.id)
    assert host.reap(now=True) == 1
    assert row("Port", "ovs0")["qos"] == qos["_uuid"]
    assert [one["external_ids"] for one in [*rows("QoS"), *rows("Queue")]] == [{}, {}]


def test_a_port_that_a_lease_does_not_want_goes(
    host: Host, switch: OpenVswitch
) -> None:
    """As when an old copy of the database was brought back."""
    lease = acquire(host, Tap(bridge="br0"))
    shell.sh("ip tuntap add other mode tap")
    vsctl(f"add-port ovs0 other -- set Port other external_ids:tapster={stamp()}")
    assert [repair.lease.id for repair in host.recover(dry_run=True)] == [lease.id]
    host.recover()
    assert ports("ovs0") == []
    assert iproute.ports("br0") == {"vnet0"}
    assert host.recover() == []


def test_recover_removes_leftovers_of_its_own_ledger_alone(
    host: Host, switch: OpenVswitch
) -> None:
    ours = acquire(host, Tap(bridge="br0"))
    mark = f"external_ids:tapster={stamp().replace(ours.id, '0' * 16)}"
    for name in ("lost", "other", "nobodys"):
        shell.sh(f"ip tuntap add {name} mode tap")
        vsctl(f"add-port ovs0 {name}")
    vsctl(f"set Port lost {mark} -- --id=@queue create Queue {mark}")
    vsctl("set Port other external_ids:tapster=tapster:0:1")
    host.recover()
    assert ports("ovs0") == ["nobodys", "other"]
    assert rows("Queue") == []
