# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any moment, also during imports: no traceback, nothing half made."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab import iproute, library
from tapster import Host

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

# Sends itself SIGINT at one of the calls and returns of functions, by its number;
# with 0, tells how many there are. Python raises KeyboardInterrupt after a call of a
# function in C, never before it. If it did, importlib would keep a lock.
DRIVER = """
import os, signal, sys
number, *words = sys.argv[1:]
number = int(number)
sys.argv = ["tapster", *words]
seen = 0
def hook(frame, event, argument):
    global seen
    if event == "c_call":
        return
    seen += 1
    if seen == number:
        os.kill(os.getpid(), signal.SIGINT)
leave = os._exit
def exit(status):
    sys.setprofile(None)
    if not number:
        print("calls", seen, file=sys.stderr, flush=True)
    leave(status)
os._exit = exit
from tapster.__main__ import command
# The first thing that command does. Before it, Python itself starts.
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.setprofile(hook)
command()
"""
MOMENTS = 24
COMMANDS = ("ls", "add --bridge br0", "rm --all", "who", "run --bridge br0 -- true")


def interrupted(
    number: int, command: str, ledger: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(number), *command.split()],
        env={**os.environ, "TAPSTER_LEDGER": str(ledger)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_at_any_moment_leaves_no_traceback(ledger: Path, command: str) -> None:
    whole = interrupted(0, command, ledger)
    found = re.search(r"calls (\d+)", whole.stderr)
    assert found, whole
    calls = int(found[1])
    moments = range(1, calls, calls // MOMENTS)
    for number in moments:
        done = interrupted(number, command, ledger)
        assert "Traceback" not in done.stderr, (number, done.stderr)
        # -2: the signal ended the process while there was nothing to undo.
        assert done.returncode in (130, -2, 0, 1), (number, done)
    with Host(ledger, reaper=library.no_reaper) as host:
        host.recover()
        host.reap(now=True)
        names = {lease.name for lease in host.leases()}
    assert iproute.ports() <= names
