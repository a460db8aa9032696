# SPDX-License-Identifier: Apache-2.0
"""Network devices for virtual machines that no other machine's stop can hurt.

import tapster

with tapster.Host() as host:
    lease = host.acquire(tapster.Tap(bridge="br0"))
    ...  # start the VM with lease.fds, lease.name, lease.mac
    host.release(lease.id)

Without privileges, with `tapster.connect() as host`, the daemon does the same.
"""

from typing import TYPE_CHECKING, Any

from tapster.errors import (
    BadName,
    BridgeFull,
    ConflictError,
    DaemonError,
    HostError,
    KernelError,
    LeaseBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    MissingCapability,
    NamesExhausted,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    NotAllowed,
    Overloaded,
    QuotaExceeded,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.model import (
    HistoryEntry,
    Kind,
    Lease,
    Link,
    Macvtap,
    Mode,
    Naming,
    Netns,
    Process,
    Rate,
    State,
    Tap,
    Wiring,
)
from tapster.operations.decision import Action, Repair

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client, connect

__version__ = "0.1.0"

__all__ = [
    "Action",
    "BadName",
    "BridgeFull",
    "Client",
    "ConflictError",
    "DaemonError",
    "HistoryEntry",
    "Host",
    "HostError",
    "KernelError",
    "Kind",
    "Lease",
    "LeaseBusy",
    "LedgerDamaged",
    "LedgerError",
    "LedgerTooNew",
    "Link",
    "Macvtap",
    "MissingCapability",
    "Mode",
    "NameTaken",
    "NamesExhausted",
    "Naming",
    "Netns",
    "NoSuchLease",
    "NoSuchLink",
    "NotAllowed",
    "Overloaded",
    "Process",
    "QuotaExceeded",
    "Rate",
    "Repair",
    "RequestError",
    "ServiceUnavailable",
    "State",
    "Tap",
    "TapsterError",
    "Wiring",
    "connect",
]


def __getattr__(name: str) -> Any:
    """Host and the client, when first used: who needs one does not pay for both."""
    if name == "Host":
        from tapster.host import Host

        return Host
    if name in ("Client", "connect"):
        from tapster.rpc import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
