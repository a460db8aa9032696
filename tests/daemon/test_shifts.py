# SPDX-License-Identifier: Apache-2.0
"""Which thread serves: the worker's between its jobs, another one during a long job."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tapster.daemon import shifts
from tapster.daemon.loop import READ, Loop
from tapster.daemon.shifts import Shifts
from tapster.daemon.worker import Worker
from tapster.errors import HostError

LONG = 60.0
"""Seconds after which a wait fails."""


class Served:
    """A loop that two threads serve; who served, and who did the jobs."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.worker = Worker(lambda error: HostError(str(error)))
        self.shifts = Shifts(self.worker, self._serve)
        self.loop.add(self.worker.wake, READ, lambda _: self.worker.deliver())
        self.on_serve: Callable[[], None] = lambda: None
        self.main = threading.Thread(target=self._run)
        self.serving = 0
        """How many threads serve at this moment."""
        self.failure: BaseException | None = None

    def _run(self) -> None:
        try:
            self.shifts.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def _serve(self, seconds: float) -> None:
        self.serving += 1
        assert self.serving == 1, "two threads serve at a time"
        self.on_serve()
        # The worker's thread must not wait until the other thread hears of something.
        main = threading.current_thread() is self.main
        self.loop.turn(LONG if main else min(seconds, LONG))
        self.serving -= 1

    def serving_thread(self) -> threading.Thread:
        """Return the thread that serves now."""
        found: list[threading.Thread] = []
        there = threading.Event()

        def note(_: object) -> None:
            found.append(threading.current_thread())
            there.set()

        self.worker.call_serving(note, None)
        assert there.wait(LONG)
        return found[0]

    def submit(self, work: Callable[[], object]) -> threading.Event:
        """Let the serving thread submit a job; set when its result was handed over."""
        done = threading.Event()

        def submit(_: object) -> None:
            self.worker.submit(work, lambda _: done.set())

        self.worker.call_serving(submit, None)
        return done


@contextmanager
def running() -> Iterator[Served]:
    served = Served()
    served.main.start()
    try:
        yield served
    finally:
        served.shifts.end()
        served.main.join(LONG)
        served.worker.finish()
        served.loop.close()
    assert not served.main.is_alive()


def test_the_thread_that_does_jobs_serves_between_them() -> None:
    with running() as served:
        threads: list[threading.Thread] = []
        for _ in range(3):
            threads.append(served.serving_thread())
            done = served.submit(lambda: threads.append(threading.current_thread()))
            assert done.wait(LONG)
        assert set(threads) == {threads[0]}
        assert threads[0] is not served.main
    assert served.failure is None


@pytest.mark.parametrize("asleep", [False, True])
def test_another_thread_serves_while_a_job_lasts(
    monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    if asleep:
        monkeypatch.setattr(shifts, "DROWSY", 0)
    with running() as served:
        for _ in range(3):
            usual = served.serving_thread()
            go_on, begun = threading.Event(), threading.Event()

            def last(begun: threading.Event = begun, go: object = go_on) -> None:
                begun.set()
                assert isinstance(go, threading.Event)
                assert go.wait(LONG)

            done = served.submit(last)
            assert begun.wait(LONG)
            assert served.serving_thread() is served.main
            second = served.submit(lambda: None)
            assert not second.is_set(), "a job is done at a time"
            go_on.set()
            assert done.wait(LONG)
            assert second.wait(LONG)
            assert served.serving_thread() is usual
    assert served.failure is None


def test_at_the_end_the_jobs_that_wait_are_done() -> None:
    results: list[int] = []
    with running() as served:
        go_on, begun = threading.Event(), threading.Event()

        def last() -> None:
            begun.set()
            assert go_on.wait(LONG)
            results.append(1)

        served.submit(last)
        assert begun.wait(LONG)
        submitted = threading.Event()

        def submit(_: object) -> None:
            served.worker.submit(lambda: results.append(2), lambda _: results.append(3))
            submitted.set()

        served.worker.call_serving(submit, None)
        assert submitted.wait(LONG)
        served.shifts.end()
        go_on.set()
    assert results == [1, 2, 3]


def test_what_serving_raises_ends_the_daemon() -> None:
    with running() as served:

        def fail() -> None:
            raise RuntimeError("serving failed")

        served.on_serve = fail
        served.worker.poke()
        served.main.join(LONG)
    assert str(served.failure) == "serving failed"
