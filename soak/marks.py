# SPDX-License-Identifier: Apache-2.0
"""What actors say of themselves, in the row of the kernel's own reports.

A mark is the alias of the namespace's bridge `mark`, written through sysfs. Each write
is one report of the kernel, in order with those of all other changes.
"""

import json
import os
from collections import Counter
from typing import Any, NamedTuple, Self

from soak.part import RUN, boottime

DEVICE = "mark"
LONGEST = 255
"""Bytes of an alias: IFALIASZ less one."""


class Mark(NamedTuple):
    """One statement: `by` whom, the how many-th of it here, when, what."""

    by: str
    number: int
    time: float
    """On `CLOCK_BOOTTIME`, just before it was said."""
    does: str
    says: dict[str, Any]

    @property
    def process(self) -> str:
        return self.by.partition("/")[0]

    @classmethod
    def read(cls, alias: str) -> Self:
        return cls(*json.loads(alias))


class Marker:
    """Writes marks in the name of one thread."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._files: dict[str, int] = {}
        self._numbers: Counter[str] = Counter()

    def say(self, netns: str, does: str, **says: Any) -> float:
        """Say it, and return when."""
        now = boottime()
        self._numbers[netns] += 1
        mark = Mark(self._by, self._numbers[netns], round(now, 6), does, says)
        text = json.dumps(mark, separators=(",", ":")).encode()
        assert len(text) <= LONGEST, text
        os.write(self._file(netns), text)
        return now

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, netns: str) -> int:
        if netns not in self._files:
            path = f"{RUN}/sys/{netns}/class/net/{DEVICE}/ifalias"
            self._files[netns] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        return self._files[netns]
