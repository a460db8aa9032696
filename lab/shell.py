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


def write_settings(text: str) -> None:
    """Write /etc/tapster/tapster.toml of this mount namespace."""
    # /etc is the host's: an overlay takes what is written.
    sh("mount -t tmpfs tmpfs /mnt")
    sh("mkdir /mnt/upper /mnt/work")
    sh(
        "mount -t overlay overlay -o "
        "lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc"
    )
    settings = Path("/etc/tapster")
    settings.mkdir(exist_ok=True)
    (settings / "tapster.toml").write_text(text)
