# SPDX-License-Identifier: Apache-2.0
"""udev, NetworkManager and systemd-networkd beside Tapster's devices."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tapster import Host, Tap
from tests.host.inside.world import EVENT_SECONDS, links, sh

TAPS = int(os.environ.get("LAB_TAPS", "300"))


@pytest.mark.timeout(900)  # udev takes its time without KVM
@pytest.mark.usefixtures("bridge")
def test_udev_leaves_the_mac_of_new_taps_alone(ledger: Path) -> None:
    wanted = {}
    with Host(ledger) as host:
        for _ in range(TAPS):
            with host.acquire(Tap(bridge="br0", fin_wait=0)) as device:
                # The host's side has the guest's MAC, but for the first byte.
                wanted[device.name] = "fe" + device.mac[2:]
        sh(f"udevadm settle --timeout {10 * EVENT_SECONDS:g}")
        shown = links()
        wrong = [name for name, mac in wanted.items() if shown[name]["address"] != mac]
        for lease in host.leases():
            host.release(lease.id)
    assert not wrong, f"udev replaced the MAC of {len(wrong)} of {TAPS} taps"


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
    keys = ("ifindex", "address", "mtu", "master", "flags", "inet6_addr_gen_mode")
    return {key: link.get(key) for key in keys}


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
