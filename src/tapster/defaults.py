# SPDX-License-Identifier: Apache-2.0
"""What the defaults of the command's options, `[defaults]` of tapster.toml, may be.
Pure.

The command uses them, and `tapsterd --check-config` finds the mistakes in them.
"""

from tapster.errors import RequestError
from tapster.light import Any, Callable, suppress
from tapster.model import LARGEST_NUMBER, Naming, parse_mac

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
A_DURATION = "a duration such as 10, 10s, 500ms, 1m, 2h or 1d"


def seconds_of(text: str) -> float | None:
    """Return the seconds of a duration; None if it is none."""
    digits = text.strip().rstrip("smhd")
    unit = text.strip().removeprefix(digits) or "s"
    # Python takes "nan", "inf", "-1", "1e9" and "1_0" for numbers, too.
    plain = set(digits) <= set("0123456789.") and digits not in ("", ".")
    if not plain or digits.count(".") > 1 or unit not in UNITS:
        return None
    return float(digits) * UNITS[unit]


def _bridge(given: Any) -> str | None:
    if not isinstance(given, str):
        raise RequestError(f"bridge is the name of a bridge, not {given!r}")
    return given or None


def _duration(given: Any) -> float:
    found = seconds_of(str(given))
    if found is None:
        raise RequestError(f"fin_wait: {given!r} is not {A_DURATION}")
    return found


def _naming(given: Any) -> str:
    if given not in (str(Naming.LOWEST), str(Naming.NEXT)):
        raise RequestError(f"the default of naming is lowest or next, not {given!r}")
    return str(given)


def _history(given: Any) -> int:
    if type(given) is not int or not 0 <= given <= LARGEST_NUMBER:
        raise RequestError(f"history is a number of leases to remember, not {given!r}")
    return given


def _days(given: Any) -> float:
    if type(given) not in (int, float) or not 0 < given < 1e6:
        raise RequestError(
            f"history_days is a number of days to remember leases, not {given!r}"
        )
    return float(given)


def _prefix(given: Any) -> bytes:
    if not isinstance(given, str):
        raise RequestError(f"mac_prefix is a text such as '52:54:00', not {given!r}")
    parts = given.rstrip(":").split(":")
    if len(parts) <= 5:
        with suppress(RequestError):
            return parse_mac(":".join([*parts, *["01"] * 6][:6]))[: len(parts)]
    raise RequestError(
        f"mac_prefix is 1 to 5 bytes of a unicast MAC, such as 52:54:00, not {given!r}"
    )


READERS: dict[str, Callable[[Any], Any]] = {
    "bridge": _bridge,
    "fin_wait": _duration,
    "naming": _naming,
    "mac_prefix": _prefix,
    "history": _history,
    "history_days": _days,
}
"""What reads the value of each default. Raises RequestError."""
