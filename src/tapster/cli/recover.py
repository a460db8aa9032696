# SPDX-License-Identifier: Apache-2.0
"""Make ledger and kernel agree after a crash. May run at any time."""

import argparse

from tapster.cli import output
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import Manager


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only print the repairs")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, host: "Manager") -> int:
    repairs = host.recover(dry_run=options.dry_run)
    if options.json:
        output.print_json(
            repairs=[
                {"action": repair.action, "lease": output.lease_json(repair.lease)}
                for repair in repairs
            ]
        )
        return 0
    for lease, action in repairs:
        print(f"{action} {lease.name} ({lease.state}, {lease.owner or '-'}) {lease.id}")
    return 0
