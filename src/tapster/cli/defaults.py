# SPDX-License-Identifier: Apache-2.0
"""The defaults of options: `[defaults]` of tapster.toml, and the environment.

The file is parsed only if it has such a section: the command sits in a VM's start path.
"""

import os

from tapster import names
from tapster.cli import values
from tapster.cli.options import BadValue
from tapster.errors import RequestError
from tapster.light import Any
from tapster.model import DEFAULT_FIN_WAIT, Naming, parse_mac

PATH = "/etc/tapster/tapster.toml"
KEYS = ("bridge", "fin_wait", "naming", "mac_prefix", "history", "history_days")
ENVIRONMENT = ("bridge", "fin_wait", "naming", "mac_prefix")
"""The keys that a variable such as TAPSTER_BRIDGE can set, too."""


class Defaults:
    """The defaults. Raises RequestError for a value that cannot be."""

    def __init__(self, path: str = PATH) -> None:
        given = _read(path)
        for key in given:
            if key not in KEYS:
                raise RequestError(
                    f"{path}: [defaults] has no {key!r}; there are: {', '.join(KEYS)}"
                )
        for key in ENVIRONMENT:
            if text := os.environ.get(f"TAPSTER_{key.upper()}"):
                given[key] = text
        self.bridge: str | None = given.get("bridge")
        self.fin_wait = _duration(given.get("fin_wait", DEFAULT_FIN_WAIT))
        self.naming: str = given.get("naming", str(Naming.LOWEST))
        if self.naming not in list(map(str, Naming)) or self.naming == Naming.STABLE:
            raise RequestError(
                f"the default of naming is lowest or next, not {self.naming!r}"
            )
        self.mac_prefix = _prefix(given.get("mac_prefix"))
        self.history: int | None = given.get("history")
        if self.history is not None and not (
            type(self.history) is int and self.history >= 0
        ):
            raise RequestError(
                f"history is a number of leases to remember, not {self.history!r}"
            )
        self.history_days: float | None = given.get("history_days")
        days = self.history_days
        if days is not None and not (type(days) in (int, float) and 0 < days < 1e6):
            raise RequestError(
                f"history_days is a number of days to remember leases, not {days!r}"
            )

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


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return {}  # without the file, or for a user who may not read it
    if b"[defaults]" not in content:
        return {}
    import tomllib

    try:
        section = tomllib.loads(content.decode()).get("defaults", {})
    except ValueError as error:
        raise RequestError(f"{path}: {error}") from None
    return dict(section)


def _duration(given: object) -> float:
    try:
        return values.duration(str(given))
    except BadValue as error:
        raise RequestError(f"fin_wait: {error}") from None


def _prefix(given: str | None) -> bytes | None:
    if given is None:
        return None
    parts = given.rstrip(":").split(":")
    padded = ":".join([*parts, *["01"] * (6 - len(parts))])
    if not 1 <= len(parts) <= 5:
        raise RequestError(
            f"mac_prefix is 1 to 5 bytes such as 52:54:00, not {given!r}"
        )
    return parse_mac(padded)[: len(parts)]
