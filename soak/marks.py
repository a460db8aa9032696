# SPDX-License-Identifier: Apache-2.0
"""Marks: statements of actors in the kernel's own sequence of reports.

A mark is the alias of the namespace's bridge `mark`, written through sysfs. Each write
is one report of the kernel, in order with those of all other changes.
"""

import json
import os
from collections import Counter
from typing import NamedTuple, Self

from soak.messages import MESSAGES, Message
from soak.part import RUN, boottime

DEVICE = "mark"
LONGEST = 255
"""Bytes of an alias: IFALIASZ less one."""


class Mark(NamedTuple):
    """One statement: its author, its number, its time and its text."""

    by: str
    number: int
    time: float
    """On `CLOCK_BOOTTIME`, just before it was said."""
    message: Message

    @property
    def process(self) -> str:
        return self.by.partition("/")[0]

    @classmethod
    def read(cls, alias: str) -> Self:
        by, number, time, kind, values = json.loads(alias)
        return cls(by, number, time, MESSAGES[kind](*values))

    def write(self) -> str:
        """Return the alias that `read` reads."""
        kind = type(self.message).__name__.lower()
        values = [*self.message._asdict().values()]
        fields = (self.by, self.number, self.time, kind, values)
        return json.dumps(fields, separators=(",", ":"))


class Marker:
    """Writes marks in the name of one thread."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._files: dict[str, int] = {}
        self._numbers: Counter[str] = Counter()

    def say(self, netns: str, message: Message) -> float:
        """Write a mark; return its time."""
        now = boottime()
        self._numbers[netns] += 1
        text = Mark(self._by, self._numbers[netns], round(now, 6), message).write()
        alias = text.encode()
        assert len(alias) <= LONGEST, text
        os.write(self._file(netns), alias)
        return now

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, netns: str) -> int:
        if netns not in self._files:
            path = f"{RUN}/sys/{netns}/class/net/{DEVICE}/ifalias"
            self._files[netns] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        return self._files[netns]
