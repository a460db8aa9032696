# SPDX-License-Identifier: Apache-2.0
"""Change what a leased device is connected to, while its VM runs."""

from tapster.cli import output, selection, wire
from tapster.cli.options import Options
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    wire.declare(parser)
    selection.declare_one(parser)
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: Options, host: "AnyHost") -> int:
    changes = wire.changes(options)
    if not changes:
        raise RequestError("nothing to change was given; see: tapster set --help")
    lease = host.set(selection.one(options, host).id, **changes)
    if options.json:
        output.print_json(lease=output.lease_json(lease))
    return 0
