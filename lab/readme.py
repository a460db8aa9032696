# SPDX-License-Identifier: Apache-2.0
"""Type what pages show, exactly as it stands there, and compare the outputs."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lab.reapers import wait_for

OPERATION = "docs/operation.md"
PAGES = Path(__file__).parents[1]
USER = "ann"
"""The user who is not root, in the group of README's policy."""
PATIENT = "export TAPSTER_FIN_WAIT=600 COLUMNS=85\n"
"""Typed before commands of root: a FIN WAIT that a busy computer does not outlast."""
MOVING = {
    r"\b[0-9a-f]{16}\b": "ID",
    r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b": "MAC",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d": "TIME",
    r"\b\d+(\.\d+)?[smh]\b": "TIME SPAN",
    r"uid \d+|\"\d+\"": "UID",
    r"[ \t]+": " ",
}
"""What differs from one run to the next."""


class Shell(Protocol):
    """A host where Tapster is installed, and a bridge is not."""

    def enter(self, command: str, user: str = "root") -> str:
        """Type a command; return all that it prints, also if it fails."""

    def running(
        self, command: str, user: str = "root"
    ) -> AbstractContextManager[object]:
        """Type a command that starts a VM; end the VM after the block."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file as an editor does."""

    def daemon(self) -> AbstractContextManager[object]:
        """Let the daemon answer during a block."""

    def taps(self) -> set[str]:
        """Return the names of the taps, as another program sees them."""


def blocks(title: str, page: str = "README.md") -> list[str]:
    """Return the blocks of code in a section of a page."""
    _, found, rest = (PAGES / page).read_text("utf-8").partition(f"\n## {title}\n")
    assert found, f"{page} has no section {title!r}"
    body = rest.partition("\n## ")[0]
    return re.findall(r"^```\w*\n(.*?)^```", body, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """Return the commands of a block that shows no output."""
    return re.findall(r"(?:.*\\\n)*.*[^\\]\n", block)


def ways() -> dict[str, tuple[list[str], list[str], str]]:
    """Return how to install and remove Tapster, and where the Python is that has it."""
    service, *removals, data = map(commands, blocks("Remove", OPERATION))
    pipx, uv, pip, deb, make = zip(
        map(commands, blocks("Install")), removals, strict=True
    )
    return {
        name: (install, [*service, *remove, *after], programs)
        for name, (install, remove), after, programs in (
            ("pipx", pipx, data, "/opt/pipx/venvs/tapster/bin"),
            ("uv", uv, data, "/opt/uv/tapster/bin"),
            ("pip", pip, data, "/opt/tapster/bin"),
            ("deb", deb, [], "/usr/bin"),  # a purge deletes the data
            ("make", make, data, "/usr/bin"),
        )
    }


def session(block: str, prompt: str) -> Iterator[tuple[str, str]]:
    """Yield each command after a prompt, and the output that the page shows."""
    for part in re.split(rf"^{re.escape(prompt)} ", block, flags=re.MULTILINE)[1:]:
        command, *_ = commands(part)
        yield command, part.removeprefix(command)


def follow(shell: Shell, python: str) -> None:
    """Do all that README shows after the installation: as root, as user, in Python."""
    start, run, look = blocks("Quick start")
    ((vm, _),) = session(run, "#")
    _compare(shell, start, "#")
    with shell.running(PATIENT + vm):
        _compare(shell, look, "#")
    _reap(shell)

    policy, reload, calls, with_qemu = blocks("Users who are not root")
    path = policy.split()[policy.split().index("#") + 1]
    shell.write(path, policy.encode())
    for command in commands(reload):
        shell.enter(command)
    with shell.daemon():
        _compare(shell, calls, "$", USER)
        ((vm, _),) = session(with_qemu, "$")
        with shell.running(vm, USER):
            shown = shell.enter("tapster ls", USER)
            assert " active " in shown, shown
    _reap(shell)

    (program,) = blocks("In Python")
    shell.write("/run/program.py", program.encode())
    printed = shell.enter(f"{python} /run/program.py")
    expected = r"vnet0 \d{10} \S+ \(\d+,\)\n\['vnet1', 'vnet2'\]\n"
    assert re.fullmatch(expected, printed), printed
    _reap(shell)


def _compare(shell: Shell, block: str, prompt: str, user: str = "root") -> None:
    """Type each command of a block, and compare its output with the page's."""
    before = PATIENT if user == "root" else ""
    for command, shown in session(block, prompt):
        printed = shell.enter(before + command, user)
        assert steady(printed) == steady(shown), f"{command}printed:\n{printed}"


def steady(output: str) -> str:
    """Return an output without what differs from one run to the next."""
    for pattern, name in MOVING.items():
        output = re.sub(pattern, name, output)
    return output.strip()


def _reap(shell: Shell) -> None:
    shell.enter("tapster reap --now")
    wait_for(lambda: not shell.taps(), "all taps are reaped")
