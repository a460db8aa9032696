#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start VMs from an asyncio program, which nothing may block.

    orchestrator.py BRIDGE COUNT COMMAND...

The client waits for the daemon's answers, so it runs in threads. A client is for one
thread at a time: each call opens its own, which takes less than a millisecond. COMMAND
has its device's properties in NAME, MAC and FD. The device ends with COMMAND.
"""

import asyncio
import os
import sys
from collections.abc import Sequence

import tapster


def acquire(spec: tapster.Tap) -> tapster.OpenDevice:
    with tapster.connect() as client:
        # If this program is killed, the lease ends when the VM has closed the device.
        return client.acquire(spec, pid=os.getpid())


def release(device: tapster.OpenDevice) -> None:
    with tapster.connect() as client:
        client.release(device)


async def run_vm(number: int, bridge: str, command: Sequence[str]) -> int:
    spec = tapster.Tap(bridge=bridge, owner=f"vm-{number}")
    device = await asyncio.to_thread(acquire, spec)
    try:
        properties = {"NAME": device.name, "MAC": device.mac, "FD": str(device.fds[0])}
        with device:  # the VM has the descriptors, too: ours can go
            process = await asyncio.create_subprocess_exec(
                *command, env={**os.environ, **properties}, pass_fds=device.fds
            )
        return await process.wait()
    finally:
        await asyncio.to_thread(release, device)


async def main(bridge: str, count: str, *command: str) -> int:
    tasks = [run_vm(number, bridge, command) for number in range(int(count))]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, result in enumerate(results):
        if result != 0:
            print(f"vm-{number}: {result}", file=sys.stderr)
    return int(any(results))


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
