# SPDX-License-Identifier: Apache-2.0
"""What actors tell the watcher: one class for each statement that a mark can carry."""

from typing import NamedTuple, get_args


class Ground(NamedTuple):
    """All devices that exist now belong to the storm itself, and are foreign."""


class Begin(NamedTuple):
    """A VM runs from here on; its device is as it was promised."""

    token: str
    ledger: str
    name: str
    ifindex: int
    wait: float
    bound: bool
    """The VM ends with the process that says this."""
    fleeting: bool
    """Tapster replaces the device at release: for a moment no device has the name."""
    on: str
    mac: str = ""
    """The device's MAC in the host."""
    tried: str = ""
    """The template that the name was picked from."""


class End(NamedTuple):
    """A VM stops: from here on its device may be released."""

    token: str
    talks: int = 0


class Kill(NamedTuple):
    """A process is killed; the VMs that are bound to it end with it."""

    what: str = ""
    process: str = ""


class Move(NamedTuple):
    """A manager is about to move a VM to another bridge."""

    token: str
    on: str


class Moved(NamedTuple):
    """The VM is on this bridge now, whether the move succeeded or not."""

    token: str
    on: str


class Cut(NamedTuple):
    """Since then, a running VM's frames did not arrive."""

    token: str
    since: float


class Acting(NamedTuple):
    """An outsider is about to do something to the device with this name."""

    kind: str
    verb: str
    name: str
    late_for: str = ""
    """The token of the VM that a stranger cleans up after."""


class Acted(NamedTuple):
    """The outsider has done it."""


class Take(NamedTuple):
    """A squatter has made a device, and left it in this state."""

    ifindex: int
    name: str
    up: bool
    on: str
    also: str
    """An alternative name."""


class Free(NamedTuple):
    """The squatter is about to delete its device."""

    ifindex: int


class Tally(NamedTuple):
    """Add these figures to the tally."""

    what: dict[str, int]


class Leak(NamedTuple):
    """A refused start has left something."""

    what: str


class Sample(NamedTuple):
    """The watcher is about to read the ledgers."""


class Sampled(NamedTuple):
    """The watcher has read the ledgers."""


class Final(NamedTuple):
    """All is released, recovered and reaped: only the ground is left."""


Message = (
    Ground
    | Begin
    | End
    | Kill
    | Move
    | Moved
    | Cut
    | Acting
    | Acted
    | Take
    | Free
    | Tally
    | Leak
    | Sample
    | Sampled
    | Final
)
"""A statement of an actor: values that JSON can hold."""

MESSAGES: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in get_args(Message)
}
