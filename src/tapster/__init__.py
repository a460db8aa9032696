# SPDX-License-Identifier: Apache-2.0
"""Network devices for VMs that no other VM's stop can hurt.

import tapster

with tapster.Host() as host:
    with host.acquire(tapster.Tap(bridge="br0")) as device:
        ...  # start the VM with device.fds, device.name, device.mac
    host.release(device)

`tapster.connect()` does the same without privileges: the daemon does the work.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapster.api import AnyHost, Reference
    from tapster.backends.backend import Backend
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
        NftRefused,
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
    from tapster.host import Host
    from tapster.kernel.port import System
    from tapster.light import Any
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
        Vm,
        Wiring,
    )
    from tapster.open_device import OpenDevice
    from tapster.operations.decision import Action, Repair
    from tapster.rpc.client import Client, connect
    from tapster.rpc.interface import Count, Event

__version__ = "0.1.0"

__all__ = [
    "Action",
    "AnyHost",
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
    "MissingCapability",
    "Mode",
    "NameTaken",
    "NamesExhausted",
    "Naming",
    "Netns",
    "NftRefused",
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
    "Vm",
    "Wiring",
    "connect",
]

_HOMES = {
    "Action": "tapster.operations.decision",
    "Backend": "tapster.backends.backend",
    "Client": "tapster.rpc.client",
    "Count": "tapster.rpc.interface",
    "Event": "tapster.rpc.interface",
    "Host": "tapster.host",
    "AnyHost": "tapster.api",
    "OpenDevice": "tapster.open_device",
    "Reference": "tapster.api",
    "Repair": "tapster.operations.decision",
    "System": "tapster.kernel.port",
    "connect": "tapster.rpc.client",
}
"""The modules of public names that are neither values nor errors."""


def __getattr__(name: str) -> "Any":
    """Import a public name when it is first used.

    So a program that needs Host does not pay for Client, and the command for neither.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = [_HOMES[name]] if name in _HOMES else ["tapster.errors", "tapster.model"]
    for home in homes:
        module = __import__(home, fromlist=[name])
        if hasattr(module, name):
            globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
