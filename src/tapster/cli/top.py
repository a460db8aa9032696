# SPDX-License-Identifier: Apache-2.0
"""Show the leases, the latest events and the rates of calls, until Ctrl-C.

The daemon reports them. Where it does not run, root sees what the kernel and
the ledger tell, without the rates. The screen that was there before comes
back.
"""

import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from tapster.cli import ls, terminal, values, watch
from tapster.cli.options import Options
from tapster.errors import NotAllowed
from tapster.light import TYPE_CHECKING
from tapster.model import Lease, State
from tapster.rpc.interface import Count, Event

EVENTS = 8
"""The latest events that are shown."""
CLEAR = "\x1b[H\x1b[J"
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The other screen of a terminal, without a cursor: the scrollback stays as it is."""

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    parser.add_argument(
        "--interval",
        type=values.pause,
        default=1.0,
        metavar="TIME",
        help="the time between two screens; default: 1s",
    )
    parser.add_argument(
        "--count", type=values.count, metavar="N", help="end after N screens"
    )
    parser.add_argument(
        "--sort", choices=ls.SORTS, help="the order of leases; default: latest first"
    )


def run(options: Options, host: "AnyHost") -> int:
    other_screen = terminal.takes_escapes()
    if other_screen:
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGTSTP, _pause)
        sys.stdout.write(ENTER)
    try:
        return _watch(options, host)
    finally:
        if other_screen:
            sys.stdout.write(LEAVE)
            sys.stdout.flush()


def _end(number: int, _: object) -> None:
    """End as a signal does, but give the terminal back: `timeout 5 tapster top`."""
    sys.exit(128 + number)


def _pause(*_: object) -> None:
    """Give the terminal back until the user lets the verb go on: Ctrl-Z."""
    screen = sys.stdout.fileno()
    os.write(screen, LEAVE.encode())  # print() may be under way
    os.kill(os.getpid(), signal.SIGSTOP)
    os.write(screen, ENTER.encode())


def _watch(options: Options, host: "AnyHost") -> int:
    events: deque[Event] = deque(maxlen=EVENTS)
    before: dict[str, float] = {}
    last = time.monotonic()
    shown = 0
    with watch.source(host) as watcher:
        reported = watcher.watch()
        next(reported)  # the daemon watches: every later event is new
        while True:
            counts = _counts(host)
            now = time.monotonic()
            rates = _rates(before, counts, now - last) if shown else {}
            before, last = counts, now
            _show(_screen(_sorted(host.leases(), options.sort), events, rates))
            shown += 1
            if shown == options.count:
                return 0
            until = now + options.interval
            while watcher.ready(max(until - time.monotonic(), 0)):
                events.append(next(reported))


def _sorted(leases: list[Lease], sort: str | None) -> list[Lease]:
    return sorted(leases, key=ls.key(sort)) if sort else leases[::-1]


def _counts(host: "AnyHost") -> dict[str, float]:
    """Return the figures of interest; none if the user may not see them, or if there
    is no daemon."""
    from tapster.rpc.client import Client

    with suppress(NotAllowed):
        if isinstance(host, Client):
            return dict(_named(host.statistics()))
    return {}


def _named(counts: Iterable[Count]) -> Iterable[tuple[str, float]]:
    refused = 0.0
    for count in counts:
        if count.name == "calls" and count.label:
            yield count.label.lower(), count.value
        elif count.name in ("reaped", "collisions"):
            yield count.name, count.value
        elif count.name == "refused":
            refused += count.value
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
    """Return the lines of the screen, the most important first."""
    by_state = (
        f"{sum(lease.state is state for lease in leases)} {state}" for state in State
    )
    moving = (f"{name} {rate:.1f}/s" for name, rate in rates.items() if rate)
    return [
        f"tapster  {time.strftime('%H:%M:%S')}  {', '.join(by_state)}",
        "  ".join(moving),
        *(watch.line(event, terminal.width()) for event in events),
        "",
        *ls.lines(list(leases), frozenset(), terminal.width()),
    ]


def _show(lines: Sequence[str]) -> None:
    if terminal.takes_escapes():
        height = shutil.get_terminal_size().lines
        lines = lines[: height - 1]
        sys.stdout.write(CLEAR)
    print("\n".join(lines), flush=True)
