# SPDX-License-Identifier: Apache-2.0
"""bridge.conf, as qemu-bridge-helper reads it.

A line is `allow`, `deny` or `include`, then a bridge, `all`, or a file. What no line
allows is denied, and a denial wins over every permission. An included file that
cannot be read says nothing: so an administrator lets its mode choose who is meant.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

ALL = "all"
DEEPEST = 16


class Verdict(NamedTuple):
    """One line."""

    allow: bool
    bridge: str


Acl = tuple[Verdict, ...]


def permits(acl: Acl, bridge: str) -> bool:
    """Whether this bridge may be joined."""
    said = {verdict.allow for verdict in acl if verdict.bridge in (ALL, bridge)}
    return said == {True}


def read(path: str) -> Acl:
    """The lines of a file, and of those it includes.

    Raises OSError for the file itself, ValueError for a line that is none.
    """
    return tuple(_read(path, 0))


def _read(path: str, depth: int) -> Iterator[Verdict]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or words[0] not in ("allow", "deny", "include"):
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is no rule")
        command, argument = words[0], words[1].strip()
        if command != "include":
            yield Verdict(command == "allow", argument)
        elif depth < DEEPEST:
            with suppress(OSError, ValueError):
                yield from tuple(_read(argument, depth + 1))
