# SPDX-License-Identifier: Apache-2.0
"""What the command prints: tables for people, versioned JSON for programs.

The JSON is a contract, documented in docs/json.md. Within version 1 a field may be
added. No field changes its meaning, and none is removed.
"""

import sys
import time

from tapster.cli import terminal
from tapster.cli.options import Options
from tapster.errors import RequestError
from tapster.light import Any, Sequence
from tapster.model import HistoryEntry, HistoryEvent, Lease, Link, Problem, Wiring

VERSION = 1
GAP = "  "
ELLIPSIS = "~"
"""Marks a cell that is cut short; every terminal can show it."""


def print_json(**content: Any) -> None:
    """Print one versioned document."""
    import json  # only here: `tapster add` mostly does without

    json.dump({"version": VERSION, **content}, sys.stdout, indent=2)
    print()


def check_forms(options: Options) -> None:
    """Refuse several forms of output: a program would get another than it reads.

    Raises RequestError.
    """
    forms = [
        flag
        for flag, given in (
            ("--json", options.json),
            ("--format", options.format is not None),
            ("--id", options.id),
            ("--quiet", getattr(options, "quiet", False) and not options.id),
        )
        if given
    ]
    if len(forms) > 1:
        raise RequestError(f"{' and '.join(forms)} do not go together: give one")


def print_json_line(**content: Any) -> None:
    """Print one versioned document on a line of its own, at once."""
    import json

    print(json.dumps({"version": VERSION, **content}), flush=True)


def lease_json(lease: Lease) -> dict[str, Any]:
    """Return a lease as programs see it."""
    return {
        "id": lease.id,
        "name": lease.name,
        "ifindex": lease.ifindex,
        "kind": lease.kind,
        "state": lease.state,
        "owner": lease.owner,
        "labels": dict(lease.labels),
        "mac": lease.mac,
        "lower": lease.lower,
        "mode": lease.mode,
        "queues": lease.queues,
        "vnet_hdr": lease.vnet_hdr,
        **wiring_json(lease.wiring),
        "netns": netns_name(lease.netns.path) or None,
        "created": timestamp(lease.created),
        "released": timestamp(lease.released),
        "fin_wait": lease.fin_wait,
        "fin_wait_left": wait_left(lease),
        "pid": lease.process.pid if lease.process else None,
        "caller_uid": lease.caller_uid,
        "on_close": lease.on_close,
        "placeholder": lease.placeholder,
    }


LEASE_FIELDS = (
    *("id", "name", "ifindex", "kind", "state", "owner", "labels", "mac", "lower"),
    *("mode", "queues", *Wiring._fields, "netns", "created", "released", "fin_wait"),
    *("fin_wait_left", "pid", "caller_uid", "on_close", "placeholder", "vnet_hdr"),
)
"""The fields of `lease_json`."""
PARTED_FIELDS = ("labels", "external_ids", "inbound", "outbound")
"""Those of them that are objects."""


def wiring_json(wiring: Wiring) -> dict[str, Any]:
    """Return what a device is connected to, as programs see it."""
    return wiring._asdict() | {
        "external_ids": dict(wiring.external_ids),
        "inbound": wiring.inbound and wiring.inbound._asdict(),
        "outbound": wiring.outbound and wiring.outbound._asdict(),
    }


def link_json(link: Link | None) -> dict[str, Any] | None:
    """Return a device as the kernel reports it."""
    return None if link is None else link._asdict()


def entry_json(entry: HistoryEntry) -> dict[str, Any]:
    """Return an entry of the history as programs see it."""
    return {
        **entry._asdict(),
        "labels": dict(entry.labels),
        "netns": netns_name(entry.netns) or None,
        "created": timestamp(entry.created),
        "released": timestamp(entry.released),
        "ended": timestamp(entry.ended),
    }


def event_json(event: HistoryEvent) -> dict[str, Any]:
    """Return an event of the history as programs see it."""
    return {
        **event._asdict(),
        "time": timestamp(event.time),
        "lease": event.lease or None,
    }


class Column:
    """A column of a table."""

    def __init__(self, head: str, keep: int = 0, *, cut: bool = False) -> None:
        """Columns with a lower `keep` go first when a line is too long; 0 is kept.

        A column that is empty in each row goes, too, unless `keep` is 0.

        The cells of a `cut` column may be cut short.
        """
        self.head = head
        self.keep = keep
        self.cut = cut


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    styles: Sequence[str | None] = (),
    style_of: int = 0,
) -> list[str]:
    """Return the lines of a table that is at most `width` wide, if that can be done.

    `styles` has a colour for the cell in column `style_of` of each row.
    """
    rows = [[terminal.plain(cell) for cell in row] for row in rows]
    shown = [
        column
        for column in range(len(columns))
        if not columns[column].keep or any(row[column] != "-" for row in rows)
    ]
    widths = [
        max(len(row[column]) for row in [[c.head for c in columns], *rows])
        for column in range(len(columns))
    ]
    if width is not None:
        _fit(columns, shown, widths, width)
    lines = [_line([c.head for c in columns], shown, widths)]
    if terminal.has_colours():
        lines = [terminal.paint(lines[0], terminal.BOLD)]
    for number, row in enumerate(rows):
        style = styles[number] if styles and terminal.has_colours() else None
        lines.append(_line(row, shown, widths, style, style_of))
    return lines


CUT_WIDTH = 16
"""A cell that may be cut short keeps so much before a whole column is dropped."""


def _fit(
    columns: Sequence[Column], shown: list[int], widths: list[int], width: int
) -> None:
    """Cut cells short and drop columns until a line fits."""
    natural = list(widths)
    for i in shown:
        if columns[i].cut:
            widths[i] = min(widths[i], CUT_WIDTH)

    def room() -> int:
        return width - sum(widths[i] + len(GAP) for i in shown) + len(GAP)

    for i in sorted(shown, key=lambda i: columns[i].keep):
        if columns[i].keep and room() < 0:
            shown.remove(i)
    for i in [i for i in shown if columns[i].cut]:
        most = widths[i] + room()
        widths[i] = max(min(most, natural[i]), len(columns[i].head))


def _line(
    row: Sequence[str],
    shown: Sequence[int],
    widths: Sequence[int],
    style: str | None = None,
    style_of: int = 0,
) -> str:
    cells = []
    for i in shown:
        cell = row[i]
        if len(cell) > widths[i]:
            cell = cell[: widths[i] - 1] + ELLIPSIS
        cell = cell.ljust(widths[i])
        cells.append(terminal.paint(cell, style) if style and i == style_of else cell)
    return GAP.join(cells).rstrip()


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal."""
    print("\n".join(table(columns, rows, terminal.width())))


def print_problems(problems: Sequence[Problem], *, json: bool) -> int:
    """Print problems; return the exit code, which is 1 if there are any."""
    if json:
        print_json(problems=[problem._asdict() for problem in problems])
    else:
        for problem in problems:
            text = f"{problem.description}\n    {problem.remedy}"
            print(terminal.plain(text, lines=True))
    if not problems and not json:
        print("nothing is wrong", file=sys.stderr)
    return int(bool(problems))


def wait_left(lease: Lease) -> float | None:
    """Return the seconds left of a lease's FIN WAIT; None before its release."""
    if lease.deadline is None:
        return None
    from tapster.kernel.boot import boottime  # late: few leases wait

    left = lease.deadline - boottime()
    return round(max(left, 0.0), 3)


def netns_name(path: str) -> str:
    """Return how people call the namespace at `path`."""
    if not path:
        return ""
    from tapster.kernel.netns import NAMED  # late: most leases are in the host's

    return path.removeprefix(f"{NAMED}/")


def age(seconds: float) -> str:
    """Return a duration in its largest unit: 45s, 12m, 5h, 3d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def timestamp(seconds: float | None) -> str | None:
    """Return a moment for programs: ISO 8601, in UTC, with its offset."""
    if seconds is None:
        return None
    from datetime import UTC, datetime  # only here: `tapster add` does without

    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OSError, OverflowError, ValueError):
        return None  # no calendar has it: a daemon or another host says so
    return moment.isoformat(timespec="milliseconds")


def moment(seconds: float | None) -> str:
    """Return a moment for people, in local time."""
    return "-" if seconds is None else local_time(seconds, "%Y-%m-%d %H:%M:%S")


def local_time(seconds: float, format: str) -> str:
    """Return a moment in local time, as strftime(3) formats it."""
    try:
        return time.strftime(format, time.localtime(seconds))
    except (OSError, OverflowError, ValueError):
        return "?"  # as in `timestamp`
