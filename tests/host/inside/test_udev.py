# SPDX-License-Identifier: Apache-2.0
"""udev, NetworkManager and systemd-networkd beside Tapster's devices."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tapster
from tapster import AnyHost, Host, Tap
from tests.host.inside.world import EVENT_SECONDS, links, run, sh, wait_until

TAPS = int(os.environ.get("LAB_TAPS", "300"))
HANDS_OFF = (
    Path("/usr/lib/udev/rules.d/70-tapster.rules"),
    Path("/usr/lib/systemd/network/10-tapster.link"),
)


@pytest.fixture
def hands_on(tmp_path: Path) -> Iterator[None]:
    """udev as Debian configures it, without Tapster's files."""
    for file in HANDS_OFF:
        shutil.move(file, tmp_path)
    sh("udevadm control --reload")
    yield
    for file in HANDS_OFF:
        shutil.move(tmp_path / file.name, file)
    sh("udevadm control --reload")


def add_taps(host: AnyHost) -> dict[str, str]:
    """Make taps; return the MAC that each must have in the host."""
    macs = {}
    for _ in range(TAPS):
        with host.acquire(Tap(bridge="br0")) as device:
            # The host's side has the guest's MAC, but for the first byte.
            macs[device.name] = "fe" + device.mac[2:]
    return macs


def add_plain_taps() -> dict[str, str]:
    """Make taps as scripts do; return the MAC that the script gives to each."""
    macs = {f"p{n}": f"fe:00:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(TAPS)}
    for name, mac in macs.items():
        sh(f"ip tuntap add {name} mode tap")
        sh(f"ip link set {name} address {mac} master br0 up")
    return macs


def replaced(macs: Mapping[str, str]) -> list[str]:
    """Return the devices whose MAC is another once udev is at rest."""
    sh(f"udevadm settle --timeout {10 * EVENT_SECONDS:g}")
    shown = links()
    return [name for name, mac in macs.items() if shown[name]["address"] != mac]


@pytest.mark.timeout(900)  # udev takes its time without KVM
@pytest.mark.usefixtures("bridge")
def test_udev_leaves_the_mac_of_new_taps_alone(ledger: Path) -> None:
    with Host(ledger) as host:
        wrong = replaced(add_taps(host))
    assert not wrong, f"udev replaced the MAC of {len(wrong)} of {TAPS} taps"


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("bridge", "hands_on")
def test_the_reaper_restores_macs_that_udev_replaced_without_the_files(
    ledger: Path, record_property: Callable[[str, object], None]
) -> None:
    # Which taps lose the race differs from run to run; the reaper must find them all.
    plain = replaced(add_plain_taps())
    with Host(ledger) as host:
        macs = add_taps(host)
        wrong = replaced(macs)
        wait_until(lambda: replaced(macs) == [], "the reaper restores each MAC")
    record_property("replaced MACs of ip's taps", f"{len(plain)} of {TAPS}")
    record_property("MACs that the reaper had not restored yet", f"{len(wrong)}")
    problems = json.loads(run("tapster doctor --json").stdout)["problems"]
    assert "keep its hands off" in str(problems)


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("bridge", "hands_on")
def test_recover_restores_macs_that_udev_replaced_without_the_files(
    ledger: Path, record_property: Callable[[str, object], None]
) -> None:
    with Host(ledger, reaper=lambda _: None) as host:
        macs = add_taps(host)
        wrong = replaced(macs)
    record_property("replaced MACs of Tapster's taps", f"{len(wrong)} of {TAPS}")
    problems = json.loads(run("tapster doctor --json").stdout)["problems"]
    assert "keep its hands off" in str(problems)
    assert [name for name in wrong if name not in str(problems)] == []
    sh("tapster recover")
    assert replaced(macs) == []


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("service", "hands_on")
def test_the_daemon_restores_macs_at_once_that_udev_replaced_without_the_files() -> (
    None
):
    with tapster.connect() as client:
        macs = add_taps(client)
        wait_until(lambda: replaced(macs) == [], "the daemon restores each MAC")


@contextmanager
def running(unit: str) -> Iterator[None]:
    """A service of Debian's that the lab has switched off."""
    sh(f"systemctl start {unit}")
    try:
        yield
    finally:
        sh(f"systemctl stop {unit}")


def kept(link: dict[str, Any]) -> dict[str, Any]:
    """What of a device only Tapster should change."""
    # NetworkManager sets inet6_addr_gen_mode on every device when it stops.
    keys = ("ifindex", "address", "mtu", "master")
    # The kernel finds out a moment later that a new tap has no carrier.
    flags = {*link["flags"]} - {"NO-CARRIER", "LOWER_UP"}
    ipv6 = sh(f"sysctl -n net.ipv6.conf.{link['ifname']}.disable_ipv6")
    return {"flags": flags, "ipv6": ipv6, **{key: link.get(key) for key in keys}}


@pytest.mark.parametrize("unit", ["NetworkManager.service", "systemd-networkd.service"])
@pytest.mark.usefixtures("bridge", "ledger")
def test_other_managers_of_networks_leave_taps_alone(unit: str) -> None:
    before = sh("tapster add --bridge br0 --owner before").strip()
    sh("udevadm settle")
    first = kept(links()[before])
    with running(unit):
        beside = sh("tapster add --bridge br0 --owner beside").strip()
        sh("udevadm settle")
        second = kept(links()[beside])
        sh(f"systemctl restart {unit}")
        sh("udevadm settle")
        sh("tapster recover")
    shown = links()
    assert (kept(shown[before]), kept(shown[beside])) == (first, second)
    assert json.loads(sh("tapster doctor --json"))["problems"] == []
    # A change of carrier makes the kernel give an address to a device with IPv6.
    for name in (before, beside):
        sh(f"ip link set {name} down")
        sh(f"ip link set {name} up")
        assert "inet6" not in sh(f"ip -6 addr show dev {name}")
