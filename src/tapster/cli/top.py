# SPDX-License-Identifier: Apache-2.0
"""Show the leases, what happens to them, and how often, until Ctrl-C."""

import argparse
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence

from tapster.cli import ls, terminal, watch
from tapster.errors import NotAllowed
from tapster.light import TYPE_CHECKING
from tapster.model import Lease, State
from tapster.rpc.client import connect
from tapster.rpc.interface import Count, Event

EVENTS = 8
"""The latest events that are shown."""
CLEAR = "\x1b[H\x1b[2J\x1b[3J"

if TYPE_CHECKING:
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="default: 1"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="show it so many times, and end"
    )


def run(options: argparse.Namespace, host: "Client") -> int:
    events: deque[Event] = deque(maxlen=EVENTS)
    before: dict[str, float] = {}
    last = time.monotonic()
    shown = 0
    with connect(host.path) as watcher:
        told = watcher.watch()
        next(told)  # it watches: what comes after is new
        while True:
            counts = _counts(host)
            now = time.monotonic()
            rates = _rates(before, counts, now - last) if shown else {}
            before, last = counts, now
            _show(_screen(host.leases(), events, rates))
            shown += 1
            if shown == options.count:
                return 0
            until = now + options.interval
            while watcher.ready(max(until - time.monotonic(), 0)):
                events.append(next(told))


def _counts(host: "Client") -> dict[str, float]:
    """The figures of interest; none for who may not know them."""
    try:
        return dict(_named(host.statistics()))
    except NotAllowed:
        return {}


def _named(counts: Iterable[Count]) -> Iterable[tuple[str, float]]:
    for one in counts:
        if one.name == "calls" and one.label:
            yield one.label.lower(), one.value
        elif one.name in ("reaped", "collisions"):
            yield one.name, one.value
    refused = sum(one.value for one in counts if one.name == "refused")
    yield "refused", refused


def _rates(
    before: dict[str, float], after: dict[str, float], seconds: float
) -> dict[str, float]:
    return {
        name: (value - before.get(name, 0)) / seconds for name, value in after.items()
    }


def _screen(
    leases: Sequence[Lease], events: Iterable[Event], rates: dict[str, float]
) -> list[str]:
    """The lines of the screen, the most important first."""
    by_state = (
        f"{sum(one.state is state for one in leases)} {state}" for state in State
    )
    moving = (f"{name} {rate:.1f}/s" for name, rate in rates.items() if rate)
    return [
        f"tapster  {time.strftime('%H:%M:%S')}  {', '.join(by_state)}",
        "  ".join(moving),
        *(watch.line(event) for event in events),
        "",
        *ls.lines(list(reversed(leases)), frozenset(), terminal.width()),
    ]


def _show(lines: Sequence[str]) -> None:
    if sys.stdout.isatty():
        size = shutil.get_terminal_size()
        lines = [line[: size.columns] for line in lines[: size.lines - 1]]
        sys.stdout.write(CLEAR)
    print("\n".join(lines), flush=True)
