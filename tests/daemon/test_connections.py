# SPDX-License-Identifier: Apache-2.0
"""Connections on socket pairs: what is read, answered, delayed and dropped."""

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from errno import EIO
from itertools import product
from pathlib import Path

import pytest

from lab.library import close
from lab.mallory import with_a_long_path
from tapster import State, Tap
from tapster.daemon.methods.call import Answer, Call
from tapster.daemon.state import (
    READING,
    TABLE,
    ConnectionEvent,
    ConnectionState,
    after,
)
from tapster.kernel import unix
from tapster.rpc import interface, varlink
from tests.daemon.parts import ALICE, BOB, ROOT, Parts, Peer, parts

PING = "io.tapster.Ping"
PONG: dict[str, dict[str, str]] = {"parameters": {}}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    with parts(
        tmp_path, requests=10, connections=6, connections_per_user=3, devices=4
    ) as made:
        yield made


def acquire(peer: Peer, binding: str = "nothing") -> None:
    asked = interface.Acquire(
        (interface.nic(Tap(bridge="br0")),), interface.Binding(binding)
    )
    peer.send("io.tapster.Acquire", parameters=varlink.to_json(asked))


# The table


def test_every_state_can_be_left_and_only_closed_is_final() -> None:
    for state in ConnectionState:
        followers = {after for (before, _), after in TABLE.items() if before is state}
        final = state is ConnectionState.CLOSED
        assert (followers == {ConnectionState.CLOSED}) is (
            final or state is ConnectionState.CLOSING
        )


def test_every_state_is_reached_from_idle() -> None:
    reached = {ConnectionState.IDLE}
    while True:
        more = {TABLE[pair] for pair in TABLE if pair[0] in reached}
        if more <= reached:
            break
        reached |= more
    assert reached == set(ConnectionState)


def test_an_event_that_the_table_does_not_know_is_refused() -> None:
    for state, event in product(ConnectionState, ConnectionEvent):
        if (state, event) in TABLE:
            assert after(state, event) is TABLE[state, event]
        else:
            with pytest.raises(ValueError, match="cannot happen"):
                after(state, event)


def test_nothing_is_read_while_a_request_is_under_way() -> None:
    assert not READING & {ConnectionState.WORKING, ConnectionState.ANSWERING}


# Requests and answers


def test_requests_are_answered_in_order_also_after_a_half_close(made: Parts) -> None:
    peer = made.connect()
    peer.send(PING, "io.tapster.List", PING)
    peer.socket.shutdown(socket.SHUT_WR)
    made.serve()
    assert peer.received() == [PONG, {"parameters": {"leases": []}}, PONG, None]


def test_a_oneway_request_is_done_and_not_answered(made: Parts) -> None:
    peer = made.connect()
    peer.send(PING, oneway=True)
    peer.send(PING)
    made.serve()
    assert peer.received() == [PONG]


def test_a_malformed_request_is_rejected_and_the_connection_closed(made: Parts) -> None:
    for wrong in (b"{\0", b"[]\0", b'{"method": 1}\0', b"\xff\0"):
        peer = made.connect()
        peer.socket.sendall(wrong)
        made.serve()
        answer, end = peer.received()
        assert answer["error"] == "io.tapster.RequestError"
        assert end is None


def test_a_request_that_is_too_long_is_rejected(tmp_path: Path) -> None:
    with parts(tmp_path, message=100) as made:
        for data in (b"x" * 101, b'{"method": "' + b"x" * 100 + b'"}\0'):
            peer = made.connect()
            peer.socket.sendall(data)
            made.serve()
            answer, end = peer.received()
            assert "at most 100 bytes" in answer["parameters"]["message"]
            assert end is None


def test_a_client_that_watches_has_nothing_to_send(made: Parts) -> None:
    peer = made.connect()
    peer.send("io.tapster.Watch", more=True)
    made.serve()
    assert peer.received()[0]["parameters"]["event"]["event"] == "watching"
    peer.socket.sendall(b"x" * 1000)
    made.serve()
    answer, end = peer.received()
    assert "nothing to send" in answer["parameters"]["message"]
    assert end is None


# Rates


def test_beyond_the_rate_nothing_is_read_until_the_rate_allows_it(made: Parts) -> None:
    flood, other = made.connect(), made.connect(BOB)
    flood.send(*[PING] * 100)
    made.turn(50)
    assert flood.received() == [PONG] * 20
    made.turn(50)
    assert flood.received() == []
    other.send(PING)
    made.turn()
    assert other.received() == [PONG]
    made.clock.advance(0.11)
    made.turn()
    assert flood.received() == [PONG]
    assert len(made.log.named("delayed")) == 1


def test_the_paused_connections_of_a_user_take_turns(made: Parts) -> None:
    peers = [made.connect() for _ in range(3)]
    for peer in peers:
        peer.send(*[PING] * 100)
    made.turn(50)
    assert sum(len(peer.received()) for peer in peers) == 20
    for _ in range(6):
        made.clock.advance(0.11)
        made.turn()
    assert sorted(len(peer.received()) for peer in peers) == [2, 2, 2]


def test_a_user_whose_calls_keep_the_worker_busy_is_read_later(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = iter([0.0, 1.01, 0.0, 0.001])
    monkeypatch.setattr(
        "tapster.daemon.worker.time.thread_time", lambda: next(spent, 0.0)
    )
    alice, bob, root = made.connect(), made.connect(BOB), made.connect(ROOT)
    alice.send("io.tapster.List")
    made.serve()
    assert len(alice.received()) == 1
    for peer in (alice, bob, root):
        peer.send("io.tapster.List")
    made.serve()
    assert [len(peer.received()) for peer in (alice, bob, root)] == [0, 1, 1]
    for _ in range(40):
        made.clock.advance(0.1)
        made.serve()
    assert len(alice.received()) == 1


def test_root_has_no_rate(made: Parts) -> None:
    peer = made.connect(ROOT)
    peer.send(*[PING] * 100)
    made.turn(100)
    assert peer.received() == [PONG] * 100


# Shares


def test_a_user_with_too_many_connections_gets_an_error(made: Parts) -> None:
    for _ in range(3):
        made.connect()
    answer, end = made.connect().received()
    assert answer["error"] == "io.tapster.Overloaded"
    assert end is None
    assert len(made.connections) == 3


def test_users_without_a_rule_have_one_share(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user may have the ids of thousands."""
    strangers = [BOB._replace(uid=100000 + number) for number in range(20)]
    monkeypatch.setattr(
        made.connections, "is_stranger", lambda caller: caller in strangers
    )
    peers = [made.connect(stranger) for stranger in strangers]
    refused = [peer.received() for peer in peers]
    assert [bool(answers) for answers in refused] == [False] * 3 + [True] * 17
    assert refused[3][0]["error"] == "io.tapster.Overloaded"
    assert len(made.log.named("crowded")) == 1
    for peer in peers[:3]:
        peer.send(*[PING] * 20)
    made.turn(100)
    answers = sum(len(peer.received()) for peer in peers[:3])
    assert answers == 20, "as one user's burst"


def test_who_has_a_connection_for_each_id_does_not_keep_others_out(
    made: Parts,
) -> None:
    first = made.connect(BOB._replace(uid=3000))
    for number in range(5):
        made.clock.advance(1)
        made.connect(BOB._replace(uid=2000 + number))
    newcomer = made.connect(BOB)
    assert first.received() == [None], "it was idle for the longest time"
    newcomer.send(PING)
    made.serve()
    assert newcomer.received() == [PONG]


def test_a_newcomer_takes_a_connection_from_the_user_who_has_most(made: Parts) -> None:
    first = made.connect()
    made.clock.advance(1)
    for _ in range(2):
        made.connect()
    for number in range(3):
        made.connect(BOB._replace(uid=2000 + number))
    newcomer = made.connect(BOB)
    assert first.received() == [None]
    newcomer.send(PING)
    made.serve()
    assert newcomer.received() == [PONG]
    assert len(made.log.named("evicted")) == 1


# Answers that nobody received


@pytest.mark.parametrize("binding", ["nothing", "close"])
def test_a_lease_is_taken_back_if_its_client_left_without_reading_the_answer(
    made: Parts, binding: str
) -> None:
    peer = made.connect()
    acquire(peer, binding)
    made.serve()
    assert [one.state for one in made.host.leases()] == [State.ACTIVE]
    peer.socket.close()
    made.serve()
    assert [one.state for one in made.host.leases()] == [State.FIN_WAIT]


def test_a_lease_stays_if_its_client_left_after_reading_the_answer(
    made: Parts,
) -> None:
    peer = made.connect()
    acquire(peer)
    made.serve()
    _, fds = unix.receive(peer.socket, 1 << 16, 4)
    close(fds)
    peer.socket.close()
    made.serve()
    assert [one.state for one in made.host.leases()] == [State.ACTIVE]


def test_a_request_sent_ahead_does_not_confirm_an_answer(made: Parts) -> None:
    peer = made.connect()
    acquire(peer)
    peer.send(PING)
    made.serve()
    assert len(made.connections), "the second request waits"
    peer.socket.close()
    made.clock.advance(1)
    made.serve()
    assert [one.state for one in made.host.leases()] == [State.FIN_WAIT]


def test_a_request_sent_ahead_is_answered_once_the_answer_is_read(made: Parts) -> None:
    peer = made.connect()
    acquire(peer)
    peer.send(PING)
    made.serve()
    data, fds = unix.receive(peer.socket, 1 << 16, 4)
    close(fds)
    assert data.count(b"\0") == 1
    made.clock.advance(1)
    made.serve()
    assert peer.received() == [PONG]


def test_an_acquire_of_a_client_that_left_is_dropped(made: Parts) -> None:
    peer = made.connect()
    acquire(peer)
    made.turn()
    peer.socket.close()
    made.serve()
    assert made.host.leases() == []
    assert len(made.connections) == 0


def test_a_release_of_a_client_that_left_is_done(made: Parts) -> None:
    peer = made.connect()
    acquire(peer)
    made.serve()
    data, fds = unix.receive(peer.socket, 1 << 16, 4)
    close(fds)
    (device,) = json.loads(data[:-1])["parameters"]["devices"]
    peer.send("io.tapster.Release", parameters={"lease": device["lease"]["id"]})
    made.turn()
    peer.socket.close()
    made.serve()
    assert [one.state for one in made.host.leases()] == [State.FIN_WAIT]
    assert len(made.connections) == 0


# Time


def test_idle_and_stalled_clients_are_dropped(tmp_path: Path) -> None:
    with parts(tmp_path, idle=100.0, stall=10.0) as made:
        idle, slow, quick = made.connect(), made.connect(), made.connect()
        slow.socket.sendall(b'{"method"')
        made.turn()
        made.clock.advance(11)
        made.connections.sweep()
        assert slow.received() == [None]
        assert idle.received() == []
        quick.send(PING)
        made.serve()
        made.clock.advance(90)
        made.connections.sweep()
        assert idle.received() == [None]
        assert quick.received() == [PONG]


def test_a_client_that_reads_nothing_is_dropped(tmp_path: Path) -> None:
    with parts(tmp_path, requests=1000, stall=10.0) as made:
        reader = made.connect()
        describe = "org.varlink.service.GetInterfaceDescription"
        reader.send(*[describe] * 60, parameters={"interface": "io.tapster"})
        made.turn(100)
        made.clock.advance(11)
        made.connections.sweep()
        assert len(made.connections) == 0


def test_descriptors_that_no_request_needs_are_closed(made: Parts) -> None:
    peer = made.connect()
    reading, writing = os.pipe()
    for _ in range(5):
        unix.send(peer.socket, b'{"method":"io.tapster.Ping"}\0', [writing] * 8)
    os.close(writing)
    made.serve()
    assert peer.received() == [PONG] * 5
    assert os.read(reading, 1) == b"", "no copy of the other end is open"
    os.close(reading)


def test_a_descriptor_whose_path_cannot_be_read_is_closed(made: Parts) -> None:
    fd = with_a_long_path()
    with pytest.raises(OSError, match="File name too long"):
        os.readlink(f"/proc/self/fd/{fd}")
    peer = made.connect()
    unix.send(peer.socket, b'{"method":"io.tapster.Ping"}\0', [fd])
    os.close(fd)
    made.serve()
    assert peer.received() == [PONG]


def test_a_close_that_fails_hinders_no_further_one(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file of a file system in user space, which chooses what flush returns."""
    reading, writing = os.pipe()
    close = unix.close
    failing = [OSError(EIO, "Input/output error")] * 3

    def close_or_fail(fds: Sequence[int]) -> None:
        close(fds)
        if failing:
            raise failing.pop()

    monkeypatch.setattr("tapster.daemon.closer.unix.close", close_or_fail)
    peer = made.connect()
    unix.send(peer.socket, b'{"method":"io.tapster.Ping"}\0', [writing] * 8)
    os.close(writing)
    made.serve()
    assert os.read(reading, 1) == b"", "no copy of the other end is open"
    os.close(reading)


def test_descriptors_are_closed_although_no_thread_could_be_started(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a user has as many processes as the host has room for."""
    reading, writing = os.pipe()
    start = threading.Thread.start
    room = [False]

    def start_or_fail(thread: threading.Thread) -> None:
        if not room[0]:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    peer = made.connect()
    unix.send(peer.socket, b'{"method":"io.tapster.Ping"}\0', [writing] * 8)
    os.close(writing)
    made.serve()
    assert peer.received() == [PONG]
    made.connections.sweep()
    room[0] = True
    made.connections.sweep()
    assert os.read(reading, 1) == b"", "no copy of the other end is open"
    os.close(reading)


def test_a_fault_of_the_daemon_ends_one_connection(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = []
    monkeypatch.setattr(made.connections, "explain", faults.append)
    monkeypatch.setattr(made.connections, "on_request", lambda *_: 1 / 0)
    one, other = made.connect(), made.connect(BOB)
    one.send(PING)
    made.serve()
    assert one.received() == [None]
    assert [type(fault) for fault in faults] == [ZeroDivisionError]
    monkeypatch.undo()
    other.send(PING)
    made.serve()
    assert other.received() == [PONG]


def test_events_go_to_the_users_who_may_see_them(made: Parts) -> None:
    alice, bob, root = made.connect(), made.connect(BOB), made.connect(ROOT)
    for peer in (alice, bob, root):
        peer.send("io.tapster.Watch", more=True)
    made.serve()
    for event in made.events:
        made.dispatcher.tell(event)
    with_lease = made.connect(ALICE)
    acquire(with_lease, "close")
    made.serve()
    for event in made.events:
        made.dispatcher.tell(event)
    heard = [len(peer.received()) for peer in (alice, bob, root)]
    assert heard == [2, 1, 2]


def test_a_look_up_of_a_user_delays_no_call_for_a_device(made: Parts) -> None:
    """The name may be looked up at a server that does not answer."""
    asking, acquiring = made.connect(), made.connect(BOB)
    asking.send("io.tapster.Explain", parameters={"user": "no-such-user"})
    acquiring.send("io.tapster.List", more=True)
    made.turn()
    assert made.lookups.waiting
    assert made.work() == 1
    assert acquiring.received() == [{"parameters": {"leases": []}}]
    made.lookups.run_one()
    made.lookups.deliver()
    (answer,) = asking.received()
    assert answer["error"] == "io.tapster.RequestError", "there is no such user here"


def test_a_reap_of_everything_lets_other_calls_run_between_two_batches(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapster.daemon.methods.maintaining.REAP_BATCH", 2)
    for _ in range(5):
        opened = made.host.acquire(Tap(bridge="br0"))
        opened.close()
        made.host.release(opened)
    reaping, other = made.connect(ROOT), made.connect(BOB)
    reaping.send("io.tapster.Reap", parameters={"now": True})
    made.turn()
    other.send("io.tapster.List", more=True)
    made.turn()
    made.worker.run_one()
    made.turn()
    assert reaping.received() == []
    assert len(made.host.leases()) == 3, "one batch"
    made.worker.run_one()
    made.turn()
    assert other.received() == [{"parameters": {"leases": []}}]
    made.serve()
    assert reaping.received() == [{"parameters": {"reaped": 5}}]


# Answers in parts


@pytest.mark.parametrize(
    ("method", "field"),
    [("List", "leases"), ("History", "entries"), ("Events", "events")],
)
def test_a_long_answer_comes_in_parts_and_only_to_a_client_that_takes_them(
    made: Parts, monkeypatch: pytest.MonkeyPatch, method: str, field: str
) -> None:
    monkeypatch.setattr("tapster.daemon.methods.looking.PAGE", 3)
    monkeypatch.setattr("tapster.daemon.methods.looking.HISTORY_PAGE", 3)
    for _ in range(7):
        with made.host.acquire(Tap(bridge="br0")) as opened:
            made.upkeep.report("reopened", opened.lease)
    peer = made.connect(ROOT)
    peer.send(f"io.tapster.{method}")
    made.serve()
    assert [one["error"] for one in peer.received()] == [
        "org.varlink.service.ExpectedMore"
    ]
    peer.send(f"io.tapster.{method}", more=True)
    made.serve()
    messages = peer.received()
    assert [len(one["parameters"][field]) for one in messages] == [3, 3, 1]
    assert [one.get("continues", False) for one in messages] == [True, True, False]
    names = [one["name"] for part in messages for one in part["parameters"][field]]
    assert sorted(names) == [f"vnet{number}" for number in range(7)]
    peer.send(f"io.tapster.{method}", more=True, parameters={"limit": 6})
    made.serve()
    if method != "List":
        latest = peer.received()
        assert [len(one["parameters"][field]) for one in latest] == [3, 3]
        parts = [one for part in latest for one in part["parameters"][field]]
        order = names[:6] if method == "History" else names[1:]
        assert [one["name"] for one in parts] == order


def test_parts_of_the_history_have_each_lease_once(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although leases begin and end between two parts, and some began at one time."""
    monkeypatch.setattr("tapster.daemon.methods.looking.HISTORY_PAGE", 2)
    devices = [made.host.acquire(Tap(bridge="br0", fin_wait=0)) for _ in range(9)]
    for device in devices:
        device.close()
    assert len({device.lease.created for device in devices}) == 1
    asked = interface.History()
    answer = made.service.call("History", Call(ROOT, -1, asked, ()))
    seen: list[str] = []
    while True:
        assert isinstance(answer, Answer)
        seen += [entry.lease for entry in answer.parameters.entries]
        if answer.next_page is None:
            break
        made.system.advance(0.01)
        made.host.acquire(Tap(bridge="br0")).close()
        made.host.release(devices.pop(0))
        answer = answer.next_page()
    assert len(seen) == len(set(seen)) == 9
