# SPDX-License-Identifier: Apache-2.0
"""One client of a storm: acquires and releases until it is killed.

Run as `python -m tests.daemon.stress SOCKET SEED`. It writes a letter to standard
output for each thing that happens: p for a pair, r for a refusal that was right, l
for a daemon that was lost. Ends with an exit code other than 0 at the first thing
that is wrong.
"""

import fcntl
import os
import random
import select
import struct
import sys

import tapster
from tapster import Client, DaemonError, NotAllowed, Tap

TUNGETIFF = 0x800454D2


def pair(host: Client, owner: str, chance: random.Random) -> bytes:
    """Acquire and release once, one way or another; the letter for it."""
    if chance.random() < 0.05:
        try:
            host.acquire(Tap(bridge="br9"))
        except NotAllowed:
            return b"r"
        raise AssertionError("br9 is nobody's")
    spec = Tap(bridge="br0", owner=owner, fin_wait=0.2)
    bound = chance.choice(["", "process", "close"])
    opened = host.acquire(
        spec,
        pid=os.getpid() if bound == "process" else None,
        on_close=bound == "close",
    )
    answer = fcntl.ioctl(opened.fds[0], TUNGETIFF, bytes(40))
    lease = opened.lease
    name = struct.unpack("16sH22x", answer)[0].rstrip(b"\0").decode()
    assert name == lease.name, (name, lease)
    assert (lease.owner, lease.caller_uid) == (owner, os.getuid()), lease
    if chance.random() < 0.1:
        assert {one.caller_uid for one in host.leases()} == {os.getuid()}
    opened.close()
    host.release(lease.id)
    return b"p"


def main(path: str, seed: int) -> None:
    chance = random.Random(seed)
    owner = f"client {seed} {os.getpid()}"
    while True:
        try:
            with tapster.connect(path) as host:
                for _ in range(chance.randrange(1, 40)):
                    os.write(1, pair(host, owner, chance))
        except DaemonError:
            os.write(1, b"l")
            select.poll().poll(20)  # until it may be back


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
