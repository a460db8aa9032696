# SPDX-License-Identifier: Apache-2.0
"""The defaults of options: `[defaults]` of tapster.toml, and the environment.

The file is parsed only if it has such a section: the command sits in a VM's start path.
"""

import os

from tapster import names
from tapster.cli import values
from tapster.cli.options import BadValue
from tapster.errors import RequestError
from tapster.light import Any, Callable, Iterable, TypeVar
from tapster.model import DEFAULT_FIN_WAIT, LARGEST_NUMBER, Naming, parse_mac

T = TypeVar("T")

PATH = "/etc/tapster/tapster.toml"
KEYS = ("bridge", "fin_wait", "naming", "mac_prefix", "history", "history_days")
ENVIRONMENT = ("bridge", "fin_wait", "naming", "mac_prefix")
"""The keys that a variable such as TAPSTER_BRIDGE can set, too."""


class Defaults:
    """The defaults. Raises RequestError for a value that cannot be."""

    def __init__(self, path: str = PATH) -> None:
        given = {key: (value, f"{path}: [defaults]: ") for key, value in _read(path)}
        for key in ENVIRONMENT:
            variable = f"TAPSTER_{key.upper()}"
            if text := os.environ.get(variable):
                given[key] = text, f"{variable}: "

        def value(key: str, read: Callable[[Any], T], default: T) -> T:
            found, source = given.get(key, (None, ""))
            if found is None:
                return default
            try:
                return read(found)
            except (BadValue, RequestError) as error:
                raise RequestError(f"{source}{error}") from None

        self.bridge = value("bridge", _bridge, None)
        self.fin_wait = value("fin_wait", _duration, DEFAULT_FIN_WAIT)
        self.naming = value("naming", _naming, str(Naming.LOWEST))
        self.mac_prefix = value("mac_prefix", _prefix, None)
        self.history = value("history", _history, None)
        self.history_days = value("history_days", _days, None)

    def mac(self, key: str | None = None) -> str | None:
        """Return a random MAC with the prefix; None without a prefix.

        With a key it is the same on this host at every call.
        """
        if self.mac_prefix is None:
            return None
        missing = 6 - len(self.mac_prefix)
        rest = os.urandom(missing) if key is None else _digest(key)[:missing]
        return (self.mac_prefix + rest).hex(":")


def _digest(key: str) -> bytes:
    try:
        with open("/etc/machine-id", encoding="ascii", errors="replace") as file:
            host = file.read().strip()
    except OSError:
        host = ""
    # The number that the key would have if its names had room for 5 bytes.
    number = names.home(names.parse("m%d"), f"{host} {key!a}")
    return (number % (1 << 40)).to_bytes(5, "big")


def _read(path: str) -> Iterable[tuple[str, Any]]:
    """Return the defaults in a file, and their values. Raises RequestError."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return ()  # without the file, or for a user who may not read it
    # TOML has several ways to write a table.
    if b"defaults" not in content:
        return ()
    import tomllib

    try:
        section = tomllib.loads(content.decode()).get("defaults", {})
    except RecursionError:
        raise RequestError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"{path}: {error}") from None
    if not isinstance(section, dict):
        raise RequestError(f"{path}: write [defaults], with one bracket")
    for key in section:
        if key not in KEYS:
            raise RequestError(
                f"{path}: [defaults] has no {key!r}; there are: {', '.join(KEYS)}"
            )
    return section.items()


def _bridge(given: Any) -> str | None:
    if not isinstance(given, str):
        raise RequestError(f"bridge is the name of a bridge, not {given!r}")
    return given or None


def _duration(given: Any) -> float:
    try:
        return values.duration(str(given))
    except BadValue as error:
        raise RequestError(f"fin_wait: {error}") from None


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
    padded = ":".join([*parts, *["01"] * (6 - len(parts))])
    if not 1 <= len(parts) <= 5:
        raise RequestError(
            f"mac_prefix is 1 to 5 bytes such as 52:54:00, not {given!r}"
        )
    return parse_mac(padded)[: len(parts)]
