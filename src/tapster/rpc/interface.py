# SPDX-License-Identifier: Apache-2.0
"""The daemon's interface `io.tapster`, and its errors as Varlink carries them. Pure.

Requests, leases and other values have the types of model.py: see varlink.py.
"""

from tapster import errors
from tapster.errors import KernelError, TapsterError
from tapster.light import Any, NamedTuple, StrEnum
from tapster.model import (
    HistoryEntry,
    HistoryEvent,
    Lease,
    Link,
    Macvtap,
    Problem,
    Spec,
    Tap,
    Wiring,
)
from tapster.operations.decision import Repair
from tapster.rpc.description import Error, Interface, Method, Nothing
from tapster.rpc.varlink import Unfit, from_json
from tapster.rpc.wire import NAME, Device, Difference


class Binding(StrEnum):
    """The event that ends a lease: none, the end of the calling process, or the last
    close of the device."""

    NOTHING = "nothing"
    CALLER = "caller"
    CLOSE = "close"


class Nic(NamedTuple):
    """A device to make: a tap or a macvtap."""

    tap: Tap | None = None
    macvtap: Macvtap | None = None


class Event(NamedTuple):
    """Something that happened to a lease or its device."""

    time: float
    event: str
    lease: str | None = None
    name: str | None = None
    owner: str | None = None
    caller_uid: int | None = None
    detail: str | None = None


def event_of(lease: Lease, time: float, event: str, detail: str | None = None) -> Event:
    """Return the event that something happened to a lease; `time` is the wall clock."""
    return Event(
        round(time, 3),
        event,
        lease.id,
        lease.name,
        lease.owner,
        lease.caller_uid,
        detail,
    )


class Count(NamedTuple):
    """A counted figure, by its name and its label, if it has a label."""

    name: str
    value: float
    label: str | None = None


class Acquire(NamedTuple):
    nics: tuple[Nic, ...]
    bind: Binding = Binding.CALLER
    netns: str | None = None
    vhost: bool = False


class Devices(NamedTuple):
    devices: tuple[Device, ...]


class Leases(NamedTuple):
    leases: tuple[Lease, ...]


class Bind(NamedTuple):
    leases: tuple[str, ...]
    process: int | None = None


class Release(NamedTuple):
    lease: str


class Get(NamedTuple):
    lease: str
    netns: str | None = None
    owner: str | None = None


class Got(NamedTuple):
    lease: Lease
    device: Link | None = None
    differences: tuple[Difference, ...] = ()


class Set(NamedTuple):
    lease: str
    fields: tuple[str, ...]
    wiring: Wiring = Wiring()


class List(NamedTuple):
    all: bool = True


class History(NamedTuple):
    name: str | None = None
    at: float | None = None
    owner: str | None = None
    mac: str | None = None
    lease: str | None = None
    label: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    limit: int | None = None


class HistoryEntries(NamedTuple):
    entries: tuple[HistoryEntry, ...]


class Events(NamedTuple):
    since: float | None = None
    until: float | None = None
    event: str | None = None
    name: str | None = None
    owner: str | None = None
    lease: str | None = None
    limit: int | None = None


class HistoryEvents(NamedTuple):
    events: tuple[HistoryEvent, ...]


class Happened(NamedTuple):
    event: Event


class Reopen(NamedTuple):
    lease: str


class Reap(NamedTuple):
    now: bool = False
    leases: tuple[str, ...] | None = None


class Reaped(NamedTuple):
    reaped: int


class Recover(NamedTuple):
    dry_run: bool = False


class Recovered(NamedTuple):
    repairs: tuple[Repair, ...]


class Problems(NamedTuple):
    problems: tuple[Problem, ...]


class Leftovers(NamedTuple):
    ledger: str
    names: tuple[str, ...] | None = None


class Names(NamedTuple):
    names: tuple[str, ...]


class Explain(NamedTuple):
    user: str


class Lines(NamedTuple):
    lines: tuple[str, ...]


class Statistics(NamedTuple):
    counts: tuple[Count, ...]


class Failure(NamedTuple):
    """What every error says: what was wrong, and what would be right."""

    message: str
    remedy: str
    errno: int | None = None
    action: str | None = None
    reason: str | None = None
    """`errno`, `action` and `reason` are the attributes of a KernelError. The other
    fields are the attributes of other errors."""
    reference: str | None = None
    name: str | None = None
    lease: str | None = None
    owner: str | None = None
    until: float | None = None
    template: str | None = None
    bridge: str | None = None
    mac: str | None = None
    limit: int | None = None
    capability: str | None = None


METHODS = (
    Method("Ping", Nothing, Nothing, "Answer."),
    Method(
        "Acquire",
        Acquire,
        Devices,
        """Make devices, all or none. Unless bind says otherwise, the leases end with
        the calling process until Bind is called. So no lease is left if the caller or
        the daemon dies before the caller has received the answer.""",
    ),
    Method(
        "Bind",
        Bind,
        Nothing,
        """Let leases end with a process of the caller's user, and with no other
        process. process is the place of its pidfd among the descriptors of the call;
        without process the leases end with no process. At most 256 leases.""",
    ),
    Method("Release", Release, Nothing, "End a lease, by its id. May be repeated."),
    Method(
        "Get",
        Get,
        Got,
        """Find a lease by name or id, with its device as the kernel reports it. If
        owner is given, only a lease of this owner is found.""",
    ),
    Method(
        "Set",
        Set,
        Got,
        "Change fields of a lease's wiring to the values that wiring has.",
    ),
    Method(
        "List",
        List,
        Leases,
        """List the leases; without those in FIN WAIT if not all. Many leases come in
        several parts: call with more.""",
        pages=True,
    ),
    Method(
        "History",
        History,
        HistoryEntries,
        """List the leases that fit every parameter, active ones too, the latest first.
        label is a key and a value. Many come in several parts: call with more.""",
        pages=True,
    ),
    Method(
        "Events",
        Events,
        HistoryEvents,
        """List the recorded events that fit every parameter, the earliest first: what
        happened to devices, and requests that the policy refused. Many come in several
        parts: call with more.""",
        pages=True,
    ),
    Method(
        "Watch",
        Nothing,
        Happened,
        "Report events as they happen. The first event is 'watching'.",
        more=True,
    ),
    Method(
        "Reopen",
        Reopen,
        Device,
        "Open a lease's device again.",
    ),
    Method(
        "Reap",
        Reap,
        Reaped,
        """Delete the devices whose FIN WAIT is over, or all that wait if now. If leases
        are given, at most 256, end the FIN WAIT of these alone, at this moment.""",
    ),
    Method("Recover", Recover, Recovered, "Bring ledger and kernel into agreement."),
    Method("Examine", Nothing, Problems, "List the problems of the host."),
    Method(
        "RemoveLeftovers",
        Leftovers,
        Names,
        "Delete a lost ledger's devices; with names, these alone.",
    ),
    Method("Explain", Explain, Lines, "Explain what the policy allows a user."),
    Method(
        "GetStatistics",
        Nothing,
        Statistics,
        "Return the counts of what the daemon has done.",
    ),
)

RAISED: dict[str, type[TapsterError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, TapsterError)
}

INTERFACE = Interface(
    NAME,
    "Network devices for virtual machines, for callers without privileges.",
    METHODS,
    tuple(Error(name, Failure, kind.__doc__ or "") for name, kind in RAISED.items()),
)


REMEDIES: dict[type[TapsterError], str] = {
    errors.RequestError: "change the request",
    errors.NoSuchLease: "list the leases",
    errors.NoSuchLink: "name a device that exists and fits, or create it",
    errors.NotAllowed: "ask an administrator for the rule that the message names",
    errors.NameTaken: "ask for another name, or try again when this one is free",
    errors.NamesExhausted: "ask for another template, or release what is not needed",
    errors.BridgeFull: "use another bridge",
    errors.OwnerRequired: "name the owner, or give the lease's id",
    errors.QuotaExceeded: "release a device first, or ask for a larger quota",
    errors.ConflictError: "try again",
    errors.MissingCapability: "let the daemon have the capability",
    errors.HostError: "see the message and the daemon's log",
    errors.LedgerError: "repair the ledger; nothing was changed",
    errors.InternalError: "report it to Tapster's developers, with the daemon's log",
}
"""What the caller can do about an error, by its class; a subclass takes precedence."""


def nic(spec: Spec) -> Nic:
    """Return a request as it goes over the wire."""
    return Nic(tap=spec) if isinstance(spec, Tap) else Nic(macvtap=spec)


def spec_of(nic: Nic) -> Spec:
    """Return the request that came over the wire. Raises RequestError."""
    given = [spec for spec in nic if spec is not None]
    if len(given) != 1:
        raise errors.RequestError("a nic is either a tap or a macvtap")
    return given[0]


def failure(error: TapsterError) -> Failure:
    """Return an error, to be sent."""
    message = "\n".join([str(error), *getattr(error, "__notes__", ())])
    kinds = (kind for kind in type(error).__mro__ if kind in REMEDIES)
    remedy = REMEDIES[next(kinds)]
    if isinstance(error, KernelError):
        _, action, reason = error.args
        return Failure(message, remedy, error.errno, action, reason)
    fields: dict[str, Any] = {field: getattr(error, field) for field in error.fields}
    return Failure(message, remedy, **fields)


def raised(name: str, parameters: Any) -> TapsterError:
    """Return the error that was received: `name` without the interface."""
    kind = RAISED.get(name, errors.DaemonError)
    received = parameters if isinstance(parameters, dict) else {}

    def field(name: str, default: Any = None) -> Any:
        """Return a field if it has the type that the interface declares."""
        try:
            value = from_json(Failure.__annotations__[name], received.get(name))
        except Unfit:
            return default
        return default if value is None else value

    if kind is KernelError:
        errno = field("errno", 0)
        known = errno if 0 <= errno < 1 << 16 else 0
        return KernelError(known, field("action", ""), field("reason", ""))
    fields = {name: field(name) for name in kind.fields}
    return kind(field("message", name), **fields)
