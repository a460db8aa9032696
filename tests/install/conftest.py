# SPDX-License-Identifier: Apache-2.0
"""The Debian package of this tree, built once for a process of tests."""

import subprocess
from pathlib import Path

import pytest

from lab import readme

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built as README shows, from a copy: the checkout stays as it is."""
    (build, _), *_ = readme.ways()["deb"]
    copy = tmp_path_factory.mktemp("deb") / "tree"
    subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
    done = subprocess.run(
        ["sh", "-c", build.removeprefix("sudo ")],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (built,) = (copy / "dist" / "deb").glob("*.deb")
    return built
