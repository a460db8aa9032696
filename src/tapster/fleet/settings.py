# SPDX-License-Identifier: Apache-2.0
"""The table `[fleet]` of /etc/tapster/tapster.toml."""

import os
import tomllib
from collections.abc import Mapping

from tapster.errors import RequestError
from tapster.fleet import keys
from tapster.light import Any, NamedTuple

PATH = "/etc/tapster/tapster.toml"
CACHE = "/run/tapster/fleet"


class Settings(NamedTuple):
    """How a host takes part in a fleet."""

    name: str
    """The name of this host in the fleet."""
    endpoints: tuple[str, ...]
    """URLs of etcd."""
    prefix: str = keys.DEFAULT_ROOT
    """What all keys of the fleet begin with."""
    user: str | None = None
    password_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    budget: float = 0.5
    """Seconds that an acquire waits for the store at most."""
    when_away: str = "go"
    """What an acquire does if the store does not answer: "go" on, or "refuse"."""
    on_fenced: str = "report"
    """What happens to a VM that another host has taken over after this host was
    declared dead: "report" it, or take its device "down"."""
    segments: Mapping[str, str] = {}
    """The segment that a bridge or lower device is on, where it is not "default"."""


CHOICES = {"when_away": ("go", "refuse"), "on_fenced": ("report", "down")}


def path() -> str:
    """Return the configuration file."""
    return os.environ.get("TAPSTER_CONFIG") or PATH


def load(file: str | None = None) -> Settings | None:
    """Return the settings of this host; None if it is in no fleet. Raises
    RequestError."""
    file = file or path()
    try:
        with open(file, "rb") as opened:
            content = tomllib.load(opened)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RequestError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: {error}") from None
    if "fleet" not in content:
        return None
    try:
        return parse(content["fleet"])
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from None


class Cached:
    """The settings, which are read again after the file has changed."""

    def __init__(self) -> None:
        self._key: tuple[str, int, int] | None = None
        self._settings: Settings | None = None

    def load(self) -> Settings | None:
        """As `load`."""
        file = path()
        try:
            status = os.stat(file)
        except OSError:
            return load(file)
        key = (file, status.st_ino, status.st_mtime_ns)
        if key != self._key:
            self._settings, self._key = load(file), key
        return self._settings


def parse(table: Any) -> Settings:
    """Return the settings that a table describes. Raises RequestError."""
    if not isinstance(table, dict):
        raise RequestError("[fleet] is not a table")
    if unknown := sorted(table.keys() - set(Settings._fields)):
        raise RequestError(f"[fleet] has no setting {unknown[0]!r}")
    for needed in ("name", "endpoints"):
        if needed not in table:
            raise RequestError(f"[fleet] needs {needed}")
    values = dict(table)
    for field, value in table.items():
        values[field] = _checked(field, value)
    settings = Settings(**values)
    if (settings.user is None) != (settings.password_file is None):
        raise RequestError("fleet.user and fleet.password_file go together")
    if (settings.cert is None) != (settings.key is None):
        raise RequestError("fleet.cert and fleet.key go together")
    return settings


def _checked(field: str, value: Any) -> Any:
    problem = RequestError(f"fleet.{field} cannot be {value!r}")
    if field == "endpoints":
        if not isinstance(value, list) or not value:
            raise problem
        return tuple(_text(url, problem) for url in value)
    if field == "segments":
        if not isinstance(value, dict):
            raise problem
        return {
            device: keys.check_name("segment", _text(segment, problem))
            for device, segment in value.items()
        }
    if field == "budget":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 60:
            raise RequestError(f"fleet.budget is 0 to 60 seconds, not {value!r}")
        return float(value)
    text = _text(value, problem)
    if field == "name":
        return keys.check_name("host", text)
    if field == "prefix" and (not text.startswith("/") or text.endswith("/")):
        raise RequestError(f"fleet.prefix begins with '/' and ends without: {text!r}")
    if field in CHOICES and text not in CHOICES[field]:
        choices = " or ".join(CHOICES[field])
        raise RequestError(f"fleet.{field} is {choices}, not {text!r}")
    return text


def _text(value: Any, problem: RequestError) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise problem
    return value
