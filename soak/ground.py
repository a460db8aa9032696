# SPDX-License-Identifier: Apache-2.0
"""The ground of a storm: namespaces with bridges, lower devices, foreign objects."""

import json
import subprocess
from pathlib import Path
from typing import Any

from soak.marks import DEVICE
from soak.part import LEDGERS, NAMESPACES, RUN, ledger_path
from tapster import Host

# An MTU that was set by hand stays when ports come and go, and so does a MAC. A bridge
# is up from the first: a VM may join it at once.
BRIDGES = {
    "br0": (
        "link add br0 up address 02:00:00:00:00:01 type bridge",
        "link set br0 mtu 1400",
    ),
    "br1": (
        "link add br1 up address 02:00:00:00:00:02 type bridge",
        "link set br1 mtu 1450",
    ),
}
"""The bridges, and how each is made."""
AWAY = "away"
"""A namespace into which administrators move devices."""
LOWER = {"low0": "far0", "low1": "far1"}
"""Lower devices for macvtaps, and what is at the other end of their cables."""
PASSTHRU = "low1"
"""A lower device for VMs in mode passthru, which excludes all other macvtaps."""

_BUILD = (
    f"link add {DEVICE} type bridge",
    f"link set {DEVICE} up",
    "link set lo up",
    *(command for commands in BRIDGES.values() for command in commands),
    *(
        command
        for low, far in LOWER.items()
        for command in (
            f"link add {low} type veth peer name {far}",
            f"link set {low} up",
            f"link set {far} up",
        )
    ),
    # Foreign devices that have names of our templates, during the whole storm.
    "tuntap add vnet3 mode tap",
    "link set vnet3 master br0 up",
    "link add vm2-t type bridge",
    "link set vm2-t up",
)


def found() -> None:
    """Make the namespaces, empty, the directories and the ledgers."""
    for netns in NAMESPACES:
        Path(RUN, "sys", netns).mkdir(parents=True)
    for ledger in LEDGERS:
        Path(ledger_path(ledger)).parent.mkdir(mode=0o700)
        Host(ledger_path(ledger)).close()  # a reader with SQL finds its tables
    _run("ip", "netns", "add", AWAY)
    for netns in NAMESPACES:
        _run("ip", "netns", "add", netns)
        # A sysfs shows the namespace of the process that mounted it.
        mount = ["mount", "-t", "sysfs", netns, f"{RUN}/sys/{netns}"]
        _run("nsenter", f"--net=/run/netns/{netns}", *mount)


def build() -> None:
    """Make what belongs in them."""
    for netns in NAMESPACES:
        for command in _BUILD:
            _run("ip", "-n", netns, *command.split())


def links(netns: str) -> list[dict[str, Any]]:
    """Return all devices there, as `ip` shows them."""
    shown = _run("ip", "-n", netns, "-d", "-j", "link")
    found: list[dict[str, Any]] = json.loads(shown)
    return found


def ip(netns: str, *arguments: str) -> bool:
    """Run `ip` there; whether it succeeded."""
    command = ["ip", "-n", netns, *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


def bridge_of(netns: str, ifindex: int) -> str | None:
    """Return the bridge that a device is a port of, as `bridge` shows it."""
    ports = json.loads(_run("bridge", "-n", netns, "-j", "link"))
    return next((p.get("master") for p in ports if p["ifindex"] == ifindex), None)


def _run(*command: str) -> str:
    while True:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if "Dump was interrupted" not in done.stderr:  # else something may be missing
            return done.stdout
