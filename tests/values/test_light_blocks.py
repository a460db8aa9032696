# SPDX-License-Identifier: Apache-2.0
"""The light blocks and properties behave as those of `contextlib` and `functools`."""

import contextlib
import functools
import traceback
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tapster import light

Log = list[object]


def plain(log: Log) -> Generator[str]:
    """Yields once."""
    log.append("before")
    yield "lent"
    log.append("after")


def undoing(log: Log) -> Generator[str]:
    try:
        yield "lent"
    finally:
        log.append("undone")


def swallowing(log: Log) -> Generator[str]:
    try:
        yield "lent"
    except BaseException as error:  # noqa: BLE001 - it may be any
        log.append(type(error).__name__)


def translating(log: Log) -> Generator[str]:
    try:
        yield "lent"
    except BaseException as error:
        raise LookupError("translated") from error


def wrapping(log: Log) -> Generator[str]:
    try:
        yield "lent"
    except BaseException as error:
        raise RuntimeError("wrapped") from error


def raising_again(log: Log) -> Generator[str]:
    try:
        yield "lent"
    except BaseException as error:
        log.append("again")
        raise error


def failing_first(log: Log) -> Generator[str]:
    if not log:
        raise OSError("first")
    yield "lent"


def failing_last(log: Log) -> Generator[str]:
    yield "lent"
    raise OSError("last")


def never(log: Log) -> Generator[str]:
    yield from ()


def twice(log: Log) -> Generator[str]:
    with light.suppress(ValueError):
        yield "lent"
    yield "again"


GENERATORS = [
    plain,
    undoing,
    swallowing,
    translating,
    wrapping,
    raising_again,
    failing_first,
    failing_last,
    never,
    twice,
]
ERRORS = [
    None,
    ValueError,
    KeyboardInterrupt,
    StopIteration,
    RuntimeError,
    GeneratorExit,
]


def run(manager: Any, function: Any, kind: type[BaseException] | None) -> object:
    """What a block with such a manager does, and what leaves it."""
    log: Log = []
    error = None if kind is None else kind("x")
    try:
        with manager(function)(log) as lent:
            log.append(lent)
            if error is not None:
                raise error
        log.append("gone on")
    except BaseException as left:  # noqa: BLE001 - it is compared
        log.append(left is error or (type(left), type(left.__cause__)))
        names = [frame.name for frame in traceback.extract_tb(left.__traceback__)]
        log.append(names[0])
        if left is error:
            log.append(names)
    return log


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("function", GENERATORS)
def test_a_block_of_a_generator(
    function: Callable[[Log], Generator[str]], kind: type[BaseException] | None
) -> None:
    heavy, own = [
        run(manager, function, kind)
        for manager in (contextlib.contextmanager, light.contextmanager)
    ]
    assert heavy == own


def test_a_block_keeps_the_description_of_its_generator() -> None:
    assert light.contextmanager(plain).__doc__ == plain.__doc__


@pytest.mark.parametrize("kinds", [(), (OSError,), (ValueError, OSError)])
@pytest.mark.parametrize("error", [None, FileNotFoundError(), TypeError()], ids=repr)
def test_suppress(
    error: BaseException | None, kinds: tuple[type[BaseException], ...]
) -> None:
    outcomes: list[object] = []
    for suppress in (contextlib.suppress, light.suppress):
        try:
            with suppress(*kinds) as lent:
                if error is not None:
                    raise error
            outcomes.append(lent)
        except BaseException as left:  # noqa: BLE001 - it is compared
            outcomes.append(left)
    assert outcomes[0] is outcomes[1]


def test_closing() -> None:
    closed: list[str] = []

    class Thing:
        def close(self) -> None:
            closed.append("closed")

    thing = Thing()
    with light.closing(thing) as lent:
        assert lent is thing
        assert not closed
    with pytest.raises(ValueError, match="x"), light.closing(thing):
        raise ValueError("x")
    assert len(closed) == 2


@pytest.mark.parametrize("kind", [functools.cached_property, light.cached_property])
def test_a_cached_property_is_computed_once(kind: Any) -> None:
    class Thing:
        computed = 0

        def _value(self) -> int:
            """Some value."""
            self.computed += 1
            return self.computed

        value: Any = kind(_value)

    first, second = Thing(), Thing()
    assert (first.value, first.value, second.value) == (1, 1, 1)
    first.value = 7
    assert first.value == 7
    del first.value
    assert first.value == 2
    assert Thing.value.__doc__ == "Some value."
