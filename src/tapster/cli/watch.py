# SPDX-License-Identifier: Apache-2.0
"""Print what happens to the leases, as it happens. The daemon tells."""

import argparse

from tapster.cli import output
from tapster.light import TYPE_CHECKING
from tapster.rpc.interface import Event

if TYPE_CHECKING:
    from tapster.rpc.client import Client


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each event"
    )


def run(options: argparse.Namespace, host: "Client") -> int:
    for event in host.watch():
        if options.json:
            output.print_json_line(**event._asdict())
        else:
            print(line(event), flush=True)
    return 0


def line(event: Event) -> str:
    """An event for people."""
    words = [
        output.timestamp(event.time) or "-",
        f"{event.event:<10}",
        event.name or "",
        event.owner and f"({event.owner})",
        event.lease,
        event.detail and f"- {event.detail}",
    ]
    return " ".join(word for word in words if word).rstrip()
