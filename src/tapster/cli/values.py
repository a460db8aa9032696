# SPDX-License-Identifier: Apache-2.0
"""Read the values of options: numbers, durations, VLANs, rates."""

from tapster.cli.options import BadValue
from tapster.defaults import A_DURATION, seconds_of
from tapster.model import Rate

LAST_VLAN = 4094


def name(given: str) -> str | None:
    """Return a name; nothing given is none."""
    return given or None


def given_text(given: str) -> str:
    """Return a text that is not empty: a variable of a script may be unset."""
    if not given:
        raise BadValue("it is empty: give a value, or leave the option out")
    return given


def number(given: str) -> int:
    """Return a whole number."""
    if not (given.isascii() and given.removeprefix("-").isdigit()):
        raise BadValue(f"{given!r} is not a whole number")
    return int(given)


def optional_number(given: str) -> int | None:
    """Return a whole number; nothing given is none."""
    return number(given) if given else None


def count(given: str) -> int:
    """Return a whole number above 0."""
    if (found := number(given)) < 1:
        raise BadValue(f"{given!r} is not 1 or more")
    return found


def duration(given: str) -> float:
    """Return the seconds of a duration such as 10, 10s, 500ms, 1m, 2h or 1d."""
    if (found := seconds_of(given)) is None:
        raise BadValue(f"{given!r} is not {A_DURATION}")
    return found


def pause(given: str) -> float:
    """Return the seconds of a duration above 0."""
    if (found := duration(given)) <= 0:
        raise BadValue(f"{given!r} is not more than 0 seconds")
    return found


def single(given: str) -> tuple[str, ...]:
    """Return a value as one of several; nothing given is none."""
    return (given,) if given else ()


def vlans(given: str) -> tuple[int, ...]:
    """Return the VLANs of a list such as 5,10-20; nothing given is none."""
    if not given:
        return ()
    found: list[int] = []
    for part in given.split(","):
        first, dash, last = part.partition("-")
        try:
            low, high = number(first), number(last if dash else first)
        except BadValue:
            raise BadValue(
                f"{given!r} is not a list of VLANs such as 5,10-20"
            ) from None
        if not 1 <= low <= high <= LAST_VLAN:
            what = "a VLAN is" if low <= high else "a range rises, within"
            raise BadValue(f"{part!r}: {what} 1 to {LAST_VLAN}")
        found += range(low, high + 1)
    return tuple(found)


def rate(given: str) -> Rate | None:
    """Return a rate of the form AVERAGE[:PEAK[:BURST]]; nothing given is none."""
    if not given:
        return None
    try:
        average, *others = given.split(":")
        if len(others) > 2:
            raise BadValue
        return Rate(number(average), *map(optional_number, others))
    except BadValue:
        raise BadValue(
            f"{given!r} is not a rate AVERAGE[:PEAK[:BURST]] such as 1000:2000:512"
        ) from None
