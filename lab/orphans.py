# SPDX-License-Identifier: Apache-2.0
"""Start daemons, and collect what they leave, as a good init does.

libvirt's guests become orphans, and libvirt waits until an ended guest is collected.
The first process of a container may take its time. So this process stands in for it:
each line of its input is a command, which it starts, and whose pid it prints.
"""

import os
import select
import shlex
import signal

from tapster.kernel import libc


def main() -> None:
    libc.adopt_orphans()
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _collect()
        if 0 in ready:
            data = os.read(0, 4096)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                words = shlex.split(line.decode())
                pid = os.posix_spawnp(
                    words[0], words, os.environ, setsigdef=[signal.SIGCHLD]
                )
                print(pid, flush=True)


def _collect() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


if __name__ == "__main__":
    main()
