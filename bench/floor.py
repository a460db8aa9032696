# SPDX-License-Identifier: Apache-2.0
"""The floor: a C program that makes only the system calls, compiled and driven here."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_suffix(".c")
FIRST_IFINDEX = 1_000_000
"""Far from the indexes of the kernel and of Tapster."""
ALIAS = "tapster:00000000:0000000000000000"
"""As long as a stamp."""


def name_of(ifindex: int) -> str:
    """Return the name of a device on a bridge."""
    return f"f{ifindex - FIRST_IFINDEX}"


def compile_floor(directory: Path) -> Path:
    """Compile the program. Return its path."""
    program = directory / "floor"
    options = ["-O2", "-Wall", "-Wextra", "-Werror"]
    command = ["gcc", *options, "-o", str(program), str(SOURCE), "-lsqlite3"]
    subprocess.run(command, check=True)
    return program


class Floor:
    """The running program. Devices that it makes are told apart by their ifindex."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def make(self, name: str) -> int:
        """Make a tap and no more; its ifindex."""
        ifindex = self._ifindex()
        self._order("make", name, ifindex)
        return ifindex

    def record_in(self, ledger: Path) -> None:
        """Use a ledger of Tapster, which has leased one name, for what is recorded."""
        self._order("ledger", str(ledger))

    def acquire_recorded(self, bridge: int) -> tuple[int, float]:
        """Acquire with the system calls and transactions of Tapster."""
        ifindex = self._ifindex()
        mac = "fe:00:" + ifindex.to_bytes(4, "big").hex(":")
        taken = self._order(
            "acquire-recorded", name_of(ifindex), ifindex, mac, bridge, ALIAS
        )
        return ifindex, taken

    def release_recorded(self, ifindex: int) -> float:
        """Release with the system calls and the transaction of Tapster."""
        return self._order("release-recorded", ifindex)

    def acquire(self, bridge: int, *, ipv6: bool = True) -> tuple[int, float]:
        """Make a tap that is up and on the bridge; its ifindex, and the seconds."""
        ifindex = self._ifindex()
        mac = "fe:00:" + ifindex.to_bytes(4, "big").hex(":")
        verb = "acquire" if ipv6 else "acquire-no-ipv6"
        taken = self._order(verb, name_of(ifindex), ifindex, mac, bridge, ALIAS)
        return ifindex, taken

    def close(self, ifindex: int) -> None:
        """Close a tap, as the end of a VM does."""
        self._order("close", ifindex)

    def release(self, ifindex: int) -> float:
        """Take a device down and off its bridge; the seconds."""
        return self._order("release", ifindex)

    def reap(self, ifindexes: Sequence[int], batch: int) -> float:
        """Delete devices as groups of `batch`; the seconds."""
        return sum(
            self._order("reap", *ifindexes[first : first + batch])
            for first in range(0, len(ifindexes), batch)
        )

    def delete(self, ifindex: int) -> float:
        """Delete one device; the seconds."""
        return self._order("delete", ifindex)

    def _ifindex(self) -> int:
        self._made += 1
        return FIRST_IFINDEX + self._made

    def _order(self, *words: str | int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer[:1].isdigit():
            raise RuntimeError(f"floor: {words}: {answer or 'it ended'}")
        return int(answer) / 1e9
