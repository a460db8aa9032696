# SPDX-License-Identifier: Apache-2.0
"""Files that take long to make, outside the tree, keyed by a digest of their inputs."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

KEPT = 3
"""Versions of one thing that stay in the cache; the oldest goes first."""


def folder() -> Path:
    """Return the cache's folder, and make it if it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or "/var/cache"
    path = Path(base, "tapster-lab")
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(parts: Iterable[bytes | str]) -> str:
    """Return a short digest of all parts, in their order."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]


def made(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of this kind and key; `make` fills it if it is missing.

    The folder appears whole or not at all. Two processes that ask at the same time
    make it once.
    """
    path = folder() / f"{kind}-{key}"
    with (folder() / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for unfinished in folder().glob(f"making-{kind}-*"):  # its maker was killed
                shutil.rmtree(unfinished)
            with TemporaryDirectory(dir=folder(), prefix=f"making-{kind}-") as new:
                whole = Path(new, "whole")
                whole.mkdir()
                make(whole)
                whole.rename(path)
        os.utime(path)
        _drop_oldest(kind)
    return path


def _drop_oldest(kind: str) -> None:
    versions = sorted(folder().glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
    for path in versions[:-KEPT]:
        shutil.rmtree(path)
