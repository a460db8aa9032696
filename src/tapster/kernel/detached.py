# SPDX-License-Identifier: Apache-2.0
"""Starting a process that its starter need not look after."""

import os
import signal
import sys
from contextlib import suppress


def start(module: str, argument: str) -> None:
    """Run `python -m MODULE ARGUMENT` in a session of its own, without input or
    output. It is init's child: no zombie is left to the caller."""
    # -P, so that no module is taken from the directory the caller happens to be in.
    command = [sys.executable, "-P", "-m", module, argument]
    shell = ["sh", "-c", '"$@" </dev/null >/dev/null 2>&1 &', "sh", *command]
    # It is to hold nothing of the caller's open, a lock say, for as long as it
    # lives; and whatever signals the caller blocks, it must be possible to end it.
    fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
    pid = os.posix_spawn(
        "/bin/sh",
        shell,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_CLOSE, fd) for fd in fds if fd > 2],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
    )
    with suppress(ChildProcessError):  # a caller that ignores SIGCHLD has none
        os.waitpid(pid, 0)
