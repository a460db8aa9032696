# SPDX-License-Identifier: Apache-2.0
"""The demo shows what it says it shows, and leaves nothing behind, however it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo import race
from lab import keeper
from lab.browser import Browser
from lab.lines import Lines

pytestmark = pytest.mark.e2e

RACE = [sys.executable, "-W", "error", race.__file__]
TIMEOUT = 20.0


def test_the_demo_shows_the_race_and_the_fix(tmp_path: Path) -> None:
    """Its exit status says whether both were seen; its page shows both."""
    page = tmp_path / "demo.html"
    done = subprocess.run(
        [*RACE, "--report", page], check=False, capture_output=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stderr == b""
    with Browser() as browser:
        browser.open(page, width=1280, height=800, scheme="light")
        rows = browser.run(
            "[...document.querySelectorAll('tbody tr')].map(row =>"
            " [...row.cells].map(cell => cell.innerText))"
        )
    text = "\n".join(" ".join(row) for row in rows)
    assert len(rows) == 4, text
    assert [
        row for row in rows if "kernel's names" in " ".join(row) and "vnet1" in row
    ] == []
    assert "vnet1" in text


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["ctrl-c", "kill-9"],
)
def test_the_demo_leaves_no_process_behind(number: signal.Signals, status: int) -> None:
    with subprocess.Popen(RACE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        Lines(demo.stdout).wait_for("VM A runs", TIMEOUT)
        home = keeper.namespace(demo.pid)
        demo.send_signal(number)
        # To the end of its output, which its VMs and its keeper may write to, too.
        _, errors = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == status
    assert b"Traceback" not in errors
    assert [pid for pid in keeper.others() if keeper.namespace(pid) == home] == []
