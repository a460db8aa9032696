# SPDX-License-Identifier: Apache-2.0
"""Run commands: Tapster's own, and others that judge it."""

import subprocess
import sys
from pathlib import Path

TAPSTER = str(Path(sys.executable).with_name("tapster"))


def sh(command: str) -> str:
    """Run a command; its output. Fails the test if it fails."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def refused(command: str) -> str:
    """Run a command that must fail; what it complains of."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode != 0, f"{command} succeeded: {done.stdout}"
    return done.stderr
