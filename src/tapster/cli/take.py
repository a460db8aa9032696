# SPDX-License-Identifier: Apache-2.0
"""Connect a device that was on standby, as it was requested.

The target host of a migration acquires the device with --standby before the
VM arrives, and takes it when the VM runs there. May be repeated.
"""

import argparse

from tapster.cli import output
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lease", metavar="NAME|ID", help="which lease")
    parser.add_argument("--netns", metavar="NS", help="where to look for names first")
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: argparse.Namespace, host: "Host | Client") -> int:
    lease = host.set(host.find(options.lease).id, standby=False)
    if options.json:
        output.print_json(lease=output.lease_json(lease))
    return 0
