# SPDX-License-Identifier: Apache-2.0
"""An exception at any instruction, and a signal handler that uses the same Host."""

import ctypes
import gc
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.interrupts import act_at, moments
from lab.library import no_reaper
from tapster import Host, Macvtap, OpenDevice, RequestError, State, Tap
from tapster.testing import FakeSystem

pytestmark = pytest.mark.slow

_raise = ctypes.CDLL(None)["raise"]
INTERRUPTS = 1200
"""At least so many are sent for each kind of device."""
PARTS = 2
"""The moments of a run are shared by so many tests, which may run at once."""
SPECS: dict[str, Tap | Macvtap] = {
    "tap": Tap(bridge="br0", queues=2),
    "macvtap": Macvtap(lower="low"),
}


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, whatever the tests were started with."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def _quick_collection() -> Iterator[None]:
    """Let `gc.collect` look only at what a test makes: other tests left much more."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def system() -> FakeSystem:
    system = FakeSystem()
    system.stranger().add_bridge("br0", mac="02:00:00:00:00:01")
    system.stranger().add_veth("low", "far")
    return system


@pytest.fixture
def host(system: FakeSystem, tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path / "ledger.db", system=system, reaper=no_reaper) as host:
        yield host


def live(host: Host, spec: Tap | Macvtap = SPECS["tap"]) -> None:
    """Go through most of what a Host does."""
    with host.acquire(spec) as device:
        host.set(device, mtu=1400)
        assert host.differences(device) == {}
        assert host.differing(host.leases()) == set()
        assert host.look_up(device.name).id == device.id
        host.bind([device], None)
    host.reopen(device).close()
    host.settle()
    host.release(device)
    host.recover()
    host.reap(now=True)


def descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def settled(host: Host, system: FakeSystem) -> tuple[object, ...]:
    """Clear everything; return what must be as it was in the beginning."""
    host.recover()
    for lease in host.leases():
        host.release(lease.id)
    host.reap(now=True)
    return host.leases(), {*system.space(1).devices}, descriptors()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", SPECS)
def test_ctrl_c_at_any_instruction_leaves_nothing(
    host: Host, system: FakeSystem, kind: str, part: int
) -> None:
    def run() -> None:
        live(host, SPECS[kind])

    run()
    there = moments(run)[part::PARTS]
    before = settled(host, system)
    raised = 0
    for moment in there:
        try:
            act_at(moment, _interrupt, run)
        except KeyboardInterrupt:
            raised += 1
        assert not host.operations.context.ledger.file.connection.in_transaction, moment
        assert _another_thread_may_enter(host), moment
        assert settled(host, system) == before, moment
    # An interrupt in a destructor is not raised in its caller.
    assert raised > len(there) * 0.9
    assert len(there) * PARTS > INTERRUPTS


def test_an_acquire_that_is_interrupted_at_its_end_leaves_no_lease(
    host: Host, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(OpenDevice):
        """Is made when signals are deferred, and none of it can be undone inside."""

        def __init__(self, *opened: Any) -> None:
            super().__init__(*opened)
            _interrupt()

    live(host)
    before = settled(host, system)
    monkeypatch.setattr("tapster.host.OpenDevice", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        host.acquire_all([Tap(bridge="br0"), Tap(bridge="br0")])
    assert [lease.state for lease in host.leases()] == [State.FIN_WAIT] * 2
    assert settled(host, system) == before


def _interrupt() -> None:
    """Send this thread SIGINT; unlike Python's functions, run no handler."""
    _raise(signal.SIGINT)


def _another_thread_may_enter(host: Host) -> bool:
    done = threading.Event()

    def look() -> None:
        host.leases()
        done.set()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    return done.is_set()


REFUSED = "this Host is in the middle of a call of this thread"
USES: dict[str, Callable[[Host], object]] = {
    "acquire": lambda host: host.acquire(Tap()).close(),
    "leases": lambda host: host.leases(),
    "recover": lambda host: host.recover(),
}


@pytest.mark.parametrize("use", USES)
def test_a_signal_handler_is_refused_in_the_middle_of_a_call(
    host: Host, system: FakeSystem, use: str
) -> None:
    live(host)
    there = moments(lambda: live(host))
    before = settled(host, system)
    outcomes: Counter[str] = Counter()

    def handler() -> None:
        try:
            USES[use](host)
        except RequestError as error:
            outcomes[str(error).partition(": ")[0]] += 1

    for moment in random.Random(1).sample(there, 300):
        act_at(moment, handler, lambda: live(host))
        assert settled(host, system) == before, moment
    assert outcomes[REFUSED] > 200
    assert len(outcomes) == 1


def test_a_signal_handler_cannot_close_in_the_middle_of_a_call(
    host: Host, system: FakeSystem
) -> None:
    refused: list[str] = []

    def close(_: str) -> None:
        with pytest.raises(RequestError, match="in the middle of a call"):
            host.close()
        refused.append("close")

    system.step = close
    live(host)
    assert refused


class Timeout(Exception):
    """What a program's time limit raises."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_of_a_signal_handler_is_not_taken_for_a_fault(
    host: Host, system: FakeSystem
) -> None:
    def give_up(*_: object) -> None:
        raise Timeout

    before = signal.signal(signal.SIGALRM, give_up)
    live(host)
    try:
        raised = 0
        for moment in random.Random(1).sample(moments(lambda: live(host)), 20):
            try:
                act_at(moment, _alarm, lambda: live(host))
            except Timeout:
                raised += 1
            assert settled(host, system)[0] == []
        assert raised > 15  # none is raised out of a destructor
    finally:
        signal.signal(signal.SIGALRM, before)


def _alarm() -> None:
    _raise(signal.SIGALRM)
