# SPDX-License-Identifier: Apache-2.0
"""Starting a process that its starter need not look after."""

import os
import sys


def start(module: str, argument: str) -> None:
    """Run `python -m MODULE ARGUMENT` in a session of its own, without input or
    output. It is init's child: no zombie is left to the caller."""
    # -P, so that no module is taken from the directory the caller happens to be in.
    command = [sys.executable, "-P", "-m", module, argument]
    shell = ["sh", "-c", '"$@" </dev/null >/dev/null 2>&1 &', "sh", *command]
    os.waitpid(os.posix_spawn("/bin/sh", shell, os.environ, setsid=True), 0)
