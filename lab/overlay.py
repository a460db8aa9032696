# SPDX-License-Identifier: Apache-2.0
"""Folders of the host that are writable in this mount namespace, and unchanged
elsewhere."""

import subprocess
from pathlib import Path

LAYERS = Path("/run/overlays")  # /run is a tmpfs of this mount namespace


def overlay(folder: str) -> None:
    """Let what is written to a folder stay in this mount namespace."""
    layers = LAYERS / folder.strip("/")
    if layers.exists():
        return
    upper, work = layers / "upper", layers / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    options = f"lowerdir={folder},upperdir={upper},workdir={work}"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, folder]
    subprocess.run(mount, check=True)
