# SPDX-License-Identifier: Apache-2.0
"""Print events of leases, and changes of devices by other programs, as they happen.

The daemon reports them. Where it does not run, root sees what the kernel and
the ledger tell.
"""

from contextlib import suppress

from tapster.cli import output, selection, terminal
from tapster.cli.options import Options
from tapster.errors import NoSuchLease
from tapster.light import TYPE_CHECKING
from tapster.model import Lease
from tapster.rpc.interface import Event

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.observer import Observer
    from tapster.cli.parser import Parser
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
    "refused": terminal.RED,
    "held": terminal.YELLOW,
    "repaired": terminal.GREEN,
}


def declare(parser: "Parser") -> None:
    selection.declare(parser)
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each event"
    )


def run(options: Options, host: "AnyHost") -> int:
    filter_ = EventFilter(options, host)
    with source(host) as events:
        for event in events.watch():
            if not filter_.lets_pass(event):
                continue
            if options.json:
                content = event._asdict() | {"time": output.timestamp(event.time)}
                output.print_json_line(**content)
            else:
                print(line(event, terminal.width()), flush=True)
    return 0


def source(host: "AnyHost") -> "Client | Observer":
    """Return what reports events: a connection to the daemon, or the host itself."""
    from tapster.host import Host

    if isinstance(host, Host):
        from tapster.cli.observer import Observer

        return Observer(host)
    from tapster.rpc.client import Client, connect

    assert isinstance(host, Client)
    return connect(host.path)  # nothing else can be called on it then


class EventFilter:
    """Lets the events of chosen leases pass."""

    def __init__(self, options: Options, host: "AnyHost") -> None:
        self._options = options
        self._host = host
        self._leases: dict[str, Lease] = {}
        if selection.is_filtered(options, *selection.FILTERS[1:]):
            self._leases = {lease.id: lease for lease in host.leases()}

    def lets_pass(self, event: Event) -> bool:
        """Tell whether an event is of a lease that was chosen."""
        options = self._options
        if event.lease is None:
            return True  # "watching": scripts wait for it
        names = not options.lease or any(
            event.lease == pattern or selection.like(event.name or "", pattern)
            for pattern in options.lease
        )
        owner = options.owner is None or selection.like(
            event.owner or "", options.owner
        )
        if not (names and owner):
            return False
        if not selection.is_filtered(options, *selection.FILTERS[1:]):
            return True
        lease = self._lease(event.lease)
        return lease is not None and selection.fits(lease, options)

    def _lease(self, id: str) -> Lease | None:
        """Return a lease as it is now; one that has ended, as it was."""
        with suppress(NoSuchLease):
            self._leases[id] = self._host.look_up(id)
        return self._leases.get(id)


def line(event: Event, width: int) -> str:
    """Return an event for people: one line, at most `width` wide."""
    clock = output.local_time(event.time, "%H:%M:%S")
    words = [
        event.name or "",
        event.owner and f"({event.owner})",
        event.detail and f"- {event.detail}",
    ]
    rest = terminal.plain(" ".join(word for word in words if word))
    room = width - len(clock) - 12
    if len(rest) > room:
        rest = rest[: max(room - 1, 0)] + output.ELLIPSIS
    colour = COLOURS.get(event.event) if terminal.has_colours() else None
    word = terminal.paint(f"{terminal.plain(event.event):<10}", colour)
    return f"{clock} {word} {rest}".rstrip()
