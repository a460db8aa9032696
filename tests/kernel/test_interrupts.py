# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any instruction leaves the thread in its namespace."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType
from typing import Any

import pytest

from lab import shell
from tapster.kernel import netns

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

_raise = ctypes.CDLL(None)["raise"]
"""raise(3). Unlike Python's functions it runs no handler: that comes later."""


def interrupt(number: int, function: Callable[[], object]) -> tuple[int, bool]:
    """Call a function and send SIGINT before its n-th instruction.

    Return how many instructions there were, and whether KeyboardInterrupt came.
    """
    passed = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == number:
                _raise(signal.SIGINT)
        return trace

    before = sys.gettrace()
    # Python 3.12 traces instructions only if a frame asked for that before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return passed, True
    finally:
        sys.settrace(before)
    return passed, False


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, whatever the tests were started with."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # a plugin of pytest runs at a collection, and gets the signal
    yield
    gc.enable()
    signal.signal(signal.SIGINT, handler)


def state() -> tuple[Any, ...]:
    """Return what an interrupt must leave as it was."""
    return (
        os.readlink("/proc/thread-self/ns/net"),
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        sorted(os.listdir("/proc/self/fd")),
    )


def enter(fd: int) -> None:
    with netns.inside(fd):
        assert os.stat(netns.OWN).st_ino == os.fstat(fd).st_ino


def fail(fd: int) -> None:
    with pytest.raises(ZeroDivisionError), netns.inside(fd):
        raise ZeroDivisionError


def make(_: int) -> None:
    os.close(netns.new_empty())


@pytest.mark.parametrize("use", [enter, fail, make])
def test_ctrl_c_at_any_instruction_leaves_the_thread_in_its_namespace(
    use: Callable[[int], None],
) -> None:
    shell.sh("ip netns add blue")
    fd = netns.open_netns("/run/netns/blue")
    use(fd)  # import what is imported once
    before = state()
    interrupts = 0
    for number in count(1):
        passed, raised = interrupt(number, lambda: use(fd))
        interrupts += raised
        namespace, mask, fds = state()
        assert (namespace, mask) == before[:2], f"instruction {number}"
        if use is not make:  # its caller may be interrupted before it has the fd
            assert fds == before[2], f"instruction {number}"
        if passed < number:
            break
    os.close(fd)
    assert interrupts > 100
