# SPDX-License-Identifier: Apache-2.0
"""Whether this kernel can redirect frames (tc-mirred(8)), asked of tc itself."""

import json
import subprocess
from typing import Any

from lab.shell import sh


def kernel_redirects() -> bool:
    """Try a redirection of `lo`, in a namespace that goes again."""
    commands = (
        "ip link set lo up && tc qdisc add dev lo clsact && "
        "tc filter add dev lo ingress matchall action mirred egress redirect dev lo"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", commands], capture_output=True, check=False
    )
    return done.returncode == 0


def filters(device: str, netns: str | None = None) -> list[dict[str, Any]]:
    """Return the filters at the ingress of a device, as `tc -j` shows them."""
    inside = f"-n {netns} " if netns else ""
    shown = json.loads(sh(f"tc {inside}-j filter show dev {device} ingress") or "[]")
    return [entry for entry in shown if "options" in entry]


def redirections(device: str, netns: str | None = None) -> dict[int, str]:
    """Return where frames that come in at a device go, by preference."""
    return {
        entry["pref"]: action["to_dev"]
        for entry in filters(device, netns)
        for action in entry["options"].get("actions", ())
        if action["kind"] == "mirred"
    }


def carried(device: str, netns: str | None = None) -> int:
    """Return how many frames the present redirections of a device have carried."""
    inside = f"-n {netns} " if netns else ""
    shown = json.loads(sh(f"tc {inside}-s -j filter show dev {device} ingress"))
    return sum(
        action["stats"]["packets"]
        for entry in shown
        for action in entry.get("options", {}).get("actions", ())
        if action["kind"] == "mirred"
    )


def qdiscs(device: str, netns: str | None = None) -> set[str]:
    """Return the kinds of qdisc at the ingress of a device."""
    inside = f"-n {netns} " if netns else ""
    shown = json.loads(sh(f"tc {inside}-j qdisc show dev {device}"))
    return {entry["kind"] for entry in shown} & {"clsact", "ingress"}
