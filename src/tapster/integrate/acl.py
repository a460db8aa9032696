# SPDX-License-Identifier: Apache-2.0
"""Read bridge.conf as qemu-bridge-helper does.

A line is `allow`, `deny` or `include`, then a bridge, `all`, or a file. A bridge that
no line allows is denied, and a denial overrides every permission. An included file that
the user cannot read is ignored: an administrator uses its mode to select users.
"""

from collections.abc import Iterator
from contextlib import suppress

from tapster.light import NamedTuple

ALL = "all"
DEEPEST = 16


class Verdict(NamedTuple):
    """One `allow` or `deny` line."""

    allow: bool
    bridge: str


Acl = tuple[Verdict, ...]


def permits(acl: Acl, bridge: str) -> bool:
    """Tell whether a device may join this bridge."""
    verdicts = {verdict.allow for verdict in acl if verdict.bridge in (ALL, bridge)}
    return verdicts == {True}


def read(path: str) -> Acl:
    """Read the lines of a file and of the files that it includes.

    Raises OSError if the file itself cannot be read, ValueError for an invalid line.
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
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not a rule")
        command, argument = words[0], words[1].strip()
        if command != "include":
            yield Verdict(command == "allow", argument)
        elif depth < DEEPEST:
            with suppress(OSError, ValueError):
                yield from tuple(_read(argument, depth + 1))
