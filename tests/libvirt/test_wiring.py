# SPDX-License-Identifier: Apache-2.0
"""What a domain's device is connected to still holds when libvirt has opened it."""

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab import guests, iproute, library, libvirt, shell
from lab.frames import ARP, BROADCAST, arp, ether
from lab.guests import Guest, GuestBridge
from lab.libvirt import adopted, domain, virsh
from lab.openvswitch import OpenVswitch, row, vsctl
from lab.strangers import IFF_MULTI_QUEUE, foreign_tap
from tapster import Host, Tap
from tests.libvirt.system import Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]

IFF_VNET_HDR = 0x4000
TUNGETVNETHDRSZ = 0x800454D7
MULTI_QUEUE = "<driver queues='2'/>"
MAC = "52:54:00:00:02:01"
IP = "192.0.2.77"


@pytest.fixture(scope="module")
def host() -> Iterator[Place]:
    with place(daemon=False) as made:
        yield made


@pytest.fixture(scope="module")
def peers(
    host: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuestBridge]:
    """Two VMs on br0 that are not libvirt's."""
    with guests.lab(tmp_path_factory.mktemp("peers") / "ledger.db") as lab:
        yield lab


class InTheGuest(Guest):
    """Frames as if the guest of a domain sent them: through a queue of our own.

    The guest itself runs no operating system, and QEMU opens only as many queues as it
    was told.
    """

    def send(self, frame: bytes, request: bytes = b"") -> None:
        size = fcntl.ioctl(self.fd, TUNGETVNETHDRSZ, b"\0\0\0\0")
        os.write(self.fd, bytes(*struct.unpack("i", size)) + frame)


@contextmanager
def in_the_guest(device: str, mac: str) -> Iterator[InTheGuest]:
    fd = foreign_tap(device, flags=IFF_MULTI_QUEUE | IFF_VNET_HDR)
    try:
        yield InTheGuest(fd, mac)
    finally:
        os.close(fd)


def start(host: Place, name: str, nic: str) -> None:
    """Start a domain with a device of two queues."""
    more = f"<mac address='{MAC}'/>{MULTI_QUEUE}"
    host.libvirt.define(adopted(name, f"dev='{name}0' {nic}", more=more))
    virsh(f"start --paused {name}")


def frame(mac: str, number: int = 0) -> bytes:
    return ether(mac, BROADCAST, 0x88B5, number.to_bytes(1000, "big"))


def request(mac: str, ip: str) -> bytes:
    return ether(mac, BROADCAST, ARP, arp(mac, ip, "192.0.2.1"))


def root(device: str) -> dict[str, Any]:
    found = json.loads(shell.sh(f"tc -s -j qdisc show dev {device}"))
    return next((one for one in found if one.get("root")), {})


def queues(device: str) -> int:
    """Return how many descriptors are attached; a guest's driver uses some of them."""
    data = iproute.links()[device]["linkinfo"]["info_data"]
    return int(data["numqueues"] + data.get("numdisabled", 0))


def test_a_filter_judges_what_the_guest_sends(host: Place, peers: GuestBridge) -> None:
    start(host, "filtered", f"bridge='br0' filter='yes' address='{IP}'")
    with in_the_guest("filtered0", MAC) as guest:
        assert peers.passes(guest, request(MAC, IP))
        assert not peers.passes(guest, request(MAC, "192.0.2.78"))
        assert not peers.passes(guest, frame("52:54:00:00:02:99"))
    virsh("destroy filtered")


def test_rates_hold_in_both_directions(host: Place, peers: GuestBridge) -> None:
    """libvirt replaces the root qdisc after the hook has made the device."""
    start(host, "slow", "bridge='br0' inbound='1' outbound='1'")
    assert root("slow0")["kind"] == "htb"
    for number in range(100):
        peers.peer.send(frame(peers.peer.mac, number))
    assert root("slow0")["qlen"] > 90, "held back"
    with in_the_guest("slow0", MAC) as guest:
        sent = [frame(MAC, number) for number in range(100)]
        # The burst is as much as the largest frame has.
        assert 65 <= len(peers.arrive(guest, sent, peers.peer)) < 80
    virsh("destroy slow")


def test_queues_mtu_and_isolation_are_as_the_domain_says(host: Place) -> None:
    start(host, "shape", "bridge='br0' mtu='1300' isolated='yes'")
    link = iproute.links()["shape0"]
    assert link["mtu"] == 1300
    assert link["linkinfo"]["info_slave_data"]["isolated"]
    assert queues("shape0") == 2
    virsh("destroy shape")


def test_a_second_domain_cannot_join_a_device_of_several_queues(host: Place) -> None:
    """The kernel alone would let it, without a word."""
    start(host, "first", "bridge='br0'")
    nic = "dev='first0' bridge='br0'"
    host.libvirt.define(adopted("second", nic, more=MULTI_QUEUE))
    assert "belongs to domain 'first'" in libvirt.refused("start second")
    assert queues("first0") == 2
    virsh("destroy first")


def test_a_port_of_open_vswitch_is_in_its_vlan(host: Place) -> None:
    switch = OpenVswitch()
    vsctl("add-br ovs0 -- set Bridge ovs0 datapath_type=netdev")
    shell.sh("ip link set ovs0 up")
    interface = (
        f"<interface type='bridge'><mac address='{MAC}'/><source bridge='ovs0'/>"
        "<virtualport type='openvswitch'/><vlan><tag id='7'/></vlan>"
        f"<model type='virtio'/>{MULTI_QUEUE}<rom enabled='no'/></interface>"
    )
    host.libvirt.define(domain("switched", interface))
    host.tapster("libvirt adopt switched")
    virsh("start --paused switched")
    (name,) = [name for name in host.leases() if name.startswith("tv")]
    assert row("Port", name)["tag"] == 7
    ids = row("Interface", name)["external_ids"]
    assert ids["vm-id"] == libvirt.uuid_of("switched")
    assert ids["attached-mac"] == MAC
    assert len(ids["iface-id"]) == 36, "libvirt's own"
    with Host(host.ledger, reaper=library.no_reaper) as other:
        same, apart = other.acquire_all(
            [Tap(ovs="ovs0", vlan=7), Tap(ovs="ovs0", vlan=8)]
        )
        with same, apart, in_the_guest(name, MAC) as guest:
            guest.send(frame(MAC))
            here, there = Guest(same.fds[0], same.mac), Guest(apart.fds[0], apart.mac)
            assert here.receive(MAC) == frame(MAC)
            # A frame of its own VLAN comes next, so none of the other's has come.
            other_mac = "52:54:00:00:02:08"
            with other.acquire(Tap(ovs="ovs0", vlan=8)) as third:
                Guest(third.fds[0], other_mac).send(frame(other_mac))
                received = there.receive()
                while received[6:12] != frame(other_mac)[6:12]:
                    assert received[6:12] != frame(MAC)[6:12]
                    received = there.receive()
    virsh("destroy switched")
    assert name not in vsctl("list-ports ovs0").split()
    virsh("start --paused switched")
    assert row("Port", name)["tag"] == 7
    virsh("destroy switched")
    switch.end()
