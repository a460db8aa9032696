# SPDX-License-Identifier: Apache-2.0
"""Connect a device that was on standby, as its request says.

The target host of a migration acquires the device with --standby before the
VM arrives, and takes it when the VM runs there. May be repeated.
"""

from tapster.cli import output, selection
from tapster.cli.options import Options
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    selection.declare_one(parser)
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: Options, host: "AnyHost") -> int:
    lease = host.set(selection.one(options, host).id, standby=False)
    if options.json:
        output.print_json(lease=output.lease_json(lease))
    return 0
