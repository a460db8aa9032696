# SPDX-License-Identifier: Apache-2.0
"""Network devices for virtual machines that no other machine's stop can hurt.

import tapster

with tapster.Host() as host:
    lease = host.acquire(tapster.Tap(bridge="br0"))
    ...  # start the VM with lease.fds, lease.name, lease.mac
    host.release(lease.id)
"""

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
from tapster.host import Host
from tapster.lifecycle import Action
from tapster.mending import Mended
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
    "RequestError",
    "ServiceUnavailable",
    "State",
    "Tap",
    "TapsterError",
    "Tenure",
    "Wiring",
]
