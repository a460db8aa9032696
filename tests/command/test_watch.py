# SPDX-License-Identifier: Apache-2.0
"""`tapster watch` and `tapster top` for root, without the daemon."""

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from lab import shell
from lab.lines import Lines
from tapster.cli import top
from tests.command.test_json import check

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


SECONDS = 20.0


@pytest.fixture(autouse=True)
def environment(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_LEDGER", str(ledger))
    shell.sh("mount -t tmpfs tmpfs /run")


def tapster(line: str) -> str:
    return shell.sh(f"{shell.TAPSTER} {line}")


class WatchCommand:
    """The events that the command prints."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._lines = Lines(pipe)

    def next(self) -> dict[str, Any]:
        line = self._lines.wait_for("{", SECONDS)
        event: dict[str, Any] = json.loads(line.string)
        check("watch", event)
        return event

    def says(self, event: str) -> dict[str, Any]:
        """Expect this event, and return it."""
        found = self.next()
        assert found["event"] == event, found
        return found


@contextmanager
def watching(*options: str) -> Iterator[WatchCommand]:
    command = [shell.TAPSTER, "watch", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            watch = WatchCommand(process.stdout)
            watch.says("watching")
            yield watch
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 130
        finally:
            process.kill()


def test_the_life_of_a_lease_and_what_others_do_to_it() -> None:
    with watching() as watch:
        tapster("add --bridge br0 --owner web --fin-wait 60")
        acquired = watch.says("acquired")
        assert (acquired["name"], acquired["owner"]) == ("vnet0", "web")
        for command, event in (
            ("ip link set vnet0 down", "down"),
            ("ip link set vnet0 up", "sound"),
            ("ip link set vnet0 nomaster", "moved"),
            ("ip link set vnet0 master br0", "sound"),
            ("ip link set vnet0 address 02:00:00:00:00:01", "changed"),
        ):
            shell.sh(command)
            last = watch.says(event)
        assert "02:00:00:00:00:01" in last["detail"]
        tapster("recover")
        watch.says("sound")
        tapster("set --owner web vnet0 --mtu 1300")
        watch.says("set")
        tapster("rm --owner web")
        watch.says("released")
        tapster("reap --now")
        watch.says("ended")


def test_other_namespaces_and_changes_of_the_ledger_alone() -> None:
    shell.sh("ip netns add blue")
    tapster("add --netns blue --owner pod --fin-wait 60")
    with watching() as watch:
        shell.sh("ip -n blue link set vnet0 down")
        watch.says("down")
        tapster("rm --owner pod")  # the kernel has nothing to report
        watch.says("released")
        tapster("reap --now")
        watch.says("ended")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--owner", "w*"], {"vnet0"}),
        (["--bridge", "br0"], {"vnet0", "vnet1"}),
        (["--label", "k"], {"vnet1"}),
        (["vnet[12]"], {"vnet1", "vnet2"}),
        (["--bridge", "br0", "vnet1"], {"vnet1"}),
        (["--netns", "blue"], set()),
    ],
)
def test_the_filters_are_those_of_ls(options: list[str], expected: set[str]) -> None:
    with watching(*options) as watch, watching() as all_events:
        tapster("add --bridge br0 --owner web --fin-wait 0")
        tapster("add --bridge br0 --owner db --label k=v --fin-wait 0")
        tapster("add --fin-wait 0")
        tapster("rm --all")
        found: list[tuple[str, str]] = []
        while len([one for one in found if one[0] == "ended"]) < 3:
            event = all_events.next()
            found.append((event["event"], event["name"]))
        wanted = [one for one in found if one[1] in expected]
        chosen = [watch.next() for _ in wanted]
        assert sorted((one["event"], one["name"]) for one in chosen) == sorted(wanted)


def test_top_shows_leases_and_events() -> None:
    tapster("add --bridge br0 --owner web")
    shown = tapster("top --count 2 --interval 0.1")
    assert shown.count("1 active") == 2
    assert "vnet0  active  br0" in shown


class Screen:
    """A terminal on which `top` runs."""

    def __init__(self, kind: str = "xterm", *options: str) -> None:
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [shell.TAPSTER, "top", *options],
            stdout=theirs,
            env={**os.environ, "TERM": kind},
        )
        os.close(theirs)

    def wait_for(self, text: str) -> bytes:
        """Read until this text comes, and return what was read."""
        seen = b""
        while text.encode() not in seen:
            assert select.select([self._terminal], [], [], SECONDS)[0], seen
            seen += os.read(self._terminal, 1 << 16)
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    screen.wait_for(top.ENTER)
    screen.wait_for("0 active")
    yield screen
    screen.close()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_top_gives_the_terminal_back_at_its_end(
    screen: Screen, number: int, status: int
) -> None:
    screen.process.send_signal(number)
    screen.wait_for(top.LEAVE)
    assert screen.process.wait(SECONDS) == status


def test_top_gives_the_terminal_back_while_it_is_stopped(screen: Screen) -> None:
    screen.process.send_signal(signal.SIGTSTP)
    screen.wait_for(top.LEAVE)
    _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    screen.process.send_signal(signal.SIGCONT)
    screen.wait_for(top.ENTER)
    screen.wait_for("0 active")


def test_top_sends_no_escape_sequence_to_a_terminal_that_knows_none() -> None:
    screen = Screen("dumb", "--interval", "0.1")
    try:
        shown = screen.wait_for("0 active") + screen.wait_for("0 active")
        assert b"\x1b" not in shown
    finally:
        screen.close()


def test_the_daemon_is_asked_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a path that was given keeps root from its own ledger."""
    monkeypatch.setenv("TAPSTER_SOCKET", "/run/nothing")
    done = subprocess.run(
        [shell.TAPSTER, "watch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tapster: no daemon answers at '/run/nothing'")
