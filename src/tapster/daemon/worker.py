# SPDX-License-Identifier: Apache-2.0
"""The one thread that works on devices, while another serves the sockets."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence

from tapster.errors import TapsterError
from tapster.light import Any, NamedTuple

Work = Callable[[], Any]
OnDone = Callable[[Any], None]

MOST_TOGETHER = 8
"""Jobs that are done together. A user that comes now waits for all of them."""

MANY_JOBS = 16
"""So many jobs that the worker is busy for longer than MOMENT."""
MOMENT = 0.005
"""Seconds that the serving thread leaves the interpreter to a worker with many jobs.

Python runs one thread at a time, and each system call hands the interpreter over. While
64 clients acquired, nine hand-overs an acquire took as long as all that the serving
thread did. A call of another user may be seen, and be answered, so much later.
"""
AFTER_PAUSE = 0.1
DAEMON = -1
"""Stands for a user in the queue: work that the daemon does for itself."""


class Dropped:
    """The type of DROPPED, the result of a job that was dropped before it began."""


DROPPED = Dropped()


class Joint(NamedTuple):
    """How to do several jobs together, which takes less time than one after another."""

    kind: Hashable
    """Jobs of the same kind can be done together."""
    work: Callable[[Sequence[Any]], Sequence[Any]]
    """Does the jobs with these arguments. Returns their results, or their errors."""
    argument: Any
    """Of one job."""


class Job:
    """A piece of work for a user. It can be dropped as long as it has not begun."""

    __slots__ = ("dropped", "joint", "on_done", "spent", "work")

    def __init__(self, work: Work, on_done: OnDone, joint: Joint | None = None) -> None:
        self.work = work
        self.joint = joint
        """How to do the job with others; None if it must be done alone."""
        self.on_done = on_done
        self.dropped = False
        self.spent = 0.0
        """Seconds of processor time that it took."""

    def drop(self) -> None:
        """Do not begin this job; its result is then `DROPPED`."""
        self.dropped = True


class FairQueue:
    """Jobs by user: users take turns, and the jobs of each stay in order.

    A user whose job is being done has its next turn after those who wait when that job
    is done. So a newcomer waits for at most one job of each other user. While no other
    user waits, the user's next jobs may be done together.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._jobs: dict[int, deque[Job]] = {}
        self._turns: deque[int] = deque()
        """The users who have jobs, without the user whose job is being done."""
        self._served: int | None = None
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, list(self._jobs.values())))

    @property
    def waiting(self) -> bool:
        """Whether there is a job. Any thread may ask, without waiting."""
        return bool(self._jobs)

    def put(self, user: int, job: Job) -> None:
        with self._ready:
            jobs = self._jobs.setdefault(user, deque())
            if not jobs and user != self._served:
                self._turns.append(user)
            jobs.append(job)
            self._ready.notify()

    def close(self) -> None:
        """Let `get` return None when no job is left."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def get(self) -> list[Job]:
        """Wait for the next job and return it, with those that are to be done together
        with it; return none at the end.

        The former jobs are done now.
        """
        with self._ready:
            if self._served in self._jobs:
                self._turns.append(self._served)
            self._served = None
            while not self._turns:
                if self._closed:
                    return []
                self._ready.wait()
            self._served = user = self._turns.popleft()
            jobs = self._jobs[user]
            taken = [jobs.popleft()]
            if not self._turns and taken[0].joint is not None:
                kind = taken[0].joint.kind
                while jobs and len(taken) < MOST_TOGETHER:
                    if jobs[0].joint is None or jobs[0].joint.kind != kind:
                        break
                    taken.append(jobs.popleft())
            if not jobs:
                del self._jobs[user]
            return taken


class Worker:
    """Does jobs one after the other and hands their results to the serving thread.

    The serving thread calls `deliver`, which calls each job's `on_done` with the result
    or the error of the job. `wake` is readable when there are results to deliver.
    """

    def __init__(
        self,
        explain: Callable[[Exception], TapsterError],
        *,
        name: str = "worker",
        may_hang: bool = False,
    ) -> None:
        """`explain` makes a result of an error that nobody foresaw. The end of the
        daemon does not wait for the jobs of a worker that may hang."""
        self.calls = 0
        """How many jobs users have asked for. Any thread may read it."""
        self.after: Callable[[], bool] | None = None
        """Called after a job, when its result is handed over. While jobs wait, it is
        called once in `AFTER_PAUSE`. True wakes the serving thread."""
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._explain = explain
        self._queue = FairQueue()
        self._results: deque[tuple[OnDone, Any]] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=may_hang)
        self._may_hang = may_hang
        self._working = 0
        """The thread that does a job, or 0."""
        self._after_again = 0.0

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """Whether a job waits. Any thread may ask."""
        return self._queue.waiting

    def leave_alone(self) -> None:
        """Leave the interpreter to this worker for a moment if it has many jobs. The
        serving thread calls this method before it looks for more."""
        if len(self._queue) >= MANY_JOBS:
            time.sleep(MOMENT)  # noqa: TID251 - nothing is to happen: jobs wait

    def submit(
        self,
        work: Work,
        on_done: OnDone,
        user: int = DAEMON,
        joint: Joint | None = None,
    ) -> Job:
        """Queue a job for a user. Any thread may call this method."""
        job = Job(work, on_done, joint)
        self.calls += user != DAEMON
        self._queue.put(user, job)
        return job

    def call_serving(self, call: OnDone, value: Any) -> None:
        """Let the serving thread call `call`. Any thread may call this method.

        What a job lets it call waits for the end of the job: the serving thread wakes
        up once for a job, and does not take the interpreter from it.
        """
        self._results.append((call, value))
        if threading.get_ident() != self._working:
            os.eventfd_write(self.wake, 1)

    def deliver(self) -> None:
        """Hand over the results that are ready. Only the serving thread calls this
        method."""
        os.eventfd_read(self.wake)
        self._hand_over()

    def finish(self) -> None:
        """Do the remaining jobs, hand over the results, and end.

        If the jobs may hang, leave them, with `wake` open: the process ends now.
        """
        self._queue.close()
        if self._may_hang:
            return
        if self._thread.ident is not None:
            self._thread.join()
        self._hand_over()
        os.close(self.wake)

    def _hand_over(self) -> None:
        while self._results:
            on_done, value = self._results.popleft()
            try:
                on_done(value)
            except Exception as error:  # noqa: BLE001 - one answer must not end all
                self._explain(error)

    def run_one(self) -> bool:
        """Wait for the next job and do it, with those that are to be done together with
        it. Return False at the end.

        The worker's thread calls this method, or a test that has not started the
        thread.
        """
        jobs = self._queue.get()
        if not jobs:
            return False
        self._working = threading.get_ident()
        try:
            self._do(jobs)
        finally:
            self._working = 0
            os.eventfd_write(self.wake, 1)
        self._follow_up()
        return True

    def _do(self, jobs: Sequence[Job]) -> None:
        wanted = []
        for job in jobs:
            if job.dropped:
                self.call_serving(job.on_done, DROPPED)
            else:
                wanted.append(job)
        if not wanted:
            return
        start = time.thread_time()
        try:
            results = _results(wanted)
        except TapsterError as error:
            results = [error] * len(wanted)
        except Exception as error:  # noqa: BLE001 - one call must not end all
            results = [self._explain(error)] * len(wanted)
        spent = (time.thread_time() - start) / len(wanted)
        for job, result in zip(wanted, results, strict=True):
            job.spent = spent
            self.call_serving(job.on_done, result)

    def _follow_up(self) -> None:
        now = time.monotonic()
        if self.after is None or (self.waiting and now < self._after_again):
            return
        self._after_again = now + AFTER_PAUSE
        try:
            changed = self.after()
        except Exception as error:  # noqa: BLE001 - the next job must be done
            self._explain(error)
        else:
            if changed:
                os.eventfd_write(self.wake, 1)

    def _run(self) -> None:
        while self.run_one():
            pass


def _results(jobs: Sequence[Job]) -> Sequence[Any]:
    """Do jobs, several together. Return their results."""
    joint = jobs[0].joint
    if len(jobs) == 1 or joint is None:
        return [jobs[0].work()]
    return joint.work([job.joint.argument for job in jobs if job.joint is not None])
