# SPDX-License-Identifier: Apache-2.0
"""The watcher: receives every change, reads the ledgers, and passes both to the judge.

It prints "ready" when nothing will be missed any more, and at the end of its input its
report, a line of JSON. It tells the strangers of each VM that ends, a line each,
until it reads the line "calm": no more will.
"""

import json
import os
import selectors
import sys
from collections import Counter
from typing import NamedTuple, Self, TextIO

from soak import books
from soak.events import Listener
from soak.judge import Finding, Judge, StoppedVm
from soak.marks import Marker
from soak.messages import Message, Sample, Sampled
from soak.part import LEDGERS, NAMESPACES, boottime

SAMPLE = 1.0
"""Seconds from one sample of the ledgers to the next."""
NEWS = 30.0
"""Seconds between two lines about the state of the storm."""
TOLD = 4
"""How many findings of each kind are printed; the others are counted."""


class WatcherReport(NamedTuple):
    """The watcher's result at the end."""

    tally: dict[str, int]
    findings: list[Finding]
    names: dict[str, list[str]]
    """The devices that are left in each namespace."""

    @classmethod
    def read(cls, line: str) -> Self:
        tally, findings, names = json.loads(line)
        return cls(tally, [Finding(*finding) for finding in findings], names)


class Watcher:
    """Listens in every namespace; each has its judge."""

    def __init__(self, strangers: TextIO) -> None:
        self._strangers = strangers
        self._rows: dict[str, books.LeaseRow] = {}
        self._told: Counter[str] = Counter()
        self._marker = Marker("watcher")
        self._listeners = {
            netns: (Listener(netns), Judge(netns, self._stopped, lambda: self._rows))
            for netns in NAMESPACES
        }
        self._selector = selectors.DefaultSelector()
        for listener, _ in self._listeners.values():
            self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)

    def attend(self, until: float) -> bool:
        """Judge what is reported until then. False at the end of the input."""
        while (left := until - boottime()) > 0:
            ready = {key.fileobj for key, _ in self._selector.select(left)}
            self.judge()
            if sys.stdin in ready:
                if not sys.stdin.readline():
                    return False
                self._strangers.close()
        return True

    def judge(self) -> None:
        """Judge all that has been reported."""
        for listener, judge in self._listeners.values():
            heard = len(judge.findings)
            try:
                for event in listener.heard():
                    judge.event(event, boottime())
            except OSError as error:
                judge.blind(f"reports are lost: {error}")
            for finding in judge.findings[heard:]:
                self._told[finding.kind] += 1
                if self._told[finding.kind] <= TOLD:
                    tell(finding)

    def sample(self) -> None:
        """Read the ledgers, between two marks in every namespace."""
        if not all(judge.begun for _, judge in self._listeners.values()):
            return
        self._say(Sample())
        self._rows = {
            row.owner: row for ledger in LEDGERS for row in books.rows(ledger)
        }
        self._say(Sampled())
        self.judge()

    def report(self) -> WatcherReport:
        return WatcherReport(
            self._tally(),
            self._findings(),
            {
                netns: sorted(judge.names)
                for netns, (_, judge) in self._listeners.items()
            },
        )

    def news(self) -> str:
        tally = self._tally()
        kills = sum(count for key, count in tally.items() if key.startswith("kills"))
        return (
            f"soak: {tally['VMs']} VMs, {kills} kills, "
            f"{tally['events']} events, {len(self._findings())} findings"
        )

    def _say(self, message: Message) -> None:
        for netns in NAMESPACES:
            self._marker.say(netns, message)

    def _stopped(self, stopped: StoppedVm) -> None:
        if not self._strangers.closed:
            print(json.dumps(stopped), file=self._strangers, flush=True)

    def _tally(self) -> Counter[str]:
        return sum((judge.tally for _, judge in self._listeners.values()), Counter())

    def _findings(self) -> list[Finding]:
        found = [
            finding
            for _, judge in self._listeners.values()
            for finding in judge.findings
        ]
        return sorted(found, key=lambda finding: finding.time)


def tell(finding: Finding) -> None:
    """Print a finding: the author, the time, the object, and what preceded it."""
    head = f"soak: {finding.kind} in {finding.netns} at {finding.time:.3f}:"
    lines = (f"{head} {finding.what}", *finding.story)
    print(*lines, sep="\n    ", file=sys.stderr, flush=True)


def main() -> None:
    strangers = os.fdopen(int(sys.argv[1]), "w")
    watcher = Watcher(strangers)
    print("ready", flush=True)
    news = boottime() + NEWS
    while watcher.attend(boottime() + SAMPLE):
        watcher.sample()
        if boottime() > news:
            print(watcher.news(), file=sys.stderr, flush=True)
            news += NEWS
    watcher.judge()
    print(json.dumps(watcher.report()))


if __name__ == "__main__":
    main()
