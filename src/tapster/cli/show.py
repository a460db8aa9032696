# SPDX-License-Identifier: Apache-2.0
"""Show all of one lease, and its device as the kernel has it now."""

import argparse

from tapster.cli import output
from tapster.host import Host


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lease", metavar="NAME|ID", help="which lease")
    parser.add_argument("--netns", metavar="NS", help="where to look for names first")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, host: Host) -> int:
    lease = host.find(options.lease)
    link = host.link(lease)
    if options.json:
        output.print_json(lease=output.lease_json(lease), device=output.link_json(link))
        return 0
    for field, value in output.lease_json(lease).items():
        if value is not None:
            print(f"{field:<15}{value}")
    if link is None:
        print(f"{'device':<15}is not there: tapster recover")
        return 0
    for field, value in link._asdict().items():
        print(f"device {field:<8}{value}")
    return 0
