# SPDX-License-Identifier: Apache-2.0
"""Put Tapster into a host, as `make install` does, and this tree beside it."""

import io
import subprocess
import tarfile
from pathlib import Path

from lab.host.debian import DebianHost

TREE = Path(__file__).parents[2]
THERE = "/usr/src/tapster"
"""The tree in the host, from which the tests run."""

INSTALL = (
    *("python3", "-m", "tapster.install", "install"),
    *("--prefix", "/usr", "--python", "/usr/bin/python3"),
)


def install(host: DebianHost) -> None:
    """Install Tapster and its units, and lay the tree beside it; start nothing."""
    host.unpack(tree(), THERE)
    host.run(*INSTALL, environment={"PYTHONPATH": f"{THERE}/src"})


def tree() -> bytes:
    """This tree as a tar archive: the files that git does not ignore."""
    command = [
        *("git", "-c", "safe.directory=*", "ls-files", "-z"),
        *("--cached", "--others", "--exclude-standard"),
    ]
    listed = subprocess.run(command, cwd=TREE, capture_output=True, check=True).stdout
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in listed.decode().rstrip("\0").split("\0"):
                if (TREE / name).exists():  # and not deleted since the last commit
                    archive.add(TREE / name, arcname=name)
        return buffer.getvalue()
