# SPDX-License-Identifier: Apache-2.0
"""The time since the boot, as outside all time namespaces (time_namespaces(7)).

In a time namespace, `CLOCK_BOOTTIME` and the start times in /proc are shifted. The
ledger is shared by processes in several of them, so it has no shifted times.
"""

import os
import time
from errno import EINVAL

INITIAL = 0xEFFFFFFA
"""The inode of the initial time namespace (PROC_TIME_INIT_INO)."""


def boottime() -> float:
    """Return `CLOCK_BOOTTIME` of the initial time namespace, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - _known_shift() / 1e9


_found_shift: list[int] = []


def shift() -> int:
    """Return how far this process's boot time is ahead, in nanoseconds.

    Raise OSError if the process has asked for another time namespace, and has not
    entered it: then /proc shows the shift of that namespace.
    """
    if not _found_shift:
        _found_shift.append(_find_shift())
    return _found_shift[0]


def _find_shift() -> int:
    try:
        own = os.stat("/proc/self/ns/time").st_ino
        if own == INITIAL:
            return 0
        if os.stat("/proc/self/ns/time_for_children").st_ino != own:
            raise OSError(EINVAL, "unshare(CLONE_NEWTIME) was called; exec first")
        with open("/proc/self/timens_offsets") as file:
            offsets = {line.split()[0]: line.split()[1:] for line in file}
    except FileNotFoundError:
        return 0  # the kernel has no time namespaces
    seconds, nanoseconds = map(int, offsets["boottime"])
    return seconds * 1_000_000_000 + nanoseconds


def _known_shift() -> int:
    try:
        return shift()
    except OSError:
        return 0
