# SPDX-License-Identifier: Apache-2.0
"""Release devices. Each goes down at once, and holds its name a while longer."""

import argparse
import sys
from typing import TYPE_CHECKING

from tapster.errors import TapsterError

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lease", nargs="+", metavar="NAME|ID", help="what to release")
    parser.add_argument("--netns", metavar="NS", help="where to look for names first")


def run(options: argparse.Namespace, host: "Host | Client") -> int:
    failed = False
    for wanted in options.lease:
        try:
            host.release(host.find(wanted).id)
        except TapsterError as error:
            print(f"tapster: {error}", file=sys.stderr)
            failed = True
    return int(failed)
