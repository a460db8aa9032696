# SPDX-License-Identifier: Apache-2.0
"""The client: calls that are interrupted, signal handlers, threads and forks."""

import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

import tapster
from lab.daemon import ALICE, BOB, Daemon, user
from lab.interrupts import act_at, moments
from tapster import (
    Client,
    DaemonError,
    NoSuchLease,
    Overloaded,
    RequestError,
    Tap,
)

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

INTERRUPTS = 150


class Timeout(Exception):
    """What a program's time limit raises."""


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.connect() as client:
        yield client


@pytest.fixture
def interruptible() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_a_call_after_one_that_was_given_up_gets_its_own_answer(
    daemon: Daemon, client: Client
) -> None:
    def give_up(*_: object) -> None:
        raise Timeout

    before = signal.signal(signal.SIGALRM, give_up)
    daemon.send_signal(signal.SIGSTOP)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Timeout):
            client.acquire(Tap(bridge="br0", owner="red"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        daemon.send_signal(signal.SIGCONT)
    with client.acquire(Tap(bridge="br0", owner="blue")) as device:
        assert device.lease.owner == "blue"
    assert [lease.owner for lease in client.leases(all=False)] == ["blue"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_any_instruction_mixes_no_answers(client: Client) -> None:
    def live() -> None:
        client.ping()
        assert client.find(lease.id).id == lease.id
        assert [one.id for one in client.leases()] == [lease.id]

    with client.acquire(Tap(bridge="br0")) as device:
        lease = device.lease
    live()  # what is remembered for all later calls
    there = moments(live)
    raised = 0
    for moment in random.Random(1).sample(there, INTERRUPTS):
        try:
            act_at(moment, lambda: signal.raise_signal(signal.SIGINT), live)
        except KeyboardInterrupt:
            raised += 1
        live()
    assert raised == INTERRUPTS


def test_a_signal_handler_is_refused_in_the_middle_of_a_call(client: Client) -> None:
    def live() -> None:
        client.leases()

    refused: list[str] = []

    def handler() -> None:
        try:
            client.ping()
        except RequestError as error:
            refused.append(str(error))

    live()
    for moment in random.Random(1).sample(moments(live), 50):
        act_at(moment, handler, live)
        live()
    assert len(refused) > 40
    assert {text.partition(": ")[0] for text in refused} == {
        "this client is in the middle of a call of this thread"
    }


def test_threads_share_a_client(client: Client) -> None:
    threads, each = 4, 10
    together = threading.Barrier(threads)

    def live(thread: int) -> None:
        together.wait(20)
        for number in range(each):
            owner = f"{thread}-{number}"
            with client.acquire(Tap(bridge="br0", owner=owner, fin_wait=0)) as device:
                assert device.lease.owner == owner
                assert client.find(device.id).owner == owner
            client.release(device)

    with ThreadPoolExecutor(threads) as pool:
        assert len(list(pool.map(live, range(threads)))) == threads


def test_a_forked_child_is_refused(client: Client) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            client.ping()
        except RequestError as error:
            os.write(writing, str(error).encode())
        finally:
            client.close()
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading) as answer:
        assert "cannot be used in its forked child" in answer.read()
    client.ping()


def test_a_client_that_watches_does_nothing_else(client: Client) -> None:
    events = client.watch()
    assert next(events).event == "watching"
    with pytest.raises(RequestError, match="this client watches"):
        client.ping()


def test_a_watch_ends_when_another_thread_closes_the_client(client: Client) -> None:
    events = client.watch()
    assert next(events).event == "watching"
    seen: list[object] = []
    watching = threading.Thread(
        target=lambda: seen.extend([*events, "the end"]), daemon=True
    )
    watching.start()
    client.close()
    watching.join(20)
    assert seen == ["the end"]


def test_no_request_says_another_text_than_it_was_given(client: Client) -> None:
    with pytest.raises(RequestError, match=r"'\\ud800' is half of a surrogate pair"):
        client.acquire(Tap(owner="\ud800"))
    with pytest.raises(NoSuchLease, match=r"'\\udcff'"):
        client.look_up("\udcff")
    with pytest.raises(RequestError, match=rf"no process {1 << 40} to bind"):
        client.bind([], 1 << 40)
    client.ping()


def test_a_client_connects_again_after_a_daemon_that_was_away(daemon: Daemon) -> None:
    with daemon.connect() as client:
        daemon.stop()
        for _ in range(2):
            with pytest.raises(DaemonError):
                client.ping()
        daemon.start()
        client.ping()
    with pytest.raises(RequestError, match="closed"):
        client.ping()


def test_a_daemon_that_is_stopped_is_not_waited_for_without_end(
    daemon: Daemon,
) -> None:
    with daemon.connect() as client:
        client.acquire(Tap(bridge="br0", owner="red")).close()
    with tapster.connect(daemon.socket, timeout=0.1) as client:
        daemon.send_signal(signal.SIGSTOP)
        try:
            for call in (client.ping, client.leases):
                with pytest.raises(DaemonError, match=r"not answered in 0\.1 s"):
                    call()
            with pytest.raises(DaemonError, match=r"not answered in 0\.1 s"):
                client.acquire(Tap(bridge="br0", owner="blue"))
        finally:
            daemon.send_signal(signal.SIGCONT)
    events = daemon.events()
    with daemon.connect() as client:
        # What no caller received is taken back.
        while [lease.owner for lease in client.leases(all=False)] != ["red"]:
            next(events)


def test_a_client_outlives_its_daemon(daemon: Daemon, client: Client) -> None:
    before = client.acquire(Tap(bridge="br0"))
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon.stop(number)
        with pytest.raises(DaemonError, match="no daemon answers"):
            client.acquire(Tap(bridge="br0"))
        daemon.start()
        with client.acquire(Tap(bridge="br0")) as after:
            assert client.find(before.name).id == before.id
            client.release(after)
    before.close()


def test_what_the_daemon_said_before_it_hung_up_is_heard(world: None) -> None:
    policy = "[limits]\nconnections_per_user = 1\n"
    with (
        Daemon(policy=policy) as daemon,
        ExitStack() as clients,
    ):
        daemon.start()
        first, second = (clients.enter_context(daemon.connect(ALICE)) for _ in range(2))
        first.ping()
        assert second.ready(20), "it was hung up on"
        with pytest.raises(Overloaded):
            second.ping()


def test_a_full_queue_of_callers_is_waited_for(daemon: Daemon) -> None:
    """A user who connects again and again keeps no other user out."""
    daemon.send_signal(signal.SIGSTOP)
    with ExitStack() as crowd:
        with suppress(BlockingIOError), user(BOB):
            while True:
                caller = crowd.enter_context(socket.socket(socket.AF_UNIX))
                caller.setblocking(False)
                caller.connect(str(daemon.socket))
        with pytest.raises(DaemonError, match="has not answered in"):
            tapster.connect(daemon.socket, timeout=0.1)
        resume = threading.Timer(0.2, daemon.send_signal, [signal.SIGCONT])
        resume.start()
        with tapster.connect(daemon.socket, timeout=30) as client:
            client.ping()
        resume.join()
