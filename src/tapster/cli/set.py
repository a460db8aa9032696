# SPDX-License-Identifier: Apache-2.0
"""Change what a leased device is connected to, while its VM runs."""

import argparse

from tapster.cli import output, wire
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import Manager


def declare(parser: argparse.ArgumentParser) -> None:
    wire.declare(parser)
    parser.add_argument("lease", metavar="NAME|ID", help="which lease")
    parser.add_argument(
        "--netns",
        metavar="NS",
        help="look for the name in this network namespace first",
    )
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: argparse.Namespace, host: "Manager") -> int:
    changes = wire.changes(options)
    if not changes:
        raise RequestError("nothing to change was given; see: tapster set --help")
    lease = host.set(host.find(options.lease).id, **changes)
    if options.json:
        output.print_json(lease=output.lease_json(lease))
    return 0
