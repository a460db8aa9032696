# SPDX-License-Identifier: Apache-2.0
"""Print events of leases, and changes of devices by other programs, as they happen.

The daemon reports them, so it must run.
"""

import argparse
import time

from tapster.cli import output, selection, terminal
from tapster.light import TYPE_CHECKING
from tapster.rpc.interface import Event

if TYPE_CHECKING:
    from tapster.rpc.client import Client

COLOURS = {
    "acquired": terminal.GREEN,
    "sound": terminal.GREEN,
    "restored": terminal.YELLOW,
    "released": terminal.YELLOW,
    "ended": terminal.DIM,
    "lost": terminal.RED,
    "moved": terminal.RED,
    "changed": terminal.RED,
    "renamed": terminal.RED,
    "down": terminal.RED,
}


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help="only devices of these names (patterns)"
    )
    parser.add_argument("--owner", metavar="TEXT", help="only this owner (a pattern)")
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each event"
    )


def run(options: argparse.Namespace, host: "Client") -> int:
    for event in host.watch():
        if not _fits(event, options):
            continue
        if options.json:
            content = event._asdict() | {"time": output.timestamp(event.time)}
            output.print_json_line(**content)
        else:
            print(line(event, terminal.width()), flush=True)
    return 0


def _fits(event: Event, options: argparse.Namespace) -> bool:
    if event.lease is None:
        return True  # "watching": scripts wait for it
    names = not options.name or any(
        selection.like(event.name or "", pattern) for pattern in options.name
    )
    owner = options.owner is None or selection.like(event.owner or "", options.owner)
    return names and owner


def line(event: Event, width: int) -> str:
    """Return an event for people: one line, at most `width` wide."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    words = [
        event.name or "",
        event.owner and f"({event.owner})",
        event.detail and f"- {event.detail}",
    ]
    rest = " ".join(word for word in words if word)
    room = width - len(clock) - 12
    if len(rest) > room:
        rest = rest[: max(room - 1, 0)] + output.ELLIPSIS
    colour = COLOURS.get(event.event) if terminal.has_colours() else None
    return f"{clock} {terminal.paint(f'{event.event:<10}', colour)} {rest}".rstrip()
