# SPDX-License-Identifier: Apache-2.0
"""Limits of docs/security.md that no attack meets: what is allowed, and what is not."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from errno import EMFILE
from pathlib import Path
from typing import Any

import pytest

from lab.library import close
from tapster import Naming, Tap
from tapster.daemon import config, scrape
from tapster.daemon.config import Config, Limits, MetricsConfig
from tapster.daemon.connections import CLOSING_PAUSE
from tapster.daemon.loop import Loop
from tapster.daemon.methods.call import Answer, Call
from tapster.daemon.policy import Caller, Rule
from tapster.errors import NoSuchLease, NotAllowed, QuotaExceeded, RequestError
from tapster.kernel import unix
from tapster.model import Lease, Wiring
from tapster.rpc import interface
from tapster.rpc.wire import LISTED
from tests.daemon.parts import ALICE, ROOT, FakeClock, Parts

BR0 = Tap(bridge="br0")
RULE = Rule(("1000",), bridges=("br0",), features=("naming", "fin-wait", "queues"))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    limits = Limits(devices=3, waiting=2, keys=2, descriptors=4)
    parts = Parts(
        tmp_path, Config(limits, (RULE,), metrics=MetricsConfig(labels=("n",)))
    )
    try:
        yield parts
    finally:
        parts.close()


def ask(made: Parts, method: str, asked: Any, caller: Caller = ALICE) -> Answer:
    answer = made.service.call(method, Call(caller, -1, asked, ()))
    assert isinstance(answer, Answer)
    close(answer.fds)
    return answer


def acquire(made: Parts, *specs: Tap, vhost: bool = False) -> list[str]:
    nics = tuple(map(interface.nic, specs))
    asked = interface.Acquire(nics, interface.Binding.NOTHING, vhost=vhost)
    devices = ask(made, "Acquire", asked).parameters.devices
    return [device.lease.id for device in devices]


def test_a_user_has_so_many_devices(made: Parts) -> None:
    acquire(made, BR0, BR0)
    with pytest.raises(QuotaExceeded, match="2 of 3 devices and asks for 2 more"):
        acquire(made, BR0, BR0)
    acquire(made, BR0)


def test_each_device_of_a_request_counts_whatever_its_queues_are(made: Parts) -> None:
    """A negative number of queues must not make room for thousands of devices."""
    with pytest.raises(RequestError, match="needs 5 descriptors; an answer has room"):
        acquire(made, *[BR0] * 4, BR0._replace(queues=-4000))


def test_a_call_names_so_many_leases_and_each_counts_once(made: Parts) -> None:
    (id,) = acquire(made, BR0)
    looked_for: list[str] = []
    find = made.host.operations.look.find

    def look_for(id: str, *rest: Any, **more: Any) -> Lease:
        looked_for.append(id)
        return find(id, *rest, **more)

    made.host.operations.look.find = look_for  # type: ignore[assignment,method-assign]
    ask(made, "Bind", interface.Bind((id,) * 3000))
    assert looked_for == [id]
    many = tuple(f"{number:016x}" for number in range(LISTED + 1))
    for method, asked in (
        ("Bind", interface.Bind(many)),
        ("Reap", interface.Reap(leases=many)),
    ):
        with pytest.raises(RequestError, match="names at most 256 leases, not 257"):
            ask(made, method, asked)
        with pytest.raises(NoSuchLease):
            ask(made, method, asked._replace(leases=many[1:]))
    assert looked_for == [id, many[1], many[1]]


def test_a_changed_field_counts_once(made: Parts) -> None:
    """What an event says of a change is logged and kept."""
    (id,) = acquire(made, BR0)
    fields = ("up", "isolated", "up") * 5000
    ask(made, "Set", interface.Set(id, fields, Wiring(isolated=True)))
    assert made.log.named("set")[0]["detail"] == "up isolated"
    (event,) = ask(made, "Events", interface.Events()).parameters.events
    assert event.detail == "up isolated"


def test_a_clock_that_is_set_back_hides_no_refusal(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wall, uptime in ((1e9, 1.0), (1e9 - 3600, 3.0)):
        monkeypatch.setattr("time.time", lambda wall=wall: wall)
        monkeypatch.setattr("time.monotonic", lambda uptime=uptime: uptime)
        for _ in range(2):  # the second one comes too soon
            with pytest.raises(NotAllowed):
                acquire(made, Tap(bridge="br9"))
    events = made.service.call("Events", Call(ROOT, -1, interface.Events(), ()))
    assert isinstance(events, Answer)
    times = [event.time for event in events.parameters.events]
    assert times == [1e9 - 3600, 1e9]


def test_so_many_devices_of_a_user_are_in_fin_wait(made: Parts) -> None:
    for _ in range(2):
        (id,) = acquire(made, BR0)
        ask(made, "Release", interface.Release(id))
    with pytest.raises(QuotaExceeded, match="2 devices in FIN WAIT"):
        acquire(made, BR0)


def test_so_many_keys_of_stable_names_are_kept_for_a_user(made: Parts) -> None:
    def keyed(key: str) -> Tap:
        return BR0._replace(naming=Naming.STABLE, key=key, fin_wait=0)

    for key in ("one", "two", "one"):
        (id,) = acquire(made, keyed(key))
        ask(made, "Release", interface.Release(id))
    with pytest.raises(QuotaExceeded, match="keys"):
        acquire(made, keyed("three"))


def test_an_answer_has_so_many_descriptors(made: Parts) -> None:
    for specs, vhost in (([BR0._replace(queues=5)], False), ([BR0] * 3, True)):
        with pytest.raises(RequestError, match="room for 4"):
            acquire(made, *specs, vhost=vhost)
    acquire(made, BR0._replace(queues=4))


@pytest.mark.parametrize(("limit", "given"), [(None, 5), (10, 5), (4, 4)])
def test_an_answer_has_so_many_entries_of_the_history(
    made: Parts, monkeypatch: pytest.MonkeyPatch, limit: int | None, given: int
) -> None:
    monkeypatch.setattr("tapster.daemon.methods.looking.HISTORY_LIMIT", 5)
    for _ in range(7):
        made.host.acquire(BR0).close()
    history = interface.History(name=None, limit=limit)
    assert len(ask(made, "History", history, ROOT).parameters.entries) == given
    with pytest.raises(RequestError, match="1 or more"):
        ask(made, "History", interface.History(limit=0), ROOT)


def test_so_many_labels_are_shown(made: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapster.daemon.methods.figures.LABELS", 3)
    for number in (0, 0, 1, 2, 3, 4):
        made.host.acquire(BR0._replace(labels=(("n", str(number)),))).close()
    made.service.figures.measure()
    shown = made.metrics.text().count("tapster_labelled_leases{")
    assert shown == 3
    assert 'tapster_labelled_leases{label="n=0"} 2' in made.metrics.text()


def test_nobody_connects_whose_descriptors_wait_to_be_closed(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {ALICE.uid: 64}
    monkeypatch.setattr(
        "tapster.daemon.closer.Closer.waiting", lambda _, uid: waiting.get(uid, 0)
    )
    made.connect().send("io.tapster.Ping")
    made.serve()
    waiting[ALICE.uid] = 65
    refused, other = made.connect(), made.connect(ROOT)
    other.send("io.tapster.Ping")
    made.serve()
    (error, end) = refused.received()
    assert (error["error"], end) == ("io.tapster.Overloaded", None)
    assert other.received() == [{"parameters": {}}]


def test_a_client_whose_descriptors_wait_to_be_closed_is_read_later(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {ALICE.uid: 65}
    monkeypatch.setattr(
        "tapster.daemon.closer.Closer.waiting", lambda _, uid: waiting.get(uid, 0)
    )
    monkeypatch.setattr(made.connections, "crowded", lambda _: None)
    sender, other = made.connect(), made.connect()
    pong: dict[str, object] = {"parameters": {}}
    unix.send(sender.socket, b'{"method":"io.tapster.Ping"}\0', [0])
    made.serve()
    assert sender.received() == [pong]
    unix.send(sender.socket, b'{"method":"io.tapster.Ping"}\0', [0])
    other.send("io.tapster.Ping")
    for _ in range(3):
        made.clock.advance(CLOSING_PAUSE)
        made.serve()
    assert (sender.received(), other.received()) == ([], [pong])
    waiting[ALICE.uid] = 64
    made.clock.advance(CLOSING_PAUSE)
    made.serve()
    assert sender.received() == [pong]


def test_so_many_scrapes_are_open_and_the_oldest_is_closed() -> None:
    loop = Loop()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        scrape.serve(loop, [listener], lambda reply: reply("figures"), lambda _: True)
        clients = [
            stack.enter_context(socket.create_connection(listener.getsockname()))
            for _ in range(scrape.MOST + 1)
        ]
        for client in clients:
            client.settimeout(0.01)
        while read(clients[0], b"none") == b"none":
            loop.turn(0.1)
        for client in clients[1:]:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        for client in clients[1:]:
            answer = b""
            while not answer.endswith(b"figures"):
                loop.turn(0.1)
                client.settimeout(0.01)
                answer += read(client)
    loop.close()


def test_a_scraper_that_cannot_be_told_is_refused_and_others_are_served() -> None:
    """As one that has left, or that comes when no descriptor is left."""
    callers = iter([OSError(EMFILE, "Too many open files"), None])

    def may_read(_: socket.socket) -> bool:
        if problem := next(callers):
            raise problem
        return True

    loop = Loop()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        scrape.serve(loop, [listener], lambda reply: reply("figures"), may_read)
        refused, served = (
            stack.enter_context(socket.create_connection(listener.getsockname()))
            for _ in range(2)
        )
        loop.turn(1)
        assert refused.recv(1) == b""
        served.sendall(b"GET / HTTP/1.0\r\n\r\n")
        served.settimeout(0.1)
        answer = b""
        while not answer.endswith(b"figures"):
            loop.turn(0.1)
            answer += read(served)
    loop.close()


def test_a_scraper_for_which_no_descriptor_is_left_is_tried_again_after_a_pause() -> (
    None
):
    clock = FakeClock()
    loop = Loop(clock)
    tried: list[bool] = []

    class Listener(socket.socket):
        def accept(self) -> Any:
            tried.append(True)
            raise OSError(EMFILE, "Too many open files")

    with Listener() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            scrape.serve(loop, [listener], lambda _: None, lambda _: True)
            for times in (1, 2):
                for _ in range(10):
                    loop.turn(0)
                assert len(tried) == times
                clock.advance(scrape.PAUSE)
    loop.close()


def read(client: socket.socket, nothing: bytes = b"") -> bytes:
    try:
        return client.recv(4096)
    except TimeoutError:
        return nothing


@pytest.mark.parametrize("more", [0, 1])
def test_a_policy_has_so_many_bytes(tmp_path: Path, more: int) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text("#" * (config.LONGEST + more))
    _, faults = config.check(str(path))
    said: Sequence[str] = [str(fault) for fault in faults]
    assert [f"more than {config.LONGEST} bytes" in one for one in said] == [True] * more
