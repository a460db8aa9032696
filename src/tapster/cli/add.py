# SPDX-License-Identifier: Apache-2.0
"""Make a device and print its name. It stays until `tapster rm`."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from tapster.cli import nic, output

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    nic.declare(parser)
    parser.add_argument("--netns", metavar="NS", help="make it in there (name or path)")
    parser.add_argument("--json", action="store_true", help="print the lease as JSON")


def run(options: argparse.Namespace, host: "Host | Client") -> int:
    lease = host.acquire(nic.spec(options))
    for fd in lease.fds:
        os.close(fd)
    try:
        if options.json:
            output.print_json(lease=output.lease_json(lease))
        else:
            print(lease.name)
        sys.stdout.flush()
    except OSError:
        host.release(lease.id)  # nobody has learnt of it
        raise
    return 0
