# SPDX-License-Identifier: Apache-2.0
"""Read bridge.conf as qemu-bridge-helper does.

A line is `allow`, `deny` or `include`, then a bridge, `all`, or a file. A bridge that
no line allows is denied, and a denial overrides every permission. An included file that
the user cannot read is ignored: an administrator uses its mode to select users. Of an
included file with an invalid line, the lines before it count.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from stat import S_IROTH

from tapster.light import NamedTuple

ALL = "all"
LONGEST = 1 << 20
"""Characters of a file."""
MOST_FILES = 100
"""Files that are read."""


class Verdict(NamedTuple):
    """One `allow` or `deny` line."""

    allow: bool
    bridge: str


Acl = tuple[Verdict, ...]


class Restricted(Exception):
    """Report a file that not everybody may read."""


def permits(acl: Acl, bridge: str) -> bool:
    """Tell whether a device may join this bridge."""
    verdicts = {verdict.allow for verdict in acl if verdict.bridge in (ALL, bridge)}
    return verdicts == {True}


def read(path: str, *, for_everybody: bool = False) -> Acl:
    """Read the lines of a file and of the files that it includes, each once.

    The order of lines does not matter. Raises OSError if the file itself cannot be
    read, ValueError for an invalid line; and with `for_everybody`, if a file is for
    some users only, by its mode.
    """
    try:
        return tuple(_read(path, set(), for_everybody))
    except Restricted as error:
        raise ValueError(str(error)) from None


def _read(path: str, known: set[str], for_everybody: bool) -> Iterator[Verdict]:
    known.add(path)
    if for_everybody and _is_restricted(path):
        raise Restricted(
            f"{path} is for the users who may read it: name them in [[allow]], or let "
            "everybody read it"
        )
    with open(path, encoding="utf-8", errors="surrogateescape", opener=_open) as file:
        text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise ValueError(f"{path} has more than {LONGEST} characters")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or words[0] not in ("allow", "deny", "include"):
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not a rule")
        command, argument = words[0], words[1].strip()
        if command != "include":
            yield Verdict(command == "allow", argument)
        elif argument not in known and len(known) < MOST_FILES:
            with suppress(OSError, ValueError):
                yield from _read(argument, known, for_everybody)


def _is_restricted(path: str) -> bool:
    try:
        return not os.stat(path).st_mode & S_IROTH
    except PermissionError:
        return True  # it is in a folder for some users
    except OSError:
        return False  # it is not there


def _open(path: str, flags: int) -> int:
    """Open a file without waiting, as for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)
