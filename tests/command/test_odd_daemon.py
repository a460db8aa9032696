# SPDX-License-Identifier: Apache-2.0
"""The command at a daemon whose answers have the right types, and odd values."""

import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin

import pytest

from tapster import Host, HostError, Tap
from tapster.cli import main, settle
from tapster.cli.run import goes_on
from tapster.rpc.interface import METHODS
from tapster.testing import FakeSystem

ROUNDS = 25
GIVES = {method.name: method.gives for method in METHODS}
TEXTS = (
    *("br0", "vnet0", "52:54:00:00:00:01", "", "-", "a b", "x" * 400, "é" * 50),
    *("\x1b[31m\x07", "a\nb", "\u202e", "a\tb"),
)
NUMBERS = (0, 1, -1, 100, 1 << 62, -(1 << 62))
FLOATS = (*NUMBERS, 0.5, 1e12, 1e300, -1e300, 1.7e9)


def odd(kind: Any, chance: random.Random) -> Any:
    """A value of a type."""
    if isinstance(kind, UnionType):
        return None if chance.random() < 0.3 else odd(get_args(kind)[0], chance)
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        length = chance.randrange(4) if rest == [Ellipsis] else 1 + len(rest)
        return [odd(item, chance) for _ in range(length)]
    if hasattr(kind, "_fields"):
        fields = kind.__annotations__.items()
        return {name: odd(annotation, chance) for name, annotation in fields}
    if kind is bool:
        return chance.random() < 0.5
    choices = {str: TEXTS, int: NUMBERS, float: FLOATS}
    return chance.choice(choices.get(kind) or [*kind])


@pytest.fixture
def odd_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = str(tmp_path / "socket")
    chance = random.Random(1)

    def serve(accepted: socket.socket) -> None:
        with closing(accepted), suppress(OSError), accepted.makefile("rb") as requests:
            while request := _request(requests):
                method = request["method"].rpartition(".")[2]
                answers = [{"parameters": odd(GIVES[method], chance)}]
                if method == "Watch":  # two events, and it hangs up
                    answers.append({"parameters": odd(GIVES[method], chance)})
                    answers = [{**answer, "continues": True} for answer in answers]
                for answer in answers:
                    accepted.sendall(json.dumps(answer).encode() + b"\0")
                if method == "Watch":
                    return

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        listener.listen()

        def accept() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    threading.Thread(target=serve, args=[accepted], daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        monkeypatch.setenv("TAPSTER_SOCKET", path)
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _request(requests: Any) -> Any:
    text = b""
    while not text.endswith(b"\0"):
        if not (byte := requests.read(1)):
            return None
        text += byte
    return json.loads(text[:-1])


@pytest.mark.parametrize(
    "words",
    [
        *("ls", "ls --all --json", "ls -q", "ls --sort on"),
        "ls --format {name}{mtu}{created}{netns}",
        *("show vnet0", "show --owner x", "show vnet0 --json"),
        *("who", "who --json", "events", "events --json", "watch", "watch --json"),
        *("doctor", "recover", "recover --dry-run", "reap", "top --count 1", "report"),
        *("rm --owner x", "set vnet0 --owner x --down", "take vnet0 --owner x"),
    ],
)
def test_no_answer_is_a_fault_of_the_command_or_controls_the_terminal(
    odd_daemon: None, capfd: pytest.CaptureFixture[str], words: str
) -> None:
    for _ in range(ROUNDS):
        status = main(words.split())
        output, complaint = capfd.readouterr()
        assert status in (0, 1)
        for text in (output, complaint):
            assert "internal error" not in text
            assert "writing the output" not in text
            if "report" not in words:  # an HTML page
                assert text.replace("\n", "").replace("\t", "").isprintable()


def go_on(host: Host) -> None:
    with host.acquire(Tap()) as device:
        goes_on(host, [device])


@pytest.mark.parametrize("act", [settle, go_on])
def test_an_error_is_printed_with_its_notes_and_controls_no_terminal(
    act: Callable[[Host], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = HostError("\x1b[31m is busy")
    error.add_note("another failure: \x07")

    def fail(*_: object) -> NoReturn:
        raise error

    for method in ("settle", "bind", "device"):
        monkeypatch.setattr(Host, method, fail)
    with Host(system=FakeSystem()) as host:
        act(host)
    said = capsys.readouterr().err
    assert "\\x1b[31m is busy\n" in said
    assert "another failure: \\x07\n" in said
