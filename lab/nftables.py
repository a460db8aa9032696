# SPDX-License-Identifier: Apache-2.0
"""Read nftables through nft, and change it as an administrator would."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from lab import shell
from lab.lines import Lines, readable

SECONDS = 20.0
"""Time in which a report surely comes, even on a busy host."""


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


@contextmanager
def changes() -> Iterator[list[str]]:
    """Yield a list that has, after the block, what nft reports of it, line by line."""
    with subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout is not None
        lines = Lines(monitor.stdout)
        try:
            # It does not say when it listens; that it reports a change does.
            for number in count():
                nft(f"add table bridge first{number}")
                if readable(monitor.stdout.fileno(), time.monotonic() + 0.02):
                    break
            found: list[str] = []
            yield found
            nft("add table bridge last")
            for line in lines.until(time.monotonic() + SECONDS):
                if line == "add table bridge last":
                    nft("delete table bridge last")
                    return
                if "table bridge first" not in line and not line.startswith("#"):
                    found.append(line)
            raise TimeoutError("nft monitor reports nothing")
        finally:
            monitor.kill()


def nft(commands: str) -> None:
    """Run commands of nft."""
    subprocess.run(["nft", commands], check=True)
