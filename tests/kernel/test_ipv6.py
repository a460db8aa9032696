# SPDX-License-Identifier: Apache-2.0
"""IPv6 of the host stays off, whatever another program does to the address mode."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import iproute, library, shell
from tapster import Host, KernelError, Macvtap, Tap
from tapster.kernel import ipv6
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.port import LinkChange

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


def setting(name: str, netns: str = "") -> str:
    """Return a device's disable_ipv6, read by sysctl(8)."""
    where = f"ip netns exec {netns} " if netns else ""
    return shell.sh(f"{where}sysctl -n net.ipv6.conf.{name}.disable_ipv6").strip()


@pytest.fixture
def low(world: None) -> None:
    """A device for a macvtap to sit on."""
    shell.sh("ip link add low up type veth peer name far")


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize(
    ("spec", "disabled"),
    [
        (Tap(bridge="br0"), "1"),
        (Tap(bridge="br0", standby=True), "1"),
        (Macvtap(lower="low"), "1"),
        (Tap(), "0"),  # the host routes for this one
    ],
)
def test_ipv6_is_off_on_each_device_that_leads_past_the_host(
    host: Host, spec: Tap | Macvtap, disabled: str
) -> None:
    with host.acquire(spec) as device:
        assert setting(device.name) == disabled


def test_no_address_comes_after_a_manager_of_networks_ended(host: Host) -> None:
    """NetworkManager does this to devices that it does not manage, when it stops."""
    with host.acquire(Tap(bridge="br0")) as device:
        shell.sh(f"ip link set {device.name} addrgenmode eui64")
        assert host.differences(device.id) == {}
        shell.sh(f"ip link set {device.name} down")
        shell.sh(f"ip link set {device.name} up")
        assert "LOWER_UP" in iproute.links()[device.name]["flags"]
        assert "inet6" not in shell.sh(f"ip -6 addr show dev {device.name}")
        # Without the setting the kernel makes an address at once.
        shell.sh(f"sysctl -qw net.ipv6.conf.{device.name}.disable_ipv6=0")
        assert "inet6 fe80:" in shell.sh(f"ip -6 addr show dev {device.name}")
        (difference,) = host.differences(device.id).values()
        assert difference == "IPv6 of the host is on, not off"
        host.recover()
        assert "inet6" not in shell.sh(f"ip -6 addr show dev {device.name}")
        assert setting(device.name) == "1"


def test_a_device_gets_ipv6_back_when_it_leaves_its_bridge(host: Host) -> None:
    with host.acquire(Tap(bridge="br0")) as device:
        host.set(device.id, bridge=None)
        assert setting(device.name) == "0"
        host.set(device.id, bridge="br0")
        assert setting(device.name) == "1"
        shell.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
        host.set(device.id, bridge=None)
        assert setting(device.name) == "1", "this host wants no IPv6 on new devices"


def test_ipv6_stays_off_when_a_larger_mtu_brings_it_back(host: Host) -> None:
    with host.acquire(Tap(bridge="br0", mtu=576)) as device:
        assert not Path(ipv6.CONF, device.name).exists()
        host.set(device.id, mtu=1500)
        assert setting(device.name) == "1"


def test_the_setting_is_that_of_the_devices_own_namespace(
    world: None, ledger: Path
) -> None:
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add br0 up type bridge")
    shell.sh("ip tuntap add vnet0 mode tap")
    with (
        Host(ledger, netns="blue", reaper=library.no_reaper) as blue,
        blue.acquire(Tap(bridge="br0")) as device,
    ):
        assert device.name == "vnet0"
        assert setting("vnet0", "blue") == "1"
        assert setting("vnet0") == "0"


@pytest.fixture
def pair(world: None) -> None:
    """Two taps: `ours`, and `theirs` of another program."""
    for name in ("ours", "theirs"):
        shell.sh(f"ip tuntap add {name} mode tap")


def name_of(ifindex: int, before_second: Callable[[], None]) -> Callable[[], str]:
    """Return a function that returns a device's name.

    `before_second` is called at the second call, when the file is open.
    """
    events = iter([lambda: None, before_second])

    def name() -> str:
        next(events, lambda: None)()
        return next(
            name for name, link in iproute.links().items() if link["ifindex"] == ifindex
        )

    return name


@pytest.mark.usefixtures("pair")
def test_a_foreign_device_that_takes_the_name_before_the_write_keeps_its_ipv6() -> None:
    ours = iproute.links()["ours"]["ifindex"]

    def swap() -> None:
        shell.sh("ip link set ours name renamed")
        shell.sh("ip link set theirs name ours")

    ipv6.set_disabled(name_of(ours, swap), disabled=True)
    assert (setting("renamed"), setting("ours")) == ("1", "0")


@pytest.mark.usefixtures("pair")
def test_a_device_that_takes_the_name_after_the_look_keeps_its_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = iproute.links()["ours"]["ifindex"]
    write = os.write

    def late(fd: int, data: bytes) -> int:
        monkeypatch.undo()
        shell.sh("ip link set ours name renamed")
        shell.sh("ip link set theirs name ours")
        return write(fd, data)

    monkeypatch.setattr(os, "write", late)
    ipv6.set_disabled(name_of(ours, lambda: None), disabled=True)
    assert (setting("renamed"), setting("ours")) == ("1", "0")


def test_where_proc_sys_cannot_be_written_the_address_mode_alone_keeps_ipv6_off(
    host: Host,
) -> None:
    """As in a container. The tests have a mount namespace of their own."""
    subprocess.run(["mount", "--bind", "/proc/sys", "/proc/sys"], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", "/proc/sys"], check=True)
        with host.acquire(Tap(bridge="br0")) as device:
            assert setting(device.name) == "0"
            assert iproute.links()[device.name]["inet6_addr_gen_mode"] == "none"
            assert host.differences(device.id) == {}
    finally:
        subprocess.run(["umount", "/proc/sys"], check=True)


def test_a_device_that_is_gone_is_an_error_that_names_it() -> None:
    namespace = LinuxSystem().netns(None)
    try:
        with pytest.raises(KernelError, match="device 77: No such device"):
            namespace.set_links([LinkChange(77, disable_ipv6=True)])
    finally:
        namespace.close()
