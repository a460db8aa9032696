# SPDX-License-Identifier: Apache-2.0
"""Debian packages for tests."""

import subprocess
from pathlib import Path


def later_version(package: Path, folder: Path) -> Path:
    """Make the same package as of a later version."""
    tree, later = folder / "tree", folder / "later.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9"))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, later],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return later
