# SPDX-License-Identifier: Apache-2.0
"""A process that acquires many leases, and prints how many KiB that took.

Run as `python -m bench.hoard LEDGER LEASES BRIDGE...`. The leases stay.
"""

import sys

from bench.memory import resident
from tapster import Host, Tap


def main(ledger: str, leases: str, *bridges: str) -> None:
    with Host(ledger, reaper=lambda _: None) as host:
        before = resident()
        held = [
            host.acquire(Tap(bridge=bridges[number % len(bridges)]))
            for number in range(int(leases))
        ]
        print(resident() - before)
        del held


if __name__ == "__main__":
    main(*sys.argv[1:])
