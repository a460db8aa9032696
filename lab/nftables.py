# SPDX-License-Identifier: Apache-2.0
"""Read nftables through nft, and change it as an administrator would."""

import json
import subprocess
from typing import Any

from lab import shell


def ruleset() -> list[dict[str, Any]]:
    """Return all objects that `nft -j list ruleset` shows."""
    said = shell.sh("nft -j list ruleset")
    try:
        objects: list[dict[str, Any]] = json.loads(said)["nftables"]
    except ValueError:  # nftables 1.0.6, where a table has flags
        return [{"broken": {"table": "", "said": said}}]
    return [one for one in objects if "metainfo" not in one]


def table_of(one: dict[str, Any]) -> str:
    (body,) = one.values()
    return str(body["name"] if "table" in one else body["table"])


def foreign() -> list[dict[str, Any]]:
    """Return the objects outside Tapster's tables."""
    return [one for one in ruleset() if not table_of(one).startswith("tapster_")]


def elements(table: str) -> dict[str, list[Any]]:
    """Return the elements of each set of a table."""
    return {
        body["name"]: body.get("elem", [])
        for one in ruleset()
        if (body := one.get("set")) and body["table"] == table
    }


def unnumbered(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what depends on how often objects were made, and sort them."""
    for one in objects:
        for body in one.values():
            body.pop("handle", None)
            if "elem" in body:
                body["elem"].sort(key=json.dumps)
    return sorted(objects, key=lambda one: (table_of(one), "rule" in one))


def nft(commands: str) -> None:
    """Run commands of nft."""
    subprocess.run(["nft", commands], check=True)
