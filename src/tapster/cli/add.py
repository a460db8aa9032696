# SPDX-License-Identifier: Apache-2.0
"""Create a device and print its name. It stays until `tapster rm`."""

import argparse
import sys

from tapster.cli import nic, output
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import Manager


def declare(parser: argparse.ArgumentParser) -> None:
    nic.declare(parser)
    nic.declare_wait(parser, default=0.0)
    parser.add_argument(
        "--netns",
        metavar="NS",
        help="create it in this network namespace (name or path)",
    )
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: argparse.Namespace, host: "Manager") -> int:
    (opened,) = host.acquire_waiting([nic.spec(options)], wait=options.wait)
    with opened:
        lease = opened.lease
    try:
        if options.json:
            output.print_json(lease=output.lease_json(lease))
        else:
            print(lease.name)
        sys.stdout.flush()
    except OSError:
        host.release(lease.id)  # no program knows its name
        raise
    return 0
