# SPDX-License-Identifier: Apache-2.0
"""Devices, ports, neighbours and VLANs as `ip` and `bridge` show them."""

import json
from typing import Any

from lab.shell import sh
from tapster.kernel.port import Vlans


def links(netns: str | None = None) -> dict[str, dict[str, Any]]:
    """Return every device by name, as `ip -d -j link` shows it."""
    inside = f"-n {netns} " if netns else ""
    found = json.loads(sh(f"ip {inside}-d -j link"))
    return {link["ifname"]: link for link in found}


def steady(link: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a device that do not change by themselves."""
    # The kernel computes a bridge's tso_max_size from its ports.
    moving = {"stats", "stats64", "operstate", "flags", "tso_max_size"}
    kept = {key: value for key, value in link.items() if key not in moving}
    data = kept.get("linkinfo", {}).get("info_data", {})
    for timer in [key for key in data if key.endswith("timer")]:
        del data[timer]
    return kept


def ports(bridge: str = "br0") -> set[str]:
    """Return the names of a bridge's ports, as `bridge -j link` shows them."""
    found = json.loads(sh("bridge -j link"))
    return {port["ifname"] for port in found if port.get("master") == bridge}


def neighbours(netns: str | None = None) -> dict[str, set[str]]:
    """Return the permanent MACs that bridges know behind their ports."""
    inside = f"-n {netns} " if netns else ""
    found: dict[str, set[str]] = {}
    for entry in json.loads(sh(f"bridge {inside}-j fdb show")):
        if "sticky" in entry["flags"] and "master" in entry:
            found.setdefault(entry["ifname"], set()).add(entry["mac"])
    return found


def vlans(netns: str | None = None) -> dict[str, Vlans]:
    """Return the VLANs of bridge ports and of bridges."""
    inside = f"-n {netns} " if netns else ""
    found = {}
    for port in json.loads(sh(f"bridge {inside}-j vlan show")):
        native: int | None = None
        tagged: list[int] = []
        for entry in port["vlans"]:
            last = entry.get("vlanEnd", entry["vlan"])
            if "PVID" in entry.get("flags", ()):
                native = entry["vlan"]
            else:
                tagged += range(entry["vlan"], last + 1)
        found[port["ifname"]] = Vlans(native, tuple(tagged))
    return found
