# SPDX-License-Identifier: Apache-2.0
"""Every example of docs/library.md runs as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tapster
from lab import iproute
from lab.daemon import Daemon
from tests.repo.pages import ROOT

PAGE = ROOT / "docs/library.md"
EXAMPLES = re.findall(
    r"^## ([^\n]+)\n|^```python\n(.*?)^```$",
    PAGE.read_text("utf-8"),
    re.MULTILINE | re.DOTALL,
)


def examples() -> list[tuple[str, str]]:
    """The section and the code of each example."""
    found, section = [], ""
    for heading, code in EXAMPLES:
        section = heading or section
        if code:
            found.append((section, code))
    return found


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("section", "code"),
    [pytest.param(*example, id=example[0]) for example in examples()],
)
def test_an_example_runs(world: None, tmp_path: Path, section: str, code: str) -> None:
    vmm = tmp_path / "qemu-system-x86_64"  # a VM that ends by itself
    vmm.write_text("#!/bin/sh\n")
    vmm.chmod(0o755)
    with Daemon() as daemon:
        daemon.start()
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TAPSTER_LEDGER": f"{tmp_path}/ledger.db",
            "TAPSTER_SOCKET": str(daemon.socket),
        }
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (section, done.stderr)
        assert done.stderr == ""
        assert iproute.ports() == set(), "each example ends its leases"


def test_every_method_of_a_manager_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    for name in dir(tapster.AnyHost):
        if not name.startswith("_") and name != "close":
            assert f"`{name}" in text, name
