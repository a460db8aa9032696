# SPDX-License-Identifier: Apache-2.0
"""Show what happened to devices, and which requests were refused, the latest last.

The daemon records what other programs do to devices, and which requests its policy
refuses. The daemon and `tapster recover` record which devices they put back. `tapster
watch` shows events as they happen, and `tapster who` the leases. TIME is as for
`tapster who`.
"""

from datetime import datetime

from tapster.cli import output, terminal, times, watch
from tapster.cli.options import Options
from tapster.cli.values import given_text
from tapster.light import TYPE_CHECKING
from tapster.model import EventQuery, HistoryEvent

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

LIMIT = 1000
EVENTS = (
    *("refused", "lost", "held", "moved", "renamed", "down", "changed", "sound"),
    *("repaired", "set", "reopened"),
)
"""The events that are recorded."""


def declare(parser: "Parser") -> None:
    option = parser.add_argument
    option(
        "name",
        nargs="?",
        metavar="NAME",
        type=given_text,
        help="events of devices of this name",
    )
    kinds = ", ".join(EVENTS)
    option("--event", choices=EVENTS, metavar="EVENT", help=f"one of {kinds}")
    option("--owner", metavar="TEXT", help="events of leases of this owner")
    option(
        "--lease",
        metavar="ID",
        type=given_text,
        help="events of the lease with this id",
    )
    times.declare(parser, LIMIT, "events")
    option("--json", action="store_true", help="print JSON")


def run(options: Options, host: "AnyHost") -> int:
    since, until = times.interval(options, datetime.now())
    query = EventQuery(
        since=since,
        until=until,
        event=options.event,
        name=options.name,
        owner=options.owner,
        lease=options.lease,
        limit=options.limit,
    )
    events = host.events(query)
    if options.json:
        output.print_json(events=[output.event_json(event) for event in events])
        return 0
    for event in events:
        print("\n".join(lines(event, terminal.width())))
    return 0


def lines(event: HistoryEvent, width: int) -> list[str]:
    """Return an event for people: every word of it, in lines at most `width` wide."""
    from textwrap import wrap  # slow to import: `tapster add` does without

    head = f"{output.moment(event.time)} {event.event:<8} "
    detail = event.detail and f"- {event.detail}"
    words = [event.name, event.owner and f"({event.owner})", detail]
    found = wrap(
        terminal.plain(head + " ".join(word for word in words if word)),
        width,
        initial_indent="",
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
    )
    if terminal.has_colours():
        style = watch.COLOURS.get(event.event)
        painted = terminal.paint(event.event, style)
        found[0] = found[0].replace(event.event, painted, 1)
    return found
