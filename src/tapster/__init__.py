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
from tapster.lifecycle import Action, Mended
from tapster.model import (
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
    Tenure,
    Wiring,
)

if TYPE_CHECKING:
    from tapster.client import Remote, connect
    from tapster.host import Host

__version__ = "0.1.0"

__all__ = [
    "Action",
    "BadName",
    "BridgeFull",
    "ConflictError",
    "DaemonError",
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
    "Mended",
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
    "Remote",
    "RequestError",
    "ServiceUnavailable",
    "State",
    "Tap",
    "TapsterError",
    "Tenure",
    "Wiring",
    "connect",
]


def __getattr__(name: str) -> Any:
    """Host and the client, when first used: who needs one does not pay for both."""
    if name == "Host":
        from tapster.host import Host

        return Host
    if name in ("Remote", "connect"):
        from tapster import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
