# SPDX-License-Identifier: Apache-2.0
"""Act in the middle of a call of Python: as a signal handler does, or Ctrl-C.

Python runs signal handlers between two instructions, but only after a call, after a
jump back, and at the start of a function (CHECK_EVAL_BREAKER in Python/ceval.c). What a
handler raises belongs to the instruction before. So none comes between the last call in
a `with` block and the end of the block. Here the same instructions count.
"""

import sys
from collections.abc import Callable
from dis import Bytecode, opmap
from functools import cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tapster import light

# Each run must make its tuples by the same instructions: by compiled constructors.
vars(light)["FEW"] = 0

COUNTED = ("/tapster/", "contextlib")
"""Instructions in files with such paths are counted."""
IN_MEMORY = "/tapster/testing/"
"""Those of the host in memory are not: a system call is not interrupted half-way."""
AFTER = frozenset(
    number
    for name, number in opmap.items()
    if name.startswith(("CALL", "JUMP_BACKWARD", "RESUME"))
)
"""The instructions after which Python runs signal handlers."""


class Moment(NamedTuple):
    """One instruction of a run."""

    call: int
    """The number of the call, or of the resumption of a generator, that it is in."""
    instruction: int
    """Its number within that call."""


def moments(function: Callable[[], object]) -> list[Moment]:
    """Call a function; return every moment at which a handler may run."""
    found: list[Moment] = []
    calls = 0

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal calls
        if not _counts(frame):
            return None
        calls += 1
        call, passed, last = calls, 0, -1

        def on_event(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal passed, last
            if event == "opcode":
                passed += 1
                code, now = frame.f_code, frame.f_lasti
                if (
                    last >= 0
                    and code.co_code[last] in AFTER
                    and _handler_at(code, last) == _handler_at(code, now)
                ):
                    found.append(Moment(call, passed))
                last = now
            return on_event

        _trace_instructions(frame, on_event)
        return on_event

    _traced(on_call, function)
    return found


def act_at(
    moment: Moment, act: Callable[[], None], function: Callable[[], object]
) -> bool:
    """Call a function, and `act` at a moment. `act` may raise. Say whether it acted."""
    calls = 0
    acted = False
    code: CodeType | None = None

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal calls, code
        if not _counts(frame):
            return None
        calls += 1
        if calls != moment.call:
            if frame.f_code is code:  # a recursion
                # Python 3.13 stops the events of all calls of a function as soon as
                # one of them has not asked for any.
                _trace_instructions(frame, _ignore)
            return None
        code = frame.f_code
        passed = 0

        def on_event(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal passed, acted
            if event == "opcode":
                passed += 1
                if passed == moment.instruction:
                    acted = True
                    frame.f_trace_opcodes = False
                    act()
            return on_event

        _trace_instructions(frame, on_event)
        return on_event

    _traced(on_call, function)
    return acted


def _ignore(*_: object) -> Any:
    return _ignore


def _counts(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return IN_MEMORY not in path and any(part in path for part in COUNTED)


@cache
def _handler_at(code: CodeType, offset: int) -> int | None:
    """Return where an exception of the instruction at `offset` is handled."""
    bytecode: Any = Bytecode(code)
    for entry in bytecode.exception_entries:
        if entry.start <= offset < entry.end:
            return int(entry.target)
    return None


def _trace_instructions(frame: FrameType, on_event: Any) -> None:
    # Python 3.13 ignores the flag of a frame that has no function for its events yet.
    frame.f_trace = on_event
    frame.f_trace_opcodes = True


def _traced(trace: Any, function: Callable[[], object]) -> None:
    before = sys.gettrace()
    # Python 3.12 traces instructions only if a frame asked for that before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
