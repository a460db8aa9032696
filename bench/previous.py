# SPDX-License-Identifier: Apache-2.0
"""An earlier commit of Tapster, to be measured beside this tree in the same run."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.install import ROOT


@contextmanager
def checked_out(commit: str | None, directory: Path) -> Iterator[Path | None]:
    """Check a commit out below `directory` for a block; None without a commit."""
    if commit is None:
        yield None
        return
    tree = directory / "previous"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)
