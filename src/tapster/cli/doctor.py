# SPDX-License-Identifier: Apache-2.0
"""Say what is wrong on this host, and what would mend it.

Exit code 1 if anything is. Nothing is changed, except by --remove, which
deletes the devices that a lost ledger has left behind.
"""

import argparse
import sys

from tapster import doctor
from tapster.cli import output
from tapster.host import Host


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--remove",
        metavar="LEDGER-ID",
        help="delete the devices that carry the stamp of this lost ledger",
    )


def run(options: argparse.Namespace, host: Host) -> int:
    if options.remove:
        for name in host.remove_leftovers(options.remove):
            print(f"deleted {name}")
        return 0
    findings = doctor.examine(host)
    if options.json:
        output.print_json(findings=[one._asdict() for one in findings])
    else:
        for one in findings:
            print(f"{one.problem}\n    {one.remedy}")
    if not findings:
        print("nothing is wrong", file=sys.stderr)
    return int(bool(findings))
