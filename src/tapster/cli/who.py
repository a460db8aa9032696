# SPDX-License-Identifier: Apache-2.0
"""Say who holds or held a name, latest first."""

import argparse
from datetime import datetime

from tapster.cli import output
from tapster.cli.output import Column
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING
from tapster.model import HistoryEntry

if TYPE_CHECKING:
    from tapster.api import Manager

COLUMNS = (
    Column("NAME"),
    Column("OWNER", cut=True),
    Column("FROM"),
    Column("RELEASED"),
    Column("UNTIL", 4),
    Column("MAC", 3),
    Column("NETNS", 2),
    Column("LEASE", 1),
)


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a device's name")
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="only then: 2026-01-31T12:00:00, 12:00 (today), or seconds since 1970",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, host: "Manager") -> int:
    at = None if options.at is None else parse_time(options.at, datetime.now())
    entries = host.who(options.name, at)
    if options.json:
        output.print_json(entries=[output.entry_json(one) for one in entries])
    else:
        output.print_table(COLUMNS, [_row(one) for one in entries])
    return 0


def parse_time(text: str, now: datetime) -> float:
    """Seconds since the epoch; a time without a zone is local, without a day today."""
    try:
        return float(text)
    except ValueError:
        pass
    for candidate in (text, f"{now:%Y-%m-%d}T{text}"):
        try:
            return datetime.fromisoformat(candidate).timestamp()
        except ValueError:
            continue
    raise RequestError(
        f"time {text!r} is not of the form 2026-01-31T12:00:00, 12:00, or 1769860800"
    )


def _row(one: HistoryEntry) -> tuple[str, ...]:
    return (
        one.name,
        one.owner or "-",
        output.moment(one.created),
        output.moment(one.released),
        output.moment(one.ended),
        one.mac,
        output.netns_name(one.netns) or "-",
        one.lease,
    )
