# SPDX-License-Identifier: Apache-2.0
"""Show who has or had a name, the latest first.

Without NAME, --owner, --mac, --lease or --label: every lease of the host, at one time
or in a range of times. TIME is 2026-01-31T14:05, 14:05 (today), "yesterday 14:05", 2h
(two hours ago), or seconds since 1970, in local time.
"""

from datetime import datetime

from tapster.cli import nic, output, times
from tapster.cli.options import Options
from tapster.cli.output import Column
from tapster.cli.values import given_text
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING
from tapster.model import HistoryEntry, HistoryQuery

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

COLUMNS = (
    Column("NAME"),
    Column("OWNER", cut=True),
    Column("FROM"),
    Column("RELEASED"),
    Column("UNTIL", 1),
    Column("MAC", 4),
    Column("NETNS", 3),
    Column("LEASE", 2),
)
LIMIT = 1000


def declare(parser: "Parser") -> None:
    option = parser.add_argument
    option("name", nargs="?", metavar="NAME", type=given_text, help="a device's name")
    option("--owner", metavar="TEXT", help="the leases of this owner")
    option(
        "--mac",
        metavar="MAC",
        type=given_text,
        help="the leases with this MAC of the guest",
    )
    option("--lease", metavar="ID", type=given_text, help="the lease with this id")
    option(
        "--label",
        metavar="KEY=VALUE",
        type=given_text,
        help="the leases with this label",
    )
    option("--at", metavar="TIME", help="only at this time")
    times.declare(parser, LIMIT, "entries")
    option("--json", action="store_true", help="print JSON")


def run(options: Options, host: "AnyHost") -> int:
    now = datetime.now()
    at = times.parse(options.at, now)
    since, until = times.interval(options, now)
    if at is not None and (since is not None or until is not None):
        raise RequestError(
            "--at is one time, --since and --until are a range: give one"
        )
    query = HistoryQuery(
        name=options.name,
        owner=options.owner,
        mac=options.mac,
        lease=options.lease,
        label=nic.label(options.label) if options.label else None,
        at=at,
        since=since,
        until=until,
        limit=options.limit,
    )
    entries = host.history(query)
    if options.json:
        output.print_json(entries=[output.entry_json(entry) for entry in entries])
    else:
        output.print_table(COLUMNS, [_row(entry) for entry in entries])
    return 0


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    return (
        entry.name,
        entry.owner or "-",
        output.moment(entry.created),
        output.moment(entry.released),
        output.moment(entry.ended),
        entry.mac,
        output.netns_name(entry.netns) or "-",
        entry.lease,
    )
