# SPDX-License-Identifier: Apache-2.0
"""README's quick start, typed as it stands there: commands, outputs, policy."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.daemon import ALICE, Daemon
from lab.lines import Lines
from lab.namespaces import namespaces
from lab.reapers import kill_reapers

pytestmark = pytest.mark.kernel

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text("utf-8")
QEMU = """#!/bin/sh
shift
echo '{{"execute": "qmp_capabilities"}}' | cat - '{fifo}' |
    exec {qemu} -m 64 -display none -nodefaults -S -qmp stdio "$@" |
    sed -u 's/^{{"return".*/runs/'
"""
"""QEMU without what README leaves out (...), until a fifo is written to."""
MOVING = {
    r"\b[0-9a-f]{16}\b": "ID",
    r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b": "MAC",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d": "TIME",
    r"\b\d+(\.\d+)?s\b": "SECONDS",
    r"uid \d+|\"\d+\"": "UID",
    r"[ \t]+": " ",
}
"""What differs from one run to the next."""


def section(title: str) -> list[str]:
    """Return the blocks of code in a section of README."""
    _, _, rest = TEXT.partition(f"\n## {title}\n")
    body = rest.partition("\n## ")[0]
    return re.findall(r"^```\w*\n(.*?)^```", body, re.MULTILINE | re.DOTALL)


def typed(block: str, prompt: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block, and what README shows as its output."""
    commands = re.split(rf"^{re.escape(prompt)} ", block, flags=re.MULTILINE)[1:]
    for command in commands:
        lines = command.splitlines(keepends=True)
        size = 1
        while lines[size - 1].endswith("\\\n"):
            size += 1
        yield "".join(lines[:size]), "".join(lines[size:])


def steady(output: str) -> str:
    for pattern, name in MOVING.items():
        output = re.sub(pattern, name, output)
    return output.strip()


@pytest.fixture
def shell(tmp_path: Path, ledger: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a root shell on a host without a bridge."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    stand_in = tmp_path / "bin/qemu-system-x86_64"
    stand_in.parent.mkdir()
    stand_in.write_text(QEMU.format(fifo=fifo, qemu=qemu))
    stand_in.chmod(0o755)
    programs = Path(sys.executable).parent
    with namespaces():
        yield {
            **os.environ,
            "PATH": f"{stand_in.parent}:{programs}:{os.environ['PATH']}",
            "TAPSTER_LEDGER": str(ledger),
        }
        kill_reapers(ledger)


def test_the_quick_start_of_root(shell: dict[str, str], tmp_path: Path) -> None:
    start, run, other = section("Quick start")[:3]
    ((vm, nothing),) = typed(run, "#")
    assert nothing == ""
    compare(start, shell)
    with subprocess.Popen(
        ["bash", "-c", vm], env=shell, stdout=subprocess.PIPE, start_new_session=True
    ) as running:
        try:
            assert running.stdout is not None
            Lines(running.stdout).wait_for("runs", 60)
            with (tmp_path / "fifo").open("w") as stop:
                compare(other, shell)
                stop.write('{"execute": "quit"}\n')
            assert running.wait(60) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def compare(block: str, environment: dict[str, str]) -> None:
    """Type each command of a block, and compare its output with README's."""
    for command, shown in typed(block, "#"):
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert steady(done.stdout) == steady(shown), command


def test_users_who_are_not_root() -> None:
    policy, session = section("Users who are not root")
    assert 'groups = ["kvm"]' in policy
    policy = policy.replace('groups = ["kvm"]', f'users = ["{ALICE}"]')
    with namespaces():
        for bridge in ("br0", "br1"):
            subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        with Daemon(policy=policy) as daemon:
            daemon.start()
            commands = list(typed(session, "$"))
            assert len(commands) == 3
            for command, shown in commands[:2]:
                words = command.split()
                assert words.pop(0) == "tapster"
                status = int(shown.startswith("tapster: "))
                done = daemon.tapster(*words, status=status)
                assert steady(done.stdout + done.stderr) == steady(shown), command
            # tests/daemon/test_qemu.py runs QEMU with the helper of the third.
            assert "helper=/usr/bin/tapster-qemu-bridge-helper" in commands[2][0]
