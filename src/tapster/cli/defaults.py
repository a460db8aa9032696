# SPDX-License-Identifier: Apache-2.0
"""The defaults of options: `[defaults]` of tapster.toml, and the environment.

The file is parsed only if it has such a section: the command sits in a VM's start path.
"""

import os

from tapster import names
from tapster.defaults import READERS
from tapster.errors import RequestError
from tapster.light import Any, Iterable
from tapster.model import DEFAULT_FIN_WAIT, Naming

PATH = "/etc/tapster/tapster.toml"
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

        def value(key: str, default: Any) -> Any:
            found, source = given.get(key, (None, ""))
            try:
                return default if found is None else READERS[key](found)
            except RequestError as error:
                raise RequestError(f"{source}{error}") from None

        self.bridge: str | None = value("bridge", None)
        self.fin_wait: float = value("fin_wait", DEFAULT_FIN_WAIT)
        self.naming: str = value("naming", str(Naming.LOWEST))
        self.mac_prefix: bytes | None = value("mac_prefix", None)
        self.history: int | None = value("history", None)
        self.history_days: float | None = value("history_days", None)

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
        if key not in READERS:
            raise RequestError(
                f"{path}: [defaults] has no {key!r}; there are: {', '.join(READERS)}"
            )
    return section.items()
