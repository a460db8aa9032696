# SPDX-License-Identifier: Apache-2.0
"""Starting a process that its starter need not look after."""

import os
import signal
import sys
from contextlib import suppress
from errno import EAGAIN


def start(module: str, argument: str) -> None:
    """Run `python -m MODULE ARGUMENT` in a session of its own, without input or
    output. It is init's child: no zombie is left to the caller. Raises OSError."""
    # -P, so that no module is taken from the directory the caller happens to be in.
    command = [sys.executable, "-P", "-m", module, argument]
    shell = ["sh", "-c", '"$@" &', "sh", *command]
    # It is to hold nothing of the caller's open, a lock say, for as long as it
    # lives; and whatever signals the caller blocks, it must be possible to end it.
    fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
    pid = os.posix_spawn(
        "/bin/sh",
        shell,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in fds if fd > 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
    )
    with suppress(ChildProcessError):  # a caller that ignores SIGCHLD has none
        _, status = os.waitpid(pid, 0)
        if status:
            raise OSError(EAGAIN, "the shell could not fork")
