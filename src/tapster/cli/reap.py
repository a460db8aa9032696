# SPDX-License-Identifier: Apache-2.0
"""Delete the devices whose FIN WAIT is over. The reaper also does so by itself."""

import argparse

from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import Manager


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="end every FIN WAIT at this moment"
    )


def run(options: argparse.Namespace, host: "Manager") -> int:
    print(f"reaped {host.reap(now=options.now)}")
    return 0
