# SPDX-License-Identifier: Apache-2.0
"""The light NamedTuple behaves as the one of `typing`."""

import inspect
import pickle
import typing
from collections.abc import Callable
from typing import Any

import pytest

from tapster import light


class Light(light.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    """Up."""
    names: tuple[str, ...] = ()

    @property
    def sum(self) -> int:
        return self.x + self.y


class Heavy(typing.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    """Up."""
    names: tuple[str, ...] = ()

    @property
    def sum(self) -> int:
        return self.x + self.y


class LightNothing(light.NamedTuple):
    pass


class HeavyNothing(typing.NamedTuple):
    pass


Class = Any

USES: list[Callable[[Class], object]] = [
    lambda point: point(1),
    lambda point: point(1, names=("a",)),
    lambda point: point(x=1, y=3),
    lambda point: point(1, 2, ("b",)).names,
    lambda point: point(1).sum,
    lambda point: point(),
    lambda point: point(1, 2, (), 4),
    lambda point: point(1, z=2),
    lambda point: point(1, x=2),
    lambda point: point(1)._replace(y=5),
    lambda point: point(1)._replace(z=5),
    lambda point: point._make([1, 2, ("c",)]),
    lambda point: point._make([1]),
    lambda point: point(1)._asdict(),
    lambda point: setattr(point(1), "x", 2),
    lambda point: setattr(point(1), "other", 2),
    lambda point: hash(point(1)),
    lambda point: point(1) == (1, 2, ()),
    lambda point: point(1) < point(2),
    lambda point: [*point(1)],
    lambda point: pickle.loads(pickle.dumps(point(1))),  # noqa: S301 - our own
    lambda point: point._fields,
    lambda point: point._field_defaults,
    lambda point: point.__annotations__,
    lambda point: point.__match_args__,
    lambda point: point.__doc__,
    lambda point: inspect.signature(point),
    lambda point: isinstance(point(1), tuple),
]


def result(use: Callable[[Class], object], kind: Class) -> str:
    try:
        return repr(use(kind)).replace(kind.__name__, "Point")
    except Exception as error:  # noqa: BLE001 - it is compared
        return type(error).__name__


@pytest.mark.parametrize("use", USES)
def test_a_light_tuple_does_what_a_named_tuple_does(
    use: Callable[[Class], object],
) -> None:
    assert result(use, Light) == result(use, Heavy)


def test_a_tuple_may_have_no_fields() -> None:
    assert repr(LightNothing()) == repr(HeavyNothing()).replace("Heavy", "Light")
    assert LightNothing() == ()


def test_types_are_taken_apart_as_typing_does() -> None:
    for kind in (int, int | None, tuple[int, ...], tuple[int, str], list[int]):
        assert light.get_args(kind) == typing.get_args(kind)
        if kind != int | None:  # its origin is told by its type
            assert light.get_origin(kind) == typing.get_origin(kind)
