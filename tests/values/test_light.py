# SPDX-License-Identifier: Apache-2.0
"""The light NamedTuple and StrEnum behave as those of `typing` and `enum`."""

import copy
import enum
import inspect
import json
import pickle
import typing
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

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
    lambda point: point(1).__doc__,
    lambda point: inspect.signature(point),
    lambda point: isinstance(point(1), tuple),
]


class LightColour(light.StrEnum):
    """A colour."""

    RED = "red"
    """As blood."""
    DARK_BLUE = "dark blue"

    @property
    def shout(self) -> str:
        return self.upper()


class HeavyColour(enum.StrEnum):
    """A colour."""

    RED = "red"
    """As blood."""
    DARK_BLUE = "dark blue"

    @property
    def shout(self) -> str:
        return self.upper()


ENUM_USES: list[Callable[[Class], object]] = [
    lambda colour: colour.RED,
    lambda colour: [*colour],
    lambda colour: len(colour),
    lambda colour: colour("dark blue"),
    lambda colour: colour(colour.RED) is colour.RED,
    lambda colour: colour["RED"],
    lambda colour: colour["BLUE"],
    lambda colour: colour("blue"),
    lambda colour: colour(5),
    lambda colour: colour([]),
    lambda colour: colour.RED in colour,
    lambda colour: (str(colour.RED), f"{colour.RED:>5}"),
    lambda colour: type(str(colour.RED)),
    lambda colour: (colour.DARK_BLUE.name, colour.DARK_BLUE.value),
    lambda colour: colour.RED.shout,
    lambda colour: colour.RED == "red",
    lambda colour: {"red": 1}[colour.RED],
    lambda colour: colour.RED < colour.DARK_BLUE,
    lambda colour: isinstance(colour.RED, str),
    lambda colour: json.dumps({colour.RED: colour.DARK_BLUE}),
    lambda colour: copy.deepcopy(colour.RED) is colour.RED,
    lambda colour: pickle.loads(pickle.dumps(colour.RED)) is colour.RED,  # noqa: S301
    lambda colour: dict(colour.__members__),
    lambda colour: colour.__doc__,
    lambda colour: setattr(colour.RED, "name", "x"),
    lambda colour: setattr(colour.RED, "value", "x"),
    lambda colour: colour.GREEN,
]


@pytest.mark.parametrize("use", ENUM_USES)
def test_a_light_enumeration_does_what_an_enumeration_does(
    use: Callable[[Class], object],
) -> None:
    assert result(use, LightColour) == result(use, HeavyColour)


def result(use: Callable[[Class], object], kind: Class) -> str:
    try:
        return repr(use(kind)).replace(kind.__name__, "Kind")
    except Exception as error:  # noqa: BLE001 - it is compared
        # For a field that there is not, _replace() of Python 3.13 raises TypeError.
        return type(error).__name__.replace("ValueError", "TypeError")


@pytest.mark.parametrize("few", [0, 1000], ids=["compiled", "not compiled"])
@pytest.mark.parametrize("use", USES)
def test_a_light_tuple_does_what_a_named_tuple_does(
    use: Callable[[Class], object], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "FEW", few)
    monkeypatch.setattr(Light, "__new__", light.NamedTuple.__new__)
    assert result(use, Light) == result(use, Heavy)


def test_a_tuple_may_have_no_fields() -> None:
    assert repr(LightNothing()) == repr(HeavyNothing()).replace("Heavy", "Light")
    assert LightNothing() == ()


def test_types_are_taken_apart_as_typing_does() -> None:
    for kind in (int, int | None, tuple[int, ...], tuple[int, str], list[int]):
        assert light.get_args(kind) == typing.get_args(kind)
        if kind != int | None:  # its origin is told by its type
            assert light.get_origin(kind) == typing.get_origin(kind)


def test_what_another_thread_forgets_meanwhile_is_found_again() -> None:
    """The look whether it is known, and the look at it, are one."""

    class Argument(str):
        looked = 0

        def __hash__(self) -> int:
            self.looked += 1
            if self.looked == 4:  # after the first call, which looks and remembers
                for number in range(light.MOST_REMEMBERED):
                    double(str(number))
            return super().__hash__()

    def twice(text: str) -> str:
        return text * 2

    double = light.remembered(twice)
    argument = Argument("a")
    assert [double(argument), double(argument), double(argument)] == ["aa"] * 3


def test_the_docstring_has_what_the_source_says_of_each_field() -> None:
    assert Light.__doc__ == (
        "A point.\n\n"
        "    x: int\n"
        "    y: int = 2\n"
        "        Up.\n"
        "    names: tuple[str, ...] = ()"
    )
    assert LightNothing.__doc__ is None


def test_without_a_source_the_docstring_is_the_text_of_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect, "getsource", Mock(side_effect=OSError))
    assert inspect.getdoc(Light) == "A point."
