# SPDX-License-Identifier: Apache-2.0
"""List the leases."""

import argparse
from typing import TYPE_CHECKING

from tapster.cli import output
from tapster.model import Lease

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client

HEADS = ("NAME", "STATE", "KIND", "ON", "MAC", "OWNER", "NETNS", "ID")


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="also those released, in FIN WAIT"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, host: "Host | Client") -> int:
    leases = host.leases(all=options.all)
    if options.json:
        output.print_json(leases=[output.lease_json(lease) for lease in leases])
    else:
        output.print_table(HEADS, [row(lease) for lease in leases])
    return 0


def row(lease: Lease) -> tuple[str, ...]:
    """A lease as a line of the table."""
    left = output.wait_left(lease)
    return (
        lease.name,
        lease.state if left is None else f"{lease.state} {left:.1f}s",
        lease.kind,
        lease.wiring.bridge or lease.wiring.ovs or lease.lower or "-",
        lease.mac,
        lease.owner or "-",
        output.netns_name(lease.netns.path) or "-",
        lease.id,
    )
