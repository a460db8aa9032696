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
    return [item for item in objects if "metainfo" not in item]


def table_of(item: dict[str, Any]) -> str:
    (body,) = item.values()
    return str(body["name"] if "table" in item else body["table"])


def foreign() -> list[dict[str, Any]]:
    """Return the objects outside Tapster's tables."""
    return [item for item in ruleset() if not table_of(item).startswith("tapster_")]


def elements(table: str) -> dict[str, list[Any]]:
    """Return the elements of each set of a table."""
    return {
        body["name"]: body.get("elem", [])
        for item in ruleset()
        if (body := item.get("set")) and body["table"] == table
    }


def unnumbered(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what depends on how often objects were made, and sort them."""
    for item in objects:
        for body in item.values():
            body.pop("handle", None)
            if "elem" in body:
                body["elem"].sort(key=json.dumps)
    return sorted(objects, key=lambda item: (table_of(item), "rule" in item))


def nft(commands: str) -> None:
    """Run commands of nft."""
    subprocess.run(["nft", commands], check=True)
