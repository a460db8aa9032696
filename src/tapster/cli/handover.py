# SPDX-License-Identifier: Apache-2.0
"""Hand devices to a command: their properties, in its words and its environment."""

import os
import re
from collections.abc import Sequence

from tapster.cli.options import Options
from tapster.errors import RequestError
from tapster.open_device import OpenDevice

_PLACE = re.compile(r"(?<!\$)(\{?)\{(fdlist|fds?|name|mac|ifindex)(\d*)\}")
"""A property; with two braces, literal text. After a dollar a brace is the shell's."""


def command_of(options: Options, verb: str) -> list[str]:
    """Return the command that follows `--`. Raises RequestError."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise RequestError(f"tapster {verb} needs a COMMAND after --")
    if not command[0]:  # a variable of a script may be unset
        raise RequestError("COMMAND is empty: name a program after --")
    return list(command)


def check_places(words: Sequence[str], nics: int, where: str = "COMMAND") -> None:
    """Check that the words name only devices that there are. Raises RequestError."""
    for word in words:
        for match in _PLACE.finditer(word):
            if not match[1] and int(match[3] or 0) >= nics:
                raise RequestError(
                    f"{match[0]} in {where}: the devices are numbered 0 to {nics - 1}"
                )


def descriptors_used(command: Sequence[str]) -> set[int]:
    """Return the numbers of the devices whose descriptors the command names."""
    return {
        int(match[3] or 0)
        for word in command
        for match in _PLACE.finditer(word)
        if match[2].startswith("fd") and not match[1]
    }


def environment(devices: Sequence[OpenDevice], used: set[int]) -> dict[str, str]:
    """Return the environment of the command: ours, and the devices' properties."""
    environment = dict(os.environ)
    for number, opened in enumerate(devices):
        properties = {
            "NAME": opened.name,
            "MAC": opened.mac,
            "IFINDEX": str(opened.ifindex),
            "LEASE": opened.id,
        }
        if number in used:
            properties["FD"] = ":".join(str(fd) for fd in opened.fds)
        for key, value in properties.items():
            environment[f"TAPSTER_{key}{number}"] = value
            if number == 0:
                environment[f"TAPSTER_{key}"] = value
    return environment


def fill_in(command: Sequence[str], devices: Sequence[OpenDevice]) -> list[str]:
    """Return the command with the devices' properties filled in."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        opened = devices[int(match[3] or 0)]
        return {
            "fd": str(opened.fds[0]),
            "fds": ":".join(str(fd) for fd in opened.fds),
            "fdlist": f"[{','.join(str(fd) for fd in opened.fds)}]",
            "name": opened.name,
            "mac": opened.mac,
            "ifindex": str(opened.ifindex),
        }[match[2]]

    return [_PLACE.sub(value, word) for word in command]
