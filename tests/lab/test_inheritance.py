# SPDX-License-Identifier: Apache-2.0
"""A test sees nothing of how its run was started."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.inheritance import OPEN_FILES

IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD)


def state_of(name: str) -> str:
    """Read a field of this process's status from proc(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return fields[name].strip()


def test_a_test_starts_in_a_known_environment() -> None:
    ignored = int(state_of("SigIgn"), 16)
    assert [n for n in IGNORED if ignored >> (n - 1) & 1] == []
    assert int(state_of("SigBlk"), 16) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert state_of("Umask") == "0022"
    assert time.tzname[0] == "UTC"
    assert os.environ["LC_ALL"] == "C.UTF-8"
    assert [name for name in os.environ if name.startswith("TAPSTER_")] == []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == min(OPEN_FILES, hard)


def test_a_child_ends_at_ctrl_c() -> None:
    child = subprocess.run(["sh", "-c", "kill -INT $$; echo alive"], check=False)
    assert child.returncode == -signal.SIGINT


def start_badly() -> None:
    """Be a script's background job under nohup, with odd settings."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    os.umask(0o777)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))


@pytest.mark.parametrize(
    "test", [test_a_test_starts_in_a_known_environment, test_a_child_ends_at_ctrl_c]
)
def test_a_run_may_be_started_from_anywhere(test: object) -> None:
    name = getattr(test, "__name__", "")
    odd = {"LC_ALL": "tr_TR.ISO-8859-9", "TZ": "Asia/Kathmandu", "COLUMNS": "20"}
    tapster = {"TAPSTER_LEDGER": "/nowhere", "TAPSTER_SOCKET": "/nowhere"}
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, f"{__file__}::{name}"],
        env={**os.environ, **odd, **tapster},
        check=True,
        preexec_fn=start_badly,
    )
