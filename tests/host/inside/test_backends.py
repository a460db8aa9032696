# SPDX-License-Identifier: Apache-2.0
"""Backends on a kernel that has all of them: VLANs, Open vSwitch, tc, vhost."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapster import Host, Tap
from tests.host.inside.world import links, sh, wait_until


@pytest.fixture
def switch() -> Iterator[str]:
    """A bridge of Open vSwitch on the kernel's own datapath."""
    sh("systemctl start openvswitch-switch.service")
    sh("ovs-vsctl add-br ovs0")
    yield "ovs0"
    sh("ovs-vsctl del-br ovs0")
    sh("systemctl stop openvswitch-switch.service")


@pytest.mark.usefixtures("bridge", "ledger")
def test_vlans_of_a_bridge_port_as_bridge_shows_them() -> None:
    def vlans(name: str) -> list[tuple[int, tuple[str, ...]]]:
        (port,) = json.loads(sh(f"bridge -j vlan show dev {name}"))
        return [(vlan["vlan"], tuple(vlan.get("flags", ()))) for vlan in port["vlans"]]

    native = ("PVID", "Egress Untagged")
    access = sh("tapster add --bridge br0 --vlan 10").strip()
    trunk = sh("tapster add --bridge br0 --trunk 20 --trunk 30 --vlan 5").strip()
    assert vlans(access) == [(10, native)]
    assert vlans(trunk) == [(5, native), (20, ()), (30, ())]
    sh(f"tapster set {access} --vlan 11")
    assert vlans(access) == [(11, native)]


@pytest.mark.usefixtures("ledger")
def test_the_kernels_datapath_of_open_vswitch_has_the_port(switch: str) -> None:
    name = sh(f"tapster add --ovs {switch} --vlan 10 --fin-wait 1").strip()
    (row,) = json.loads(sh(f"ovs-vsctl -f json find Port name={name}"))["data"]
    assert row
    assert sh(f"ovs-vsctl get Port {name} tag").strip() == "10"
    datapath = sh("ovs-dpctl show")
    assert datapath.startswith("system@")
    assert f": {name}\n" in datapath
    assert links()[name]["master"] == "ovs-system"
    sh(f"tapster rm {name}")
    assert f": {name}\n" not in sh("ovs-dpctl show")
    wait_until(lambda: name not in links(), f"{name} is reaped")


@pytest.mark.usefixtures("bridge", "ledger")
def test_rates_stand_beside_police_and_mirred_of_others() -> None:
    name = sh(
        "tapster add --bridge br0 --inbound 1000:2000:512 --outbound 1000"
    ).strip()
    if "clsact" not in sh(f"tc qdisc show dev {name}"):
        sh(f"tc qdisc add dev {name} clsact")
    limit = "action police rate 1mbit burst 10k"
    sh(f"tc filter add dev {name} ingress protocol ip matchall {limit}")
    mirror = "action mirred egress mirror dev br0"
    sh(f"tc filter add dev {name} egress protocol ip matchall {mirror}")

    def filters_of_others() -> list[object]:
        shown = [
            json.loads(sh(f"tc -j filter show dev {name} {way}"))
            for way in ("ingress", "egress")
        ]
        return [[each for each in way if each["kind"] == "matchall"] for way in shown]

    before = filters_of_others()
    assert all(before)
    sh(f"tapster set {name} --inbound 2000")
    sh("tapster recover")
    assert filters_of_others() == before
    kinds = [qdisc["kind"] for qdisc in json.loads(sh(f"tc -j qdisc show dev {name}"))]
    assert (kinds[0], kinds[-1]) == ("htb", "clsact")


@pytest.mark.usefixtures("bridge")
def test_the_library_opens_one_vhost_descriptor_a_queue(ledger: Path) -> None:
    with Host(ledger) as host:
        with host.acquire(Tap(bridge="br0", queues=2), vhost=True) as device:
            nodes = [os.readlink(f"/proc/self/fd/{fd}") for fd in device.vhost_fds]
        host.release(device.id)
    assert nodes == ["/dev/vhost-net"] * 2
