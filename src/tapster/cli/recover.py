# SPDX-License-Identifier: Apache-2.0
"""Make ledger and kernel agree after a crash. May run at any time."""

import sys

from tapster.cli import output, terminal
from tapster.cli.options import Options
from tapster.errors import NoSuchLease
from tapster.light import TYPE_CHECKING
from tapster.operations.decision import UNREPAIRED

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    parser.add_argument("--dry-run", action="store_true", help="only print the repairs")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Options, host: "AnyHost") -> int:
    repairs = host.recover(dry_run=options.dry_run)
    _report_the_rest(host)
    if options.json:
        output.print_json(
            repairs=[
                {"action": repair.action, "lease": output.lease_json(repair.lease)}
                for repair in repairs
            ]
        )
        return 0
    for lease, action in repairs:
        line = f"{action} {lease.name} ({lease.state}, {lease.owner or '-'}) {lease.id}"
        print(terminal.plain(line))
    return 0


def _report_the_rest(host: "AnyHost") -> None:
    """Print the differences from the requests that recover does not restore."""
    leases = host.leases(all=False)
    differing = host.differing(leases)
    for lease in leases:
        if lease.id not in differing:
            continue
        try:
            differences = host.differences(lease)
        except NoSuchLease:
            continue  # it has ended in the meantime
        for kind, difference in differences.items():
            if kind in UNREPAIRED:
                text = f"lease {lease.name} ({lease.id}) stays as it is"
                line = terminal.plain(f"tapster: {text}: {difference}")
                print(line, file=sys.stderr)
