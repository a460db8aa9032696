# SPDX-License-Identifier: Apache-2.0
"""A search through all processes does not depend on what their files are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import library, shell
from tapster import Host, State, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

LONG = """
import ctypes, os, sys
os.chdir(sys.argv[1])
for _ in range(20):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
file = open("file", "w")
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"/proc/self/ns/net", b"file", None, 4096, None):
    sys.exit(os.strerror(ctypes.get_errno()))
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that prints a line when it is ready, and ends with its input."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == "open\n"
        yield program
        program.communicate()


def recover_a_lost_device(host: Host, ledger: Path) -> None:
    """Recover looks for the device in every namespace: all processes may keep one."""
    lease = library.acquire(host, Tap(bridge="br0", fin_wait=600))
    shell.sh("ip link del vnet0")
    command = [shell.TAPSTER, "--ledger", str(ledger), "recover"]
    subprocess.run(command, check=True)
    assert host.find(lease.id).state is State.FIN_WAIT


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="the kernel has no FUSE")
def test_a_server_that_does_not_answer_stops_no_search(
    host: Host, ledger: Path, tmp_path: Path
) -> None:
    """A VM's disk may be on such a server."""
    (tmp_path / "nfs").mkdir()
    with running(sys.executable, "-m", "lab.hung", str(tmp_path / "nfs")) as server:
        recover_a_lost_device(host, ledger)
        assert server.poll() is None, "the search waited until the server gave up"


def test_a_path_that_is_too_long_stops_no_search(
    host: Host, ledger: Path, tmp_path: Path
) -> None:
    with running(sys.executable, "-c", LONG, str(tmp_path)):
        recover_a_lost_device(host, ledger)
