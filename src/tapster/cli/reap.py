# SPDX-License-Identifier: Apache-2.0
"""Delete the devices whose FIN WAIT is over. It also happens by itself."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="end every FIN WAIT at this moment"
    )


def run(options: argparse.Namespace, host: "Host | Client") -> int:
    print(f"reaped {host.reap(now=options.now)}")
    return 0
