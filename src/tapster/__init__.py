# SPDX-License-Identifier: Apache-2.0
"""Network devices for VMs that no other VM's stop can hurt.

import tapster

with tapster.Host() as host:
    with host.acquire(tapster.Tap(bridge="br0")) as device:
        ...  # start the VM with device.fds, device.name, device.mac
    host.release(device)

`tapster.connect()` does the same without privileges: the daemon does the work.
"""

from tapster.errors import (
    BadName,
    BridgeFull,
    ConflictError,
    DaemonError,
    HostError,
    InternalError,
    KernelError,
    LeaseBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    MacTaken,
    MissingCapability,
    NamesExhausted,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    NotAllowed,
    Overloaded,
    OwnerRequired,
    QuotaExceeded,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.light import TYPE_CHECKING, Any
from tapster.model import (
    Changes,
    EventQuery,
    HistoryEntry,
    HistoryEvent,
    HistoryQuery,
    Kind,
    Lease,
    Link,
    Macvtap,
    Mode,
    Naming,
    Netns,
    Problem,
    Process,
    Rate,
    Spec,
    State,
    Tap,
    Wiring,
)
from tapster.open_device import OpenDevice
from tapster.operations.decision import Action, Repair

if TYPE_CHECKING:
    from tapster.api import Manager, Reference
    from tapster.backends.backend import Backend
    from tapster.host import Host
    from tapster.kernel.port import System
    from tapster.rpc.client import Client, connect
    from tapster.rpc.interface import Count, Event

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Backend",
    "BadName",
    "BridgeFull",
    "Changes",
    "Client",
    "ConflictError",
    "Count",
    "DaemonError",
    "Event",
    "EventQuery",
    "HistoryEntry",
    "HistoryEvent",
    "HistoryQuery",
    "Host",
    "HostError",
    "InternalError",
    "KernelError",
    "Kind",
    "Lease",
    "LeaseBusy",
    "LedgerDamaged",
    "LedgerError",
    "LedgerTooNew",
    "Link",
    "MacTaken",
    "Macvtap",
    "Manager",
    "MissingCapability",
    "Mode",
    "NameTaken",
    "NamesExhausted",
    "Naming",
    "Netns",
    "NoSuchLease",
    "NoSuchLink",
    "NotAllowed",
    "OpenDevice",
    "Overloaded",
    "OwnerRequired",
    "Problem",
    "Process",
    "QuotaExceeded",
    "Rate",
    "Reference",
    "Repair",
    "RequestError",
    "ServiceUnavailable",
    "Spec",
    "State",
    "System",
    "Tap",
    "TapsterError",
    "Wiring",
    "connect",
]

_LATER = {
    "Backend": "tapster.backends.backend",
    "Client": "tapster.rpc.client",
    "Count": "tapster.rpc.interface",
    "Event": "tapster.rpc.interface",
    "Host": "tapster.host",
    "Manager": "tapster.api",
    "Reference": "tapster.api",
    "System": "tapster.kernel.port",
    "connect": "tapster.rpc.client",
}
"""The names that are imported at first use: a program that needs Host does not pay for
Client."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(_LATER[name], fromlist=[name])
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
