# SPDX-License-Identifier: Apache-2.0
"""How many instructions a process executes, which no other load changes."""

import re
import subprocess


def instructions(*command: str) -> int:
    """Run a command to its end; the instructions of the process itself, in user
    mode."""
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run(
        [*callgrind, *command], check=True, capture_output=True, text=True
    )
    counted = re.search(r"Collected : (\d+)", done.stderr)
    assert counted is not None, done.stderr
    return int(counted[1])
