# SPDX-License-Identifier: Apache-2.0
"""The keys of the store and their values. Pure.

Values are JSON objects. A value that another program has damaged raises FleetDamaged,
which names the key. Text that came from another host is checked when it is read.
"""

import json
from collections.abc import Callable

from tapster.errors import RequestError
from tapster.fleet.registration import (
    RELEASED,
    Epoch,
    RecordState,
    Registration,
    parse_epoch,
)
from tapster.fleet.store import FleetDamaged
from tapster.light import Any, NamedTuple, TypeVar

DEFAULT_ROOT = "/tapster/v1"
BLOCK_SIZE = 256
"""MACs in a block: one for each value of the last byte."""
MAX_NAME = 64


class Permit(NamedTuple):
    """Says whether the store accepts writes of a host, and of which ledger.

    Each write of a host fails unless the permit still has the value that the host has
    read. So a change of the permit ends every request of the host that is under way.
    """

    ledger: str
    number: int
    fenced: str = ""
    """The boot id of a host that was declared dead, or ""."""
    by: str = ""
    why: str = ""
    at: float = 0.0


class Session(NamedTuple):
    """A host that syncs. Its key goes when the host stops renewing it."""

    boot: str
    ledger: str
    since: float


class Block(NamedTuple):
    """256 MACs that one host gives out."""

    host: str
    ledger: str
    since: float


class InventoryRow(NamedTuple):
    """A lease in the inventory."""

    name: str
    mac: str
    segment: str
    vm: str
    owner: str
    kind: str
    on: str
    """The bridge or the lower device, or ""."""
    state: str
    since: float


class Fleet(NamedTuple):
    """What all hosts of a fleet share."""

    prefix: str
    """The first three bytes of the MACs that Tapster chooses, as 0a:54:00."""
    since: float


class Keys(NamedTuple):
    """The keys under the root of a fleet."""

    root: str = DEFAULT_ROOT

    @property
    def fleet(self) -> str:
        return f"{self.root}/fleet"

    def permit(self, host: str) -> str:
        return f"{self.root}/permit/{host}"

    def session(self, host: str) -> str:
        return f"{self.root}/session/{host}"

    def row(self, host: str, lease: str) -> str:
        return f"{self.root}/if/{host}/{lease}"

    def block(self, block: str) -> str:
        return f"{self.root}/block/{block}"

    def registration(self, segment: str, mac: str) -> str:
        return f"{self.root}/mac/{segment}/{mac}"

    @property
    def permits(self) -> str:
        return f"{self.root}/permit/"

    @property
    def sessions(self) -> str:
        return f"{self.root}/session/"

    @property
    def blocks(self) -> str:
        return f"{self.root}/block/"

    @property
    def registrations(self) -> str:
        return f"{self.root}/mac/"

    def rows(self, host: str = "") -> str:
        return f"{self.root}/if/{host}/" if host else f"{self.root}/if/"


def check_name(kind: str, name: str) -> str:
    """Check a name that becomes part of a key. Raises RequestError."""
    good = name.isascii() and 0 < len(name) <= MAX_NAME
    if not good or not all(c.isalnum() or c in "-_.:" for c in name):
        raise RequestError(
            f"{kind} {name!r} is not 1 to {MAX_NAME} of the characters "
            "A-Z, a-z, 0-9, '-', '_', '.' and ':'"
        )
    return name


def check_prefix(prefix: str) -> str:
    """Check the first three bytes of a fleet's MACs. Raises RequestError."""
    parts = prefix.lower().split(":")
    try:
        number = bytes.fromhex("".join(parts))
    except ValueError:
        number = b""
    if len(number) != 3 or any(len(part) != 2 for part in parts):
        raise RequestError(f"a MAC prefix is three bytes as 0a:54:00, not {prefix!r}")
    if number[0] & 3 != 2:
        raise RequestError(
            f"MAC prefix {prefix!r} is not local and unicast: "
            "the second digit must be 2, 6, a or e"
        )
    return ":".join(parts)


def block_of(mac: str) -> str:
    """Return the block that a MAC is in: all but its last byte."""
    return mac[:14]


def macs_of(block: str) -> list[str]:
    """Return the MACs of a block, in the order in which they are given out."""
    return [f"{block}:{number:02x}" for number in range(BLOCK_SIZE)]


# Values


Value = Registration | Permit | Session | Block | InventoryRow | Fleet
T = TypeVar("T", bound=Value)


def encode(value: Value) -> str:
    """Return the JSON of a value."""
    content = value._asdict()
    if isinstance(value, Registration):
        content["epoch"] = str(value.epoch)
    return json.dumps(content, separators=(",", ":"), sort_keys=True)


def registration_of(key: str, text: str | None) -> Registration | None:
    """Return the registration that a value describes; None for no value."""
    registration = None if text is None else value_of(Registration, key, text)
    if registration is not None and registration.state not in (
        RecordState.ACTIVE,
        *RELEASED,
    ):
        raise _damaged(key, f"no registration is {registration.state}")
    return registration


def permit_of(key: str, text: str | None) -> Permit | None:
    """Return the permit that a value describes; None for no value."""
    return None if text is None else value_of(Permit, key, text)


def block_value_of(key: str, text: str | None) -> Block | None:
    """Return the owner of a block that a value describes; None for no value."""
    return None if text is None else value_of(Block, key, text)


def value_of(kind: type[T], key: str, text: str) -> T:
    """Return the record that a value describes. Raises FleetDamaged."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("it is not a JSON object")
        return kind(
            **{
                field: _PARSERS[annotation](field, content[field])
                for field, annotation in kind.__annotations__.items()
            }
        )
    except KeyError as error:
        raise _damaged(key, f"it has no field {error}") from error
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(key, str(error)) from error


def _damaged(key: str, problem: str) -> FleetDamaged:
    return FleetDamaged(f"the store's key {key!r} is damaged: {problem}")


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1024:
        raise TypeError(f"{field} is not text that can be printed")
    return value


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} is not a number")
    return float(value)


_PARSERS: dict[Any, Callable[[str, Any], Any]] = {
    str: _text,
    float: _number,
    int: lambda field, value: int(_number(field, value)),
    Epoch: lambda field, value: parse_epoch(_text(field, value)),
    RecordState: lambda field, value: RecordState(_text(field, value)),
}
