# SPDX-License-Identifier: Apache-2.0
"""Starting a process that belongs to init and not to its starter."""

import os
import signal
import sys
from contextlib import suppress
from errno import EAGAIN


def start(module: str, argument: str) -> None:
    """Run `python -m MODULE ARGUMENT` in a new session, without input or output.

    The process becomes a child of init. So the caller has no zombie to collect.
    Raise OSError.
    """
    # -P: take no module from the caller's working directory.
    command = [sys.executable, "-P", "-m", module, argument]
    shell = ["sh", "-c", '"$@" &', "sh", *command]
    # The process must not keep the caller's descriptors, such as a lock, open. And it
    # must be possible to end it, whatever signals the caller blocks or ignores.
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
    with suppress(ChildProcessError):  # the caller ignores SIGCHLD
        _, status = os.waitpid(pid, 0)
        if status:
            raise OSError(EAGAIN, "the shell could not fork")
