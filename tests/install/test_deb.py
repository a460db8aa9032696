# SPDX-License-Identifier: Apache-2.0
"""The Debian package builds, and lintian has nothing to say about it."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_package_holds_what_a_host_needs(package: Path) -> None:
    listing = subprocess.run(
        ["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True
    ).stdout
    for path in (
        "/usr/bin/tapster",
        "/usr/bin/tapsterd",
        "/usr/bin/tapster-cni",
        "/usr/bin/tapster-qemu-bridge-helper",
        "/systemd/system/tapsterd.socket",
        "/systemd/network/10-tapster.link",
        "/udev/rules.d/70-tapster.rules",
        "/usr/lib/sysusers.d/tapster.conf",
        "/usr/share/man/man8/tapsterd.8.gz",
        "/etc/tapster/tapster.toml",
    ):
        assert f"{path}\n" in listing, path
    assert "/usr/lib/cni/tapster-cni -> ../../bin/tapster-cni\n" in listing


def test_the_packaged_programs_start_isolated(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    for program in (tmp_path / "usr/bin").iterdir():
        assert program.read_text().startswith("#!/usr/bin/python3 -IS\n"), program
