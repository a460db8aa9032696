# SPDX-License-Identifier: Apache-2.0
"""List the leases.

A lease whose device is not as requested has the state "differs". A lease also has it if
nothing tells whether its process lives. `tapster show` says which. The table fits the
terminal: it leaves columns out that do not fit.
"""

import time

from tapster.cli import output, selection, terminal
from tapster.cli.options import Options
from tapster.cli.output import Column
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING, Any
from tapster.model import Lease, State

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

DIFFERS = "differs"
COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("ON", cut=True),
    Column("MAC", 5),
    Column("OWNER", cut=True),
    Column("AGE", 4),
    Column("KIND", 2),
    Column("NETNS", 6),
    Column("ID", 1),
)
STATE_COLUMN = 1
STYLES = {
    State.ACTIVE: terminal.GREEN,
    State.FIN_WAIT: terminal.YELLOW,
    State.RESERVED: terminal.CYAN,
}
SORTS = ("age", "name", "owner", "state", "on")


def declare(parser: "Parser") -> None:
    selection.declare(parser)
    parser.add_argument(
        *("-a", "--all"),
        action="store_true",
        help="also those released, in FIN WAIT",
    )
    parser.add_argument(
        "--sort", choices=SORTS, help="the order; default: oldest first"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print names alone, one a line"
    )
    parser.add_argument(
        "--id", action="store_true", help="print lease ids alone, one a line"
    )
    parser.add_argument(
        "--format",
        metavar="TEXT",
        help="print this for each lease, with {field} as named by --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Options, host: "AnyHost") -> int:
    output.check_forms(options)
    parts = None if options.format is None else parts_of(options.format)
    chosen = selection.choose(options, host, all=options.all)
    leases = sorted(chosen.leases, key=key(options.sort))
    if options.quiet or options.id:
        for lease in leases:
            print(terminal.plain(lease.id if options.id else lease.name))
    elif parts is not None:
        for lease in leases:
            print(fill_in(parts, lease))
    else:
        _show(options, host, leases)
    return int(selection.report(chosen.missing))


def _show(options: Options, host: "AnyHost", leases: list[Lease]) -> None:
    differing = host.differing(leases)
    if options.json:
        output.print_json(
            leases=[
                {**output.lease_json(lease), "differs": lease.id in differing}
                for lease in leases
            ]
        )
        return
    print_leases(leases, differing)


def print_leases(leases: list[Lease], differing: frozenset[str]) -> None:
    """Print the table of leases."""
    print("\n".join(lines(leases, differing, terminal.width())))


def lines(leases: list[Lease], differing: frozenset[str], width: int) -> list[str]:
    """Return the lines of the table of leases."""
    now = time.time()
    rows = [row(lease, now, lease.id in differing) for lease in leases]
    styles = [
        terminal.RED if lease.id in differing else STYLES[lease.state]
        for lease in leases
    ]
    return output.table(COLUMNS, rows, width, styles, STATE_COLUMN)


def row(lease: Lease, now: float, differs: bool = False) -> list[str]:
    """Return a lease as the cells of COLUMNS."""
    left = output.wait_left(lease)
    state = DIFFERS if differs else str(lease.state)
    return [
        lease.name,
        state if left is None else f"{state} {left:.1f}s",
        on(lease) or "-",
        lease.mac,
        lease.owner or "-",
        output.age(now - lease.created),
        str(lease.kind),
        output.netns_name(lease.netns.path) or "-",
        lease.id,
    ]


def on(lease: Lease) -> str | None:
    """Return the bridge or lower device that a lease's device is on."""
    wiring = lease.wiring
    return wiring.bridge or wiring.ovs or wiring.redirect or lease.lower


def parts_of(text: str) -> list[tuple[str, str]]:
    """Return a format as pairs: a field, or "", and the text that follows.

    Raises RequestError for an unknown field, or if there is none.
    """
    first, *others = text.replace("\\t", "\t").replace("\\n", "\n").split("{")
    parts = [("", first)]
    for other in others:
        field, brace, rest = other.partition("}")
        if not brace:
            raise RequestError(f"--format: '{{{other}' has no closing brace")
        name, dot, _ = field.partition(".")
        if dot and name in output.LEASE_FIELDS and name not in output.PARTED_FIELDS:
            raise RequestError(
                f"--format: {name!r} has no parts, as {field!r} asks for; these have: "
                f"{', '.join(output.PARTED_FIELDS)}"
            )
        if name not in output.LEASE_FIELDS:
            known = f"; there are: {', '.join(output.LEASE_FIELDS)}"
            from tapster.cli.hint import hint  # rarely needed

            near = hint(field, output.LEASE_FIELDS) or known
            raise RequestError(f"--format: there is no field {field!r}{near}")
        parts.append((field, rest))
    if len(parts) == 1:
        raise RequestError(
            f"--format {text!r} names no field; as in: --format '{{name}} {{mac}}'"
        )
    return parts


def fill_in(parts: list[tuple[str, str]], lease: Lease) -> str:
    """Return a format with a lease's fields."""
    fields = output.lease_json(lease)
    filled = []
    for field, rest in parts:
        name, _, key = field.partition(".")
        value = fields[name] if name else ""
        if key:
            value = value.get(key) if isinstance(value, dict) else None
        filled += [terminal.plain(_plain(value)), rest]
    return "".join(filled)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(
            f"{key}={part}" for key, part in value.items() if part is not None
        )
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def key(sort: str | None) -> Any:
    """Return the key by which leases are sorted."""
    return {
        None: lambda lease: 0,  # as they come: oldest first
        "age": lambda lease: -lease.created,
        "name": lambda lease: natural(lease.name),
        "owner": lambda lease: (lease.owner, natural(lease.name)),
        "state": lambda lease: (lease.state, natural(lease.name)),
        "on": lambda lease: (on(lease) or "", natural(lease.name)),
    }[sort]


def natural(name: str) -> tuple[str, int, str]:
    """Return a key that puts vnet2 before vnet10."""
    digits = name[len(name.rstrip("0123456789")) :]
    return name[: len(name) - len(digits)], int(digits or -1), name
