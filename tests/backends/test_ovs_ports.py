# SPDX-License-Identifier: Apache-2.0
"""Ports of Open vSwitch, as a real one has them; ovs-vsctl judges."""

import re
from typing import Any

import pytest

from lab import iproute, shell
from lab.openvswitch import OpenVswitch, ports, row, rows, vsctl
from tapster import (
    Host,
    OpenDevice,
    RequestError,
)
from tapster.backends import ovs
from tapster.model import Rate
from tests.backends.ovs_vms import PLAIN, TAG, acquire, frame, received, send, stamp

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

IDS = (("iface-id", "nic-1"), ("vm-id", "vm-1"))


# Up


def test_a_tap_is_a_port_when_acquire_returns_I6(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host, PLAIN, external_ids=IDS)
    port, interface = row("Port", "vnet0"), row("Interface", "vnet0")
    assert ports("ovs0") == ["vnet0"]
    assert interface["ofport"] > 0
    assert interface["ifindex"] == lease.ifindex
    assert interface["external_ids"] == {
        "attached-mac": lease.mac,
        "iface-id": "nic-1",
        "vm-id": "vm-1",
        "tapster": stamp(),
    }
    assert port["external_ids"]["tapster"] == stamp()
    assert port["other_config"] == {"transient": "true"}
    link = iproute.links()["vnet0"]
    assert "UP" in link["flags"]
    assert link["address"] == f"fe{lease.mac[2:]}"


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({}, ([], [], [])),
        ({"vlan": 5}, (5, [], "access")),
        ({"trunks": (6,)}, ([], 6, "trunk")),
        ({"vlan": 5, "trunks": (6, 7)}, (5, [6, 7], "native-untagged")),
    ],
    ids=str,
)
def test_a_port_is_in_the_vlans_that_were_requested(
    host: Host, switch: OpenVswitch, wanted: Any, shown: Any
) -> None:
    acquire(host, PLAIN, **wanted)
    port = row("Port", "vnet0")
    assert (port["tag"], port["trunks"], port["vlan_mode"]) == shown


def test_the_mtu_is_the_bridges(host: Host, switch: OpenVswitch) -> None:
    vsctl("set Interface ovs0 mtu_request=1400")
    lease = acquire(host, PLAIN)
    assert lease.wiring.mtu == 1400
    assert iproute.links()["vnet0"]["mtu"] == 1400
    vsctl("set Interface ovs1 mtu_request=1300")
    host.set(lease.id, ovs="ovs1")
    assert iproute.links()["vnet0"]["mtu"] == 1300
    host.set(lease.id, ovs=None, bridge="br0")
    assert iproute.links()["vnet0"]["mtu"] == iproute.links()["br0"]["mtu"] == 1400


def test_frames_pass_from_vm_to_vm(
    pair: tuple[OpenDevice, OpenDevice],
) -> None:
    access, trunk = pair
    send(access, trunk)
    assert received(trunk) == frame(access, trunk, TAG)
    send(trunk, access, TAG)
    assert received(access) == frame(trunk, access)


# Rates


def test_a_port_has_the_rates_that_were_requested(
    host: Host, switch: OpenVswitch
) -> None:
    acquire(
        host,
        PLAIN,
        inbound=Rate(1000, peak=4000, burst=500),
        outbound=Rate(200, burst=100),
    )
    (qos,), (queue,) = rows("QoS"), rows("Queue")
    assert row("Port", "vnet0")["qos"] == qos["_uuid"]
    assert qos["type"] == "linux-htb"
    assert qos["queues"] == {0: queue["_uuid"]}
    assert qos["external_ids"] == queue["external_ids"] == {"tapster": stamp()}
    assert queue["other_config"] == {
        "min-rate": "8000000",
        "max-rate": "8000000",
        "burst": "4096000",
    }
    interface = row("Interface", "vnet0")
    assert interface["ingress_policing_rate"] == 1600
    assert interface["ingress_policing_burst"] == 820


def test_open_vswitch_holds_the_average_also_without_a_peak(
    host: Host, switch: OpenVswitch
) -> None:
    """A `min-rate` alone would let all of the device's 10 Gbit/s through."""
    acquire(host, PLAIN, inbound=Rate(1000))
    classes = shell.sh("tc class show dev vnet0").splitlines()
    assert len(classes) == 2
    assert all("rate 8Mbit ceil 8Mbit" in one for one in classes)


@pytest.mark.parametrize(
    ("rate", "limit", "burst"),
    [
        (Rate(4294967, burst=524287), "34359Mbit", "53686....b"),
        (Rate(10, burst=2617), "80Kbit", "2617Kb"),
    ],
)
def test_the_greatest_rates_reach_the_kernel_as_they_are(
    host: Host, switch: OpenVswitch, rate: Rate, limit: str, burst: str
) -> None:
    acquire(host, PLAIN, inbound=rate)
    shown = shell.sh("tc class show dev vnet0 classid 1:1")
    assert re.search(f" rate {limit} ceil {limit} burst {burst} ", shown)


@pytest.mark.parametrize("rate", [Rate(4294968), Rate(10, burst=2618)])
def test_a_rate_that_open_vswitch_cannot_count_is_refused(
    host: Host, switch: OpenVswitch, rate: Rate
) -> None:
    with pytest.raises(RequestError, match="at most"):
        acquire(host, PLAIN, inbound=rate)
    assert host.leases() == []


# Changed while the VM runs


def test_everything_can_change_while_the_vm_runs(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host, PLAIN, vlan=5, external_ids=IDS, inbound=Rate(1000))
    number = row("Interface", "vnet0")["ofport"]
    host.set(lease.id, vlan=None, trunks=(7,), external_ids=IDS[1:], inbound=Rate(2000))
    port, interface = row("Port", "vnet0"), row("Interface", "vnet0")
    assert (port["tag"], port["trunks"], port["vlan_mode"]) == ([], 7, "trunk")
    assert interface["ofport"] == number
    assert interface["external_ids"] == {
        "attached-mac": lease.mac,
        "vm-id": "vm-1",
        "tapster": stamp(),
    }
    assert [one["other_config"]["max-rate"] for one in rows("Queue")] == ["16000000"]
    host.set(lease.id, inbound=None)
    assert (rows("QoS"), rows("Queue")) == ([], [])
    host.set(lease.id, ovs="ovs1")
    assert (ports("ovs0"), ports("ovs1")) == ([], ["vnet0"])
    assert host.differences(host.find("vnet0")) == {}


def test_a_vm_moves_to_a_linux_bridge_and_back_without_its_rates(
    host: Host, switch: OpenVswitch
) -> None:
    """Open vSwitch by itself leaves its queueing on devices that it lets go."""
    plain = shell.sh("tc qdisc show dev br0")
    lease = acquire(host, PLAIN, inbound=Rate(1000), outbound=Rate(1000))
    assert "htb" in shell.sh("tc qdisc show dev vnet0")
    host.set(lease.id, ovs=None, bridge="br0", inbound=None, outbound=None)
    left = shell.sh("tc qdisc show dev vnet0")
    assert "htb" not in left
    assert "ingress" not in left
    assert plain == shell.sh("tc qdisc show dev br0")
    assert (ports("ovs0"), iproute.ports("br0")) == ([], {"vnet0"})
    assert (rows("QoS"), rows("Queue")) == ([], [])
    host.set(lease.id, ovs="ovs0", bridge=None)
    assert (ports("ovs0"), iproute.ports("br0")) == (["vnet0"], set())


# Down


def test_release_deletes_all_of_it_at_once_and_the_name_waits(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host, PLAIN, inbound=Rate(1000))
    before = {table: rows(table) for table in ("Port", "Interface")}
    other = acquire(host, PLAIN, inbound=Rate(2000))
    host.release(other.id)
    host.release(lease.id)
    assert ports("ovs0") == []
    left = {one["name"] for one in before["Interface"]} - {"vnet0"}
    assert {one["name"] for one in rows("Interface")} == left
    assert (rows("QoS"), rows("Queue")) == ([], [])
    assert "UP" not in iproute.links()["vnet0"]["flags"]
    assert host.reap(now=True) == 2


def test_a_port_whose_owner_has_changed_is_left_alone(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host, PLAIN)
    vsctl("set Port vnet0 external_ids:tapster=tapster:00000000:0000000000000000")
    host.release(lease.id)
    assert ports("ovs0") == ["vnet0"]


def test_an_owner_that_changes_while_we_delete_is_seen_in_time(
    host: Host, switch: OpenVswitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction that deletes checks the owner, whatever was read before."""
    lease = acquire(host, PLAIN, inbound=Rate(1000))
    remove = ovs.removal_of

    def hand_over(port: Any) -> Any:
        monkeypatch.undo()
        vsctl("set Port vnet0 external_ids:tapster=tapster:00000000:0000000000000000")
        return remove(port)

    monkeypatch.setattr(ovs, "removal_of", hand_over)
    host.release(lease.id)
    assert ports("ovs0") == ["vnet0"]
    (qos,), (queue,) = rows("QoS"), rows("Queue")
    assert row("Port", "vnet0")["qos"] == qos["_uuid"]
    assert qos["external_ids"] == queue["external_ids"] == {}
