# SPDX-License-Identifier: Apache-2.0
"""What the hosts have in common: a bridge at every boot, and what their tools show."""

import json
from typing import Any

from lab.host.debian import DebianHost

BRIDGE = """
ip link add br0 address 02:00:00:00:00:01 type bridge
ip link set br0 up
"""
UNIT = """\
[Unit]
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /srv/bridge
[Install]
WantedBy=multi-user.target
"""


def enable(host: DebianHost, unit: str, text: str) -> None:
    """Add a unit to the host, start it, and start it at every boot."""
    host.write(f"/etc/systemd/system/{unit}", text)
    host.sh(f"systemctl enable --quiet --now {unit}")  # this reloads systemd, too


def add_bridge(host: DebianHost) -> None:
    """Give the host a bridge, now and at every boot."""
    host.write("/srv/bridge", BRIDGE)
    enable(host, "bridge.service", UNIT)


def leases(host: DebianHost) -> dict[str, dict[str, Any]]:
    """The leases by name, as the command prints them."""
    printed = json.loads(host.sh("tapster ls --all --json"))
    return {lease["name"]: lease for lease in printed["leases"]}


def taps(host: DebianHost) -> set[str]:
    """The names of all taps, as `ip` shows them."""
    shown = json.loads(host.sh("ip -j link show type tun"))
    return {link["ifname"] for link in shown if link}  # it prints {} for the others


def wait_gone(host: DebianHost, name: str) -> None:
    """Wait until the host has no device of this name."""
    wait = f"while test -e /sys/class/net/{name}; do read -rt 0.2 <> <(:) || :; done"
    host.run("timeout", "60", "bash", "-c", wait)


def wait_output(
    host: DebianHost, command: str, pattern: str, seconds: int = 60
) -> None:
    """Wait until a command prints a pattern."""
    wait = f"until {command} | grep -q '{pattern}'; do read -rt 0.2 <> <(:) || :; done"
    host.run("timeout", str(seconds), "bash", "-c", wait, timeout=seconds + 60)
