# SPDX-License-Identifier: Apache-2.0
"""Macvtaps get the same care as taps."""

import os
import socket
from pathlib import Path

import pytest

import tapster
from lab import iproute, library, shell
from lab.guests import next_frame
from tapster import Host, Macvtap, Mode, RequestError

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture(autouse=True)
def low(world: None) -> None:
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    shell.sh("ip link set far up")


@pytest.mark.parametrize("mode", [*Mode])
def test_a_macvtap_has_the_mode_that_was_requested(host: Host, mode: Mode) -> None:
    lease = host.acquire(Macvtap(lower="low", mode=mode))
    link = iproute.links()["vnet0"]
    assert link["ifindex"] == lease.ifindex
    assert link["link"] == "low"
    assert link["linkinfo"]["info_kind"] == "macvtap"
    assert link["linkinfo"]["info_data"]["mode"] == mode
    assert link["address"] == lease.mac, "the guest's own: there is no host's side"
    assert link["ifalias"].endswith(lease.id)
    assert link["inet6_addr_gen_mode"] == "none"
    assert "UP" in link["flags"]
    lease.close()


@pytest.mark.parametrize("spec", [tapster.Tap(), Macvtap(lower="low")])
def test_no_macvtap_sits_on_a_vms_device(host: Host, spec: tapster.Spec) -> None:
    """It would end with that VM's device."""
    below = library.acquire(host, spec)
    with pytest.raises(RequestError, match=r"'vnet0' belongs to a VM"):
        host.acquire(Macvtap(lower=below.name))
    assert [lease.name for lease in host.leases()] == ["vnet0"]


def test_the_descriptors_carry_its_packets(host: Host) -> None:
    lease = host.acquire(Macvtap(lower="low", queues=2, vnet_hdr=False))
    assert len(lease.fds) == 2
    frame = (
        bytes.fromhex(lease.mac.replace(":", ""))
        + b"\x02" * 6
        + b"\x88\xb5"
        + b"x" * 50
    )
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far:
        far.bind(("far", 0))
        far.send(frame)
    assert next_frame(lease.fds, lambda data: data[:64] == frame)
    lease.close()


def test_equal_ifindexes_in_two_namespaces_are_two_devices(
    ledger: Path, tmp_path: Path
) -> None:
    """/dev/tapN is not namespaced: it belongs to the first device with that ifindex."""
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add low type veth peer name far")
    shell.sh("ip -n blue link set low up")
    shell.sh("ip -n blue link set far up")
    with (
        Host(ledger, reaper=library.no_reaper) as here,
        Host(ledger, netns="blue", reaper=library.no_reaper) as blue,
    ):
        first = here.acquire(Macvtap(lower="low", vnet_hdr=False))
        shell.sh(
            f"ip -n blue link add link low index {first.ifindex + 1} name squat "
            "type macvtap"
        )
        second = blue.acquire(Macvtap(lower="low", vnet_hdr=False))
        third = here.acquire(Macvtap(lower="low", vnet_hdr=False))
        assert len({first.ifindex, second.ifindex, third.ifindex}) == 3
        for lease, where in ((second, "blue"), (third, None)):
            link = iproute.links(where)[lease.name]
            assert link["ifindex"] == lease.ifindex
        os.write(second.fds[0], b"\xff" * 12 + b"\x88\xb5" + b"x" * 50)
        sent = shell.sh("ip -n blue -s -j link show dev far")
        assert '"rx":{"bytes":0' not in sent.replace(" ", "")
        library.close_all(first, second, third)


def test_passthru_does_not_change_its_lower_device(host: Host) -> None:
    with pytest.raises(tapster.RequestError, match="passthru"):
        host.acquire(Macvtap(lower="low", mode=Mode.PASSTHRU, mac="52:54:00:00:00:01"))
    assert host.leases() == []


def test_a_released_macvtap_frees_its_mac(host: Host) -> None:
    mac = "52:54:00:00:00:07"
    for name in ("vnet0", "vnet1"):
        lease = host.acquire(Macvtap(lower="low", mac=mac))
        assert lease.name == name
        lease.close()
        host.release(lease.id)


def test_a_lower_device_by_its_altname_is_recorded_by_its_name(host: Host) -> None:
    shell.sh("ip link property add dev low altname uplink")
    with host.acquire(Macvtap(lower="uplink")) as opened:
        assert opened.lease.lower == "low"
        assert host.differences(opened.lease) == {}


def test_a_bridge_port_carries_no_macvtap(host: Host) -> None:
    shell.sh("ip link set low master br0")
    with pytest.raises(tapster.NoSuchLink, match="put the macvtap on 'br0'"):
        host.acquire(Macvtap(lower="low"))
    assert host.leases() == []


def test_a_mac_in_use_on_the_lower_device_undoes_the_acquire(host: Host) -> None:
    mac = "52:54:00:00:00:07"
    shell.sh(f"ip link add link low name foreign address {mac} type macvtap")
    shell.sh("ip link set foreign up")
    with pytest.raises(tapster.KernelError, match="in use"):
        host.acquire(Macvtap(lower="low", mac=mac))
    assert host.leases() == []
    assert "vnet0" not in iproute.links()


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (Macvtap(lower="nix"), "no device 'nix'"),
        (Macvtap(lower="idle"), "'idle' is down"),
        (Macvtap(lower="lo"), "'lo' is not an Ethernet device"),
        (
            Macvtap(lower="low", mtu=9000),
            "exceeds the mtu of the lower device .low., 1500",
        ),
    ],
)
def test_an_unfit_lower_device_is_refused_before_anything_is_made(
    host: Host, spec: Macvtap, error: str
) -> None:
    shell.sh("ip link add idle type veth peer name idle2")
    with pytest.raises(tapster.RequestError, match=error):
        host.acquire(spec)
    assert host.leases() == []


def test_the_lower_device_may_be_in_another_namespace(ledger: Path) -> None:
    shell.sh("ip netns add pod")
    options = ["--netns", "pod", "--link", "low", "--link-netns", "/proc/self/ns/net"]
    command = f"{shell.TAPSTER} --ledger {ledger} add --name eth0 {' '.join(options)}"
    assert shell.sh(command) == "eth0\n"
    link = iproute.links("pod")["eth0"]
    assert link["linkinfo"]["info_kind"] == "macvtap"
    assert link["link_index"] == iproute.links()["low"]["ifindex"]
    with Host(ledger, reaper=library.no_reaper) as host:
        (lease,) = host.leases()
        assert host.differences(lease) == {}
        with host.reopen(lease) as opened:
            assert len(opened.fds) == 1
        host.release(lease)
        host.reap(now=True)
    assert iproute.links("pod").keys() == {"lo"}
    wrong = shell.refused(f"{command} --link-netns absent --name eth1")
    assert "no network namespace 'absent'" in wrong
