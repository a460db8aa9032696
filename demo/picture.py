# SPDX-License-Identifier: Apache-2.0
"""The two runs of the demo as one page of `tapster report`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import tapster
from lab.browser import Browser
from lab.vm_network import LEDGER
from tapster.cli import report
from tapster.model import HistoryEntry, HistoryEvent, HistoryQuery, Kind

WITHOUT = "kernel's names"
WITH = "Tapster"
"""The names of the runs, as in the table that the demo prints."""
CLEANUP = "cleanup by name"


class Moments(NamedTuple):
    """When the steps of a run happened, in seconds since the epoch."""

    a_started: float
    a_killed: float
    b_started: float
    cleaned_up: float
    ended: float


class Run(NamedTuple):
    """A run, as the page shows it."""

    entries: list[HistoryEntry]
    events: list[HistoryEvent]


def without(tap_a: str, tap_b: str, moments: Moments) -> Run:
    """Return the run without Tapster, which the demo itself has watched."""
    a = _entry("A", tap_a, moments.a_started, moments.a_killed)
    b = _entry("B", tap_b, moments.b_started, moments.ended)
    detail = f"{tap_a} was B's by then: B has lost its network"
    return Run([b, a], [_cleanup(b, moments, detail)])


def with_tapster(moments: Moments) -> Run:
    """Return the run with Tapster, from its ledger."""
    with tapster.Host(LEDGER, reaper=lambda _: None) as host:
        entries = [entry._replace(netns=WITH) for entry in host.history(HistoryQuery())]
    (a,) = (entry for entry in entries if entry.owner == "A")
    return Run(entries, [_cleanup(a, moments, f"{a.name} is down and holds the name")])


def page(*runs: Run) -> str:
    """Return the page of some runs."""
    return report.write(
        [entry for run in runs for entry in run.entries],
        [event for run in runs for event in run.events],
    )


def draw(page: str, picture: Path) -> None:
    """Save the chart of a page as a PNG."""
    with TemporaryDirectory() as folder, Browser() as browser:
        file = Path(folder) / "page.html"
        file.write_text(page, "utf-8")
        browser.open(file, width=760, height=560, scheme="light")
        browser.picture(picture, "#chart")


def _entry(vm: str, tap: str, started: float, ended: float) -> HistoryEntry:
    return HistoryEntry(
        name=tap,
        lease=f"{WITHOUT}: {vm}",
        owner=vm,
        kind=Kind.TAP,
        mac="",
        ifindex=0,
        netns=WITHOUT,
        created=started,
        released=ended,
        ended=ended,
    )


def _cleanup(hit: HistoryEntry, moments: Moments, detail: str) -> HistoryEvent:
    return HistoryEvent(
        time=moments.cleaned_up,
        event=CLEANUP,
        lease=hit.lease,
        name=hit.name,
        owner=hit.owner,
        detail=detail,
    )
