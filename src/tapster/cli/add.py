# SPDX-License-Identifier: Apache-2.0
"""Create a device and print its name. It stays until `tapster rm`.

A script keeps the lease id (--id): an id stays this device's, whereas the name
may be another VM's after a release.
"""

import sys

from tapster.cli import nic, output, values
from tapster.cli.options import Options
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    nic.declare(parser)
    nic.declare_wait(parser, default=0.0)
    parser.add_argument(
        "--netns",
        metavar="NS",
        type=values.given_text,
        help="create it in this network namespace (name or path)",
    )
    parser.add_argument(
        "--pid",
        type=values.number,
        metavar="PID",
        help="release it when this process has ended and no process has it open",
    )
    parser.add_argument("--id", action="store_true", help="print the lease id alone")
    parser.add_argument(
        "--format",
        metavar="TEXT",
        help="print this, as with ls: '{name} {id}'",
    )
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: Options, host: "AnyHost") -> int:
    output.check_forms(options)
    if options.format is not None:
        from tapster.cli import ls  # rarely needed

        parts = ls.parts_of(options.format)
    (opened,) = host.acquire_waiting(
        [nic.spec(options)], wait=options.wait, pid=options.pid
    )
    with opened:
        lease = opened.lease
    try:
        if options.json:
            output.print_json(lease=output.lease_json(lease))
        elif options.format is not None:
            print(ls.fill_in(parts, lease))
        else:
            print(lease.id if options.id else lease.name)
        sys.stdout.flush()
    except OSError:
        host.release(lease.id)  # no program knows its name
        raise
    return 0
