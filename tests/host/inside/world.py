# SPDX-License-Identifier: Apache-2.0
"""The independent judges on a whole host: iproute2, systemctl, journalctl, udevadm."""

import json
import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLICY = Path("/etc/tapster/tapster.toml")
EVENT_SECONDS = 60.0
"""Seconds for what must happen by itself, on a host without KVM."""


def sh(command: str) -> str:
    """Run a command; its output. Fails the test if the command fails."""
    done = run(command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def run(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail."""
    argv = shlex.split(command)
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def links() -> dict[str, dict[str, Any]]:
    """Every device by name, as `ip -d -j link` shows it."""
    return {link["ifname"]: link for link in json.loads(sh("ip -d -j link"))}


def taps() -> set[str]:
    """The names of all taps and macvtaps on the host."""
    return {
        name
        for name, link in links().items()
        if link.get("linkinfo", {}).get("info_kind") in ("tun", "macvtap")
    }


def leases(command: str = "tapster ls --all --json") -> dict[str, dict[str, Any]]:
    """The leases by name, as the command prints them."""
    return {lease["name"]: lease for lease in json.loads(sh(command))["leases"]}


def state(unit: str, what: str) -> str:
    """A property of a unit, as systemd knows it."""
    return sh(f"systemctl show --value --property {what} {unit}").strip()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait for links to change until something holds."""
    deadline = time.monotonic() + EVENT_SECONDS
    with subprocess.Popen(["ip", "monitor", "link"], stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout
        try:
            while not holds():
                assert time.monotonic() < deadline, (
                    f"not within {EVENT_SECONDS:g} s: {what}"
                )
                if select.select([monitor.stdout], [], [], 0.5)[0]:
                    os.read(monitor.stdout.fileno(), 65536)
        finally:
            monitor.terminate()
