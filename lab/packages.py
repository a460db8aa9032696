# SPDX-License-Identifier: Apache-2.0
"""Packages for tests: Debian's, and wheels."""

import subprocess
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement


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


def pack_wheels(name: str, folder: Path) -> None:
    """Pack a package that is installed here, and what it needs, into wheels again."""
    package = metadata.distribution(name)
    wheel = f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl"
    with ZipFile(folder / wheel, "w") as archive:
        for file in package.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(file.locate(), str(file))
    for text in package.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            pack_wheels(needed.name, folder)
