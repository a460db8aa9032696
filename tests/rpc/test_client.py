# SPDX-License-Identifier: Apache-2.0
"""The client at a daemon that is broken, or means harm."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tapster import (
    Client,
    DaemonError,
    KernelError,
    NameTaken,
    OpenDevice,
    QuotaExceeded,
    RequestError,
    Tap,
    TapsterError,
    connect,
)
from tapster.kernel import unix
from tapster.rpc import client as module
from tapster.rpc import varlink
from tapster.rpc.wire import NAME
from tests.daemon.parts import Parts, parts

Answer = Callable[[socket.socket], object]
BR0 = Tap(bridge="br0")


class Liar:
    """A daemon that answers each request in the same way."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self.answer: Answer = lambda _: None
        self.null = os.open(os.devnull, os.O_RDONLY)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                with accepted, suppress(OSError):
                    while accepted.recv(1 << 16):
                        self.answer(accepted)

    def sends(self, message: Any, descriptors: int = 0) -> None:
        """Answer with a message, and with so many descriptors of /dev/null."""
        data = json.dumps(message).encode() + b"\0"

        self.answer = lambda to: unix.send(to, data, [self.null] * descriptors)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        os.close(self.null)


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Liar]:
    with closing(Liar(tmp_path)) as liar:
        yield liar


@pytest.fixture
def client(liar: Liar) -> Iterator[Client]:
    with connect(liar.path, timeout=5) as client:
        yield client


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path) as made:
        yield made


def descriptors() -> int:
    """How many descriptors of /dev/null are open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{number}") == os.devnull
    return found


@pytest.mark.parametrize(
    ("places", "vhost", "sent"),
    [
        ([0], [], 0),
        ([1], [], 1),
        ([-1], [], 1),
        ([0, 0], [], 1),
        ([0], [0], 1),
        ([0], [], 2),
    ],
)
@pytest.mark.parametrize("call", ["acquire", "reopen"])
def test_descriptors_that_are_not_where_the_answer_says_are_closed(
    liar: Liar,
    client: Client,
    made: Parts,
    places: list[int],
    vhost: list[int],
    sent: int,
    call: str,
) -> None:
    """One that is in two places would be closed twice, and then be another file."""
    with made.host.acquire(BR0) as opened:
        lease = opened.lease
    device = {"lease": varlink.to_json(lease), "fds": places, "vhost_fds": vhost}
    one = {"devices": [device]} if call == "acquire" else device
    liar.sends({"parameters": one}, sent)
    before = descriptors()
    with pytest.raises(DaemonError, match="answer is wrong: 1 devices"):
        client.acquire(BR0) if call == "acquire" else client.reopen(lease)
    assert descriptors() == before
    one = {**device, "fds": [0], "vhost_fds": [1]}
    liar.sends({"parameters": {"devices": [one]} if call == "acquire" else one}, 2)
    good: OpenDevice
    with client.acquire(BR0) if call == "acquire" else client.reopen(lease) as good:
        assert len({*good.fds, *good.vhost_fds}) == 2
    assert descriptors() == before


@pytest.mark.parametrize("number", [0, 2])
def test_as_many_devices_are_taken_as_were_asked_for(
    liar: Liar, client: Client, made: Parts, number: int
) -> None:
    with made.host.acquire(BR0) as opened:
        lease = varlink.to_json(opened.lease)
    devices = [{"lease": lease, "fds": [place]} for place in range(number)]
    liar.sends({"parameters": {"devices": devices}}, number)
    before = descriptors()
    with pytest.raises(DaemonError, match=f"wrong: {number} devices .* 1 devices were"):
        client.acquire(BR0)
    assert descriptors() == before


def test_descriptors_that_nobody_asked_for_are_closed(
    liar: Liar, client: Client
) -> None:
    before = descriptors()
    liar.sends({"parameters": {}}, 8)
    client.ping()
    liar.sends({"parameters": {"leases": []}}, 8)
    client.leases()
    assert descriptors() == before


def test_an_answer_without_end_is_given_up(
    liar: Liar, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 1 << 20)

    def pour(to: socket.socket) -> None:
        while True:
            to.sendall(b"[" * 65536)

    liar.answer = pour
    with pytest.raises(DaemonError, match=r"too long: 1\d{6} bytes"):
        client.ping()
    before = descriptors()

    def pour_descriptors(to: socket.socket) -> None:
        while True:
            unix.send(to, b"[", [liar.null] * 100)

    liar.answer = pour_descriptors
    with pytest.raises(DaemonError, match="and 300 descriptors have come"):
        client.ping()
    assert descriptors() == before


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_longer(
    liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("tapster.rpc.client.time.monotonic", lambda: now[0])
    more = threading.Event()

    def trickle(to: socket.socket) -> None:
        while more.wait():
            more.clear()
            to.sendall(b" ")

    liar.answer = trickle
    with connect(liar.path, timeout=5) as client:
        receive = unix.receive

        def receive_a_second_later(*given: Any) -> Any:
            more.set()
            received = receive(*given)
            now[0] += 1
            return received

        monkeypatch.setattr("tapster.rpc.client.unix.receive", receive_a_second_later)
        with pytest.raises(DaemonError, match="has not answered in 5 s"):
            client.ping()
        assert now[0] == 105.0


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        5,
        [],
        {},
        {"message": 5, "remedy": ""},
        {"message": "m", "remedy": "r", "errno": "x"},
        {"message": "m", "remedy": "r", "name": [], "until": "x", "limit": 0.5},
    ],
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("KernelError", KernelError),
        ("NameTaken", NameTaken),
        ("QuotaExceeded", QuotaExceeded),
        ("Unknown", DaemonError),
    ],
)
def test_a_field_of_another_type_is_not_part_of_an_error(
    liar: Liar,
    client: Client,
    name: str,
    kind: type[TapsterError],
    parameters: Any,
) -> None:
    liar.sends({"error": f"{NAME}.{name}", "parameters": parameters})
    with pytest.raises(kind) as caught:
        client.ping()
    assert str(caught.value)
    assert all(getattr(caught.value, field) is None for field in kind.fields)


@pytest.mark.parametrize("timeout", [0, -1, 1e300, float("inf"), float("nan"), "1"])
def test_a_time_limit_is_a_time(liar: Liar, timeout: Any) -> None:
    with pytest.raises(RequestError, match="timeout must be"):
        connect(liar.path, timeout=timeout)


@pytest.mark.parametrize("path", [5, "\ud800", ["a"]])
def test_a_socket_is_a_path(path: Any) -> None:
    with pytest.raises(RequestError, match="the socket must be a path, not"):
        connect(path)


def test_an_empty_path_is_not_the_usual_socket() -> None:
    with pytest.raises(RequestError, match="path is empty"):
        connect("")


@pytest.mark.parametrize("errno", [1 << 62, -1, 1 << 20])
def test_an_error_number_that_is_none_can_be_shown(
    liar: Liar, client: Client, errno: int
) -> None:
    failure = {"message": "m", "remedy": "r", "errno": errno, "action": "making it"}
    liar.sends({"error": f"{NAME}.KernelError", "parameters": failure})
    with pytest.raises(KernelError, match="making it: "):
        client.ping()
