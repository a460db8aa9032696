# SPDX-License-Identifier: Apache-2.0
"""I5, I6: out of descriptors at any one of them, and out of processes."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from errno import EAGAIN, EMFILE, ENOMEM
from itertools import count

import pytest

from lab import library, shell
from lab.reapers import reapers, wait_dead, wait_reaping
from tapster import Host, HostError, Macvtap, Mode, Tap
from tests.faults.faulty_child import Fault, FaultyChild, Script
from tests.faults.sweep import (
    Before,
    Check,
    FaultLab,
    Opened,
    Operation,
    acquire,
    assert_clear,
    attempt,
    held,
    release,
)

TAP = Tap(bridge="br0", queues=3, fin_wait=3600)
MACVTAP = Macvtap(lower="low", queues=2)
PASSTHRU = Macvtap(lower="low", mode=Mode.PASSTHRU, fin_wait=3600)


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Let this process open no more than so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    holes = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    while holes[-1] <= highest:
        holes.append(os.dup(holes[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1 + descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        library.close(holes)


def starve(
    opened: Opened,
    operate: Operation,
    check: Check,
    prepare: Callable[[], object] = lambda: None,
) -> None:
    """Give an operation room for no descriptor, then for one, until it succeeds.

    As `sweep`: each time it fails clearly, and then succeeds when there is room.
    """

    def steps() -> Script:
        for room in count():
            before = set(held())
            with opened() as host:
                yield None
                with room_for(room):
                    error = attempt(operate, host)
                yield error
                yield attempt(operate, host)
            yield set(held()) - before

    with FaultyChild(steps) as child:
        for room in count():
            where = f"room for {room}"
            prepare()
            child.step()
            if error := child.step():
                assert_clear(error, EMFILE, where)
            check(where, error)
            again = child.step()
            assert again is None, f"{where}, {error!r}; then: {again!r}"
            lost = child.step()
            assert not lost, f"{where}, {error!r}; still there: {lost}"
            if error is None:
                break
    assert room > 1


@pytest.mark.parametrize(
    ("lab", "spec"),
    [("here", TAP), ("blue", TAP), ("here", MACVTAP)],
    indirect=["lab"],
    ids=["tap", "tap elsewhere", "macvtap"],
)
def test_an_acquire_out_of_descriptors_leaves_nothing_I6(
    lab: FaultLab, spec: Tap | Macvtap
) -> None:
    before = Before(lab)

    def operate(host: Host) -> None:
        acquire(host, spec)

    starve(lab.there, operate, before.check, before.remember)


@pytest.mark.parametrize(
    ("lab", "operate"),
    [("here", release), ("blue", release), ("blue", Host.recover)],
    indirect=["lab"],
    ids=["release", "release from elsewhere", "recover from elsewhere"],
)
def test_an_operation_that_ran_out_of_descriptors_can_be_repeated_I5(
    lab: FaultLab, operate: Operation
) -> None:
    def make(host: Host) -> None:
        release(host)
        acquire(host, PASSTHRU)
        lost = acquire(host, TAP)
        ip = f"ip -n {lab.netns}" if lab.netns else "ip"
        shell.sh(f"{ip} link del {lost.name}")

    def check(where: str, _: Exception | None) -> None:
        lab.judge(where, settled=False)

    starve(lab.host, operate, check, lambda: lab.repair(make))
    lab.repair()


def test_a_host_out_of_descriptors_is_not_opened(blue: FaultLab) -> None:
    def open_it(_: object) -> None:
        blue.there().close()

    def check(where: str, _: Exception | None) -> None:
        blue.judge(where)

    starve(nullcontext, open_it, check)


def test_the_command_out_of_descriptors_says_so_and_leaves_nothing_I6(
    here: FaultLab,
) -> None:
    add = f"{shell.TAPSTER} add --link low --ledger {here.ledger}"
    complaints: list[str] = []
    for limit in count(3):
        done = subprocess.run(
            f"prlimit --nofile={limit} {add}".split(),
            capture_output=True,
            text=True,
            check=False,
        )
        rows = here.judge(f"limit {limit}")
        if done.returncode == 0:
            break
        assert rows == []
        # With fewer not even Python starts.
        if complaints or done.stderr.startswith("tapster: "):
            complaints.append(done.stderr)
    assert len(complaints) > 3
    for said in complaints:
        assert said.startswith("tapster: "), said
        assert "Traceback" not in said
        assert "fault of Tapster" not in said


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("clone3", EAGAIN), id="no process for a shell"),
        pytest.param(Fault("execve", ENOMEM), id="no memory for a shell"),
        pytest.param(Fault("clone", EAGAIN), id="no process for what the shell starts"),
    ],
)
def test_a_reaper_that_cannot_be_started_is_by_the_next_command(
    here: FaultLab, fault: Fault
) -> None:
    def steps() -> Script:
        with Host(here.ledger) as host:
            yield None
            yield attempt(release, host)

    with here.host() as host:
        acquire(host, TAP)
    with FaultyChild(steps, [fault.call]) as child:
        child.step()
        error = child.step(fault)
    assert isinstance(error, HostError)
    assert "the reaper could not be started" in str(error)
    (row,) = here.judge(str(fault))
    assert row.state == "fin_wait", "it is released all the same"
    assert reapers(here.ledger) == []
    shell.sh(f"{shell.TAPSTER} ls --ledger {here.ledger}")
    wait_reaping(here.ledger)
    with here.host() as host:
        host.reap(now=True)
    wait_dead(reapers(here.ledger))
