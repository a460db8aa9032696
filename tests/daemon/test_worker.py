# SPDX-License-Identifier: Apache-2.0
"""The threads of the daemon: turns of users, deadlines, and closes that wait."""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from tapster.daemon.closer import Closer
from tapster.daemon.links import BUSY_PAUSE, PAUSE, Links
from tapster.daemon.loop import READ, Loop
from tapster.daemon.metrics import Metrics
from tapster.daemon.processes import RETRY, WatchedProcesses
from tapster.daemon.schedule import (
    ASIDE,
    FAILED_PAUSE,
    LATE,
    REAP_PAUSE,
    SMALL_BATCH,
    ReapSchedule,
)
from tapster.daemon.throttle import FREE_WORK, Throttle
from tapster.daemon.worker import (
    DROPPED,
    MANY_JOBS,
    MOMENT,
    MOST_TOGETHER,
    FairQueue,
    Job,
    Joint,
    Worker,
)
from tapster.errors import HostError, KernelError
from tapster.kernel import unix
from tapster.kernel.port import WatchReport
from tapster.model import Process
from tapster.operations.reap import REAP_BATCH
from tapster.testing import FakeSystem
from tests.daemon.parts import FakeClock, RecordingLog


def nothing(*_: object) -> None:
    """Do nothing."""


# Turns


def test_users_take_turns_and_the_jobs_of_each_stay_in_order() -> None:
    queue = FairQueue()
    jobs = {(user, n): Job(nothing, nothing) for user in (1, 2) for n in range(3)}
    late = Job(nothing, nothing)
    for user in (1, 2):
        for n in range(3):
            queue.put(user, jobs[user, n])
    queue.put(3, late)
    order = [job for _ in range(7) for job in queue.get()]
    expected = [jobs[1, 0], jobs[2, 0], late, jobs[1, 1], jobs[2, 1]]
    assert order == [*expected, jobs[1, 2], jobs[2, 2]]
    assert not queue.waiting
    queue.close()
    assert not queue.get()


def test_a_newcomer_waits_for_one_job_of_a_user_who_has_many() -> None:
    queue = FairQueue()
    flood = [Job(nothing, nothing) for _ in range(3)]
    late = Job(nothing, nothing)
    for job in flood[:2]:
        queue.put(1, job)
    assert queue.get() == [flood[0]]
    queue.put(2, late)
    queue.put(1, flood[2])
    assert [queue.get() for _ in range(3)] == [[late], [flood[1]], [flood[2]]]


def test_a_newcomer_is_before_a_user_who_asks_again_during_its_own_job() -> None:
    queue = FairQueue()
    first, again, late = (Job(nothing, nothing) for _ in range(3))
    queue.put(1, first)
    assert queue.get() == [first]
    queue.put(1, again)
    queue.put(2, late)
    assert queue.waiting
    assert [queue.get(), queue.get()] == [[late], [again]]


def test_jobs_of_a_kind_are_done_together_while_no_other_user_waits() -> None:
    queue = FairQueue()

    def job(kind: str) -> Job:
        return Job(nothing, nothing, Joint(kind, list, kind))

    alike = [job("a") for _ in range(MOST_TOGETHER + 2)]
    others = [job("b"), Job(nothing, nothing), Job(nothing, nothing), job("a")]
    for each in alike + others:
        queue.put(1, each)
    assert queue.get() == alike[:MOST_TOGETHER]
    assert queue.get() == alike[MOST_TOGETHER:]
    assert [queue.get() for _ in others] == [[each] for each in others]


def test_jobs_are_done_one_by_one_while_another_user_waits() -> None:
    queue = FairQueue()
    first, second, other = (
        Job(nothing, nothing, Joint("a", list, number)) for number in range(3)
    )
    queue.put(1, first)
    queue.put(1, second)
    queue.put(2, other)
    assert [queue.get() for _ in range(3)] == [[first], [other], [second]]


def test_jobs_that_are_done_together_have_their_own_results() -> None:
    worker = Worker(lambda error: HostError(f"unforeseen: {error}"))
    results: list[Any] = []
    done: list[Sequence[int]] = []

    def divide(numbers: Sequence[int]) -> list[Any]:
        done.append(numbers)
        if 13 in numbers:
            raise HostError("none")
        return [
            HostError("by zero") if number == 0 else 100 // number for number in numbers
        ]

    def submit(number: int) -> Job:
        joint = Joint(number == 13, divide, number)
        return worker.submit(lambda: "alone", results.append, joint=joint)

    for number in (0, 5, 7):
        submit(number)
    submit(2).drop()
    submit(13)
    submit(13)
    submit(5)
    worker.start()
    worker.finish()
    assert done == [[0, 5, 7], [13, 13]]
    dropped, zero, *others, first, second, alone = results
    assert (dropped, str(zero), others) == (DROPPED, "by zero", [20, 14])
    assert (str(first), str(second), alone) == ("none", "none", "alone")


def test_a_worker_with_many_jobs_is_left_alone_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    worker = Worker(lambda error: HostError(f"unforeseen: {error}"))
    for number in range(MANY_JOBS):
        worker.leave_alone()
        assert not slept
        worker.submit(lambda: None, lambda _: None, user=number)
    worker.leave_alone()
    assert slept == [MOMENT]
    worker.run_one()
    worker.leave_alone()
    assert slept == [MOMENT]
    worker.finish()


def test_a_worker_hands_over_results_errors_and_what_was_dropped() -> None:
    worker = Worker(lambda error: HostError(f"unforeseen: {error}"))
    results: list[Any] = []

    def fail() -> None:
        raise HostError("foreseen")

    worker.submit(lambda: 1, results.append)
    worker.submit(fail, results.append)
    worker.submit(lambda: 1 / 0, results.append)
    worker.submit(lambda: 1, results.append).drop()
    worker.start()
    worker.finish()
    one, foreseen, unforeseen, dropped = results
    assert (one, dropped) == (1, DROPPED)
    assert str(foreseen) == "foreseen"
    assert str(unforeseen) == "unforeseen: division by zero"


def test_the_serving_thread_wakes_up_once_for_a_job() -> None:
    worker = Worker(lambda error: HostError(f"unforeseen: {error}"))
    results: list[Any] = []
    worker.call_serving(results.append, "before")
    assert os.eventfd_read(worker.wake) == 1

    def report() -> str:
        worker.call_serving(results.append, "first")
        worker.call_serving(results.append, "second")
        return "answer"

    worker.submit(report, results.append)
    worker.run_one()
    assert os.eventfd_read(worker.wake) == 1
    worker.finish()
    assert results == ["before", "first", "second", "answer"]


def test_what_follows_a_job_does_not_delay_its_result() -> None:
    worker = Worker(lambda error: HostError(f"unforeseen: {error}"))
    results: list[Any] = []
    woken: list[int] = []

    def follow_up() -> bool:
        woken.append(os.eventfd_read(worker.wake))
        return len(woken) == 2

    worker.after = follow_up
    for number in range(3):
        worker.submit(partial(int, number), results.append)
    for _ in range(3):
        worker.run_one()
    assert woken == [1, 2], "for the first job, not while one waits, when none does"
    assert os.eventfd_read(worker.wake) == 1, "what followed has changed something"
    worker.finish()
    assert results == [0, 1, 2]


# The loop


def test_a_descriptor_closed_within_a_turn_gets_no_call() -> None:
    loop = Loop()
    pairs = [os.pipe() for _ in range(2)]
    calls: list[int] = []

    def first(number: int, _: int) -> None:
        calls.append(number)
        other = pairs[1 - number][0]
        loop.remove(other)
        os.close(other)
        replaced = os.open("/dev/null", os.O_RDONLY)
        assert replaced == other
        os.close(replaced)

    for number, (reading, writing) in enumerate(pairs):
        loop.add(reading, READ, partial(first, number))
        os.write(writing, b"x")
    loop.turn(1)
    assert len(calls) == 1
    loop.close()
    for number, (reading, writing) in enumerate(pairs):
        os.close(writing)
        if number in calls:
            os.close(reading)


def test_due_calls_are_made_in_the_order_of_time() -> None:
    clock = FakeClock()
    loop = Loop(clock)
    calls: list[str] = []
    loop.at(clock() + 2, lambda: calls.append("later"))
    loop.at(clock() + 1, lambda: calls.append("soon"))
    loop.turn(0)
    assert calls == []
    clock.advance(2)
    loop.turn(0)
    assert calls == ["soon", "later"]
    loop.close()


# Rates


def test_a_user_waits_for_a_token_no_longer_than_the_rate_says() -> None:
    throttle = Throttle()
    assert [throttle.admit(7, 10, 100.0) for _ in range(20)] == [0.0] * 20
    assert throttle.admit(7, 10, 100.0) == pytest.approx(0.1)
    assert throttle.admit(8, 10, 100.0) == 0, "another user has another bucket"
    assert throttle.admit(7, 10, 100.2) == 0
    throttle.forget(10, 104.0)
    assert throttle.admit(7, 10, 104.0) == 0


def test_a_request_that_takes_long_takes_the_tokens_of_many() -> None:
    throttle = Throttle()
    throttle.charge(7, 10, FREE_WORK, 100.0)
    throttle.charge(7, 10, 1.0 + FREE_WORK, 100.0)
    assert throttle.admit(7, 10, 100.0) == pytest.approx(2.1), "it owes 20 tokens"
    assert throttle.admit(8, 10, 100.0) == 0, "another user does not"
    throttle.forget(10, 103.0)
    assert throttle.admit(7, 10, 101.0) > 0, "a debt is not forgotten"
    assert throttle.admit(7, 10, 102.2) == 0
    throttle.forget(10, 104.3)
    assert [throttle.admit(7, 10, 104.3) for _ in range(20)] == [0.0] * 20


# Processes


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(FakeClock())
    yield loop
    loop.close()


def test_the_end_of_a_process_is_reported_once(loop: Loop) -> None:
    log = RecordingLog()
    system, ended = FakeSystem(), list[Process]()
    processes = WatchedProcesses(loop, system, ended.append, log)
    seven, eight = system.start(7), system.start(8)
    processes.watch(seven)
    processes.watch(seven)
    processes.watch(eight)
    assert len(processes) == 2
    processes.forget(eight)
    system.end(7)
    system.end(8)
    loop.turn(0)
    assert ended == [seven]
    processes.watch(eight)
    assert ended == [seven, eight], "it had ended before it was watched"
    processes.close()


def test_processes_that_cannot_be_watched_yet_are_tried_again_and_logged_once(
    loop: Loop,
) -> None:
    log = RecordingLog()
    system, ended = FakeSystem(), list[Process]()
    processes = WatchedProcesses(loop, system, ended.append, log)
    seven, eight = system.start(7), system.start(8)
    opened = system.open_process

    def full(process: Process) -> int | None:
        raise KernelError(24, f"opening process {process.pid}", "too many open files")

    system.open_process = full  # type: ignore[method-assign]
    assert isinstance(loop.now, FakeClock)
    processes.watch(seven)
    processes.watch(eight)
    loop.now.advance(RETRY)
    loop.turn(0)
    assert len(processes) == 0
    assert len(log.named("process-not-watched")) == 1
    system.open_process = opened  # type: ignore[method-assign]
    loop.now.advance(RETRY)
    loop.turn(0)
    assert len(processes) == 2
    processes.close()


# Links


def test_lost_reports_are_counted_and_make_one_recover(loop: Loop) -> None:
    system, metrics = FakeSystem(), Metrics()
    watch = system.watch(first=0)
    submitted: list[Callable[[], object]] = []
    upkeep: Any = None
    links = Links(loop, [watch], upkeep, submitted.append, metrics, lambda: False)
    for _ in range(2):
        watch.overrun()
        loop.turn(0)
        assert isinstance(loop.now, FakeClock)
        loop.now.advance(PAUSE)
        loop.turn(0)
    assert metrics.counts()[0][:2] == ("overruns", 2)
    assert len(submitted) == 1
    links.close()


def test_a_watch_is_read_at_the_end_of_each_pause_until_it_is_quiet(
    loop: Loop,
) -> None:
    system = FakeSystem()
    watch = system.watch(first=0)
    read, reads = watch.changes, []

    def changes() -> WatchReport | None:
        reads.append(loop.now())
        return read()

    watch.changes = changes  # type: ignore[method-assign]
    submitted: list[Callable[[], object]] = []
    upkeep: Any = None
    busy = False
    links = Links(loop, [watch], upkeep, submitted.append, Metrics(), lambda: busy)
    clock = loop.now
    assert isinstance(clock, FakeClock)
    began = clock()
    system.stranger().add_bridge("br0")
    watch.deliver()
    loop.turn(0)
    assert len(submitted) == 1, "the first report is looked at immediately"
    system.stranger().add_bridge("br1")
    watch.deliver()
    loop.turn(0)
    assert reads == [began]
    for _ in range(3):
        clock.advance(PAUSE)
        loop.turn(0)
    assert reads == [began, began + PAUSE, began + 2 * PAUSE]
    busy = True
    system.stranger().add_bridge("br2")
    watch.deliver()
    loop.turn(0)
    assert reads[-1] == clock(), "it is quiet: the next report wakes the loop"
    for moment, number in ((PAUSE, 4), (BUSY_PAUSE - PAUSE, 5)):
        clock.advance(moment)
        loop.turn(0)
        assert len(reads) == number, "the pause is longer while calls wait"
    links.close()


# Reaping


class Due:
    """An upkeep whose only part is a deadline."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.reaps = 0
        self.batches: list[int] = []
        self.error: Exception | None = None

    def reap(self, batch: int) -> None:
        self.reaps += 1
        self.batches.append(batch)
        if self.error:
            raise self.error


def test_a_batch_is_reaped_when_due_and_the_next_after_a_pause(loop: Loop) -> None:
    due: Any = Due(50.0)
    clock = loop.now
    assert isinstance(clock, FakeClock)
    boottime = [49.5]
    worker = Worker(lambda error: HostError(str(error)))
    log = RecordingLog()
    schedule = ReapSchedule(loop, worker, due, log, lambda: boottime[0])
    assert schedule.seconds() == 0.5
    schedule.run()
    assert not worker.waiting
    boottime[0] = 50.0
    schedule.run()
    schedule.run()
    worker.run_one()
    assert not worker.waiting, "one batch at a time"
    worker.deliver()
    assert schedule.seconds() == REAP_PAUSE
    clock.advance(REAP_PAUSE)
    due.error = HostError("the disk is full")
    schedule.run()
    worker.run_one()
    worker.deliver()
    assert schedule.seconds() == FAILED_PAUSE
    assert due.reaps == 2
    assert len(log.named("not-reaped")) == 1
    worker.finish()


def test_reaping_lets_calls_go_first_until_it_is_late(loop: Loop) -> None:
    due: Any = Due(50.0)
    clock = loop.now
    assert isinstance(clock, FakeClock)
    boottime = [50.0]
    worker = Worker(lambda error: HostError(str(error)))
    schedule = ReapSchedule(loop, worker, due, RecordingLog(), lambda: boottime[0])

    def reaped() -> bool:
        clock.advance(REAP_PAUSE)
        before = due.reaps
        schedule.run()
        while worker.waiting:
            worker.run_one()
        worker.deliver()
        return bool(due.reaps > before)

    def call(_: object = None) -> None:
        worker.submit(lambda: None, lambda _: None, user=1000)

    assert reaped()
    assert due.batches == [REAP_BATCH], "nobody calls"
    call()
    worker.run_one()
    assert reaped()
    assert due.batches[1:] == [SMALL_BATCH], "somebody calls now and then"
    call()
    assert not reaped(), "a call waits"
    assert 0 < schedule.seconds() <= ASIDE
    boottime[0] += LATE + 0.1
    call()
    assert reaped()
    assert due.batches[2:] == [REAP_BATCH], "it is late"
    worker.finish()


# Closes that wait


def lingering() -> tuple[int, socket.socket]:
    """A descriptor whose close waits until the returned socket is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sender.setblocking(False)
    try:
        while True:
            sender.send(b"x" * 65536)
    except BlockingIOError:
        pass
    sender.setblocking(True)
    linger = struct.pack("ii", 1, 3600)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return sender.detach(), receiver


def test_a_close_that_waits_delays_neither_the_caller_nor_another_user() -> None:
    closes = Closer()
    fd, receiver = lingering()
    closes.close_fds(1, [fd])
    reading, writing = os.pipe()
    closes.close_fds(2, [writing])
    poll = select.poll()
    poll.register(reading, select.POLLHUP)
    assert poll.poll(10_000), "the other user's descriptor is closed"
    assert closes.waiting(1) == 1
    receiver.close()
    for thread in threading.enumerate():
        if thread.name.startswith("closer"):
            thread.join(10)
    assert closes.waiting(1) == 0
    os.close(reading)


def test_unread_descriptors_are_closed_by_the_users_thread() -> None:
    closes = Closer()
    ours, theirs = socket.socketpair()
    fd, receiver = lingering()
    unix.send(theirs, b"x", [fd])
    os.close(fd)
    closes.close_connection(1, ours)
    assert closes.waiting(1) == 1
    with pytest.raises(BrokenPipeError):
        theirs.send(b"more")
    receiver.close()
    for thread in threading.enumerate():
        if thread.name.startswith("closer"):
            thread.join(10)
    assert closes.waiting(1) == 0
    theirs.close()


def test_a_pidfd_is_closed_at_once() -> None:
    pidfd = os.pidfd_open(os.getpid())
    Closer().close_fds(1, [pidfd])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
