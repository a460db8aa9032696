# SPDX-License-Identifier: Apache-2.0
"""Show all of one lease, and its device as the kernel has it now."""

import argparse
from typing import TYPE_CHECKING

from tapster.cli import output
from tapster.errors import ServiceUnavailable

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lease", metavar="NAME|ID", help="which lease")
    parser.add_argument("--netns", metavar="NS", help="where to look for names first")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, host: "Host | Client") -> int:
    lease = host.find(options.lease)
    link = host.device(lease)
    try:
        differences = host.differences(lease)
    except ServiceUnavailable as error:
        differences = {"service": str(error)}
    if options.json:
        output.print_json(
            lease=output.lease_json(lease),
            device=output.link_json(link),
            differences=differences,
        )
        return 0
    for field, value in output.lease_json(lease).items():
        if value not in (None, (), {}):
            print(f"{field:<22}{_shown(value)}")
    if link is None:
        print(f"{'device':<22}is not there: tapster recover")
    for field, value in link._asdict().items() if link else ():
        print(f"device {field:<15}{value}")
    for backend, wrong in differences.items():
        print(f"differs {backend:<14}{wrong}: tapster recover")
    return 0


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items() if one is not None)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return value
