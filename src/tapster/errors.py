# SPDX-License-Identifier: Apache-2.0
"""Every error that Tapster raises, in one tree, split by whose fault it is.

    TapsterError
    +-- RequestError          the caller asked for what cannot be
    |   +-- BadName           a name or template that Linux would refuse
    |   +-- NoSuchLease       no lease has this name or id
    |   +-- NoSuchLink        the bridge, lower device or netns is missing or unfit
    +-- NotAllowed            the daemon's policy has no rule that allows it
    +-- ConflictError         somebody else holds what is needed
    |   +-- NameTaken         the one name asked for is in use, or waits
    |   +-- NamesExhausted    every name of the template is in use
    |   +-- BridgeFull        the bridge has no port left
    |   +-- LeaseBusy         another manager works on the lease at this moment
    |   +-- QuotaExceeded     the user has as many devices as the policy gives
    |   +-- Overloaded        the daemon has more to do than its limits allow
    +-- HostError             the host refused
    |   +-- KernelError       a system call failed; `errno` says how
    |   +-- MissingCapability the process may not do this
    |   +-- ServiceUnavailable a service that keeps part of the wiring is not there
    |   +-- DaemonError       the daemon does not answer, or not as it should
    +-- LedgerError           the ledger cannot be used
        +-- LedgerDamaged     it is not a ledger, or not a whole one
        +-- LedgerTooNew      a later release wrote it

Every message names the value that was wrong and says what would be right.
"""

import os


class TapsterError(Exception):
    """The root of the tree."""


class RequestError(TapsterError, ValueError):
    """The caller asked for something that cannot be."""


class BadName(RequestError):
    """A name or template that Linux would refuse."""


class NoSuchLease(RequestError):
    """No lease has this name or id."""


class NoSuchLink(RequestError):
    """A bridge, lower device or network namespace is missing or unfit."""


class NotAllowed(TapsterError):
    """No rule of the daemon's policy allows it; the message says which would."""


class ConflictError(TapsterError):
    """Somebody else holds what is needed; another name or a later try may do."""


class NameTaken(ConflictError):
    """The only name that the request allows is in use or in FIN WAIT."""


class NamesExhausted(ConflictError):
    """Every name that the template can make is in use."""


class BridgeFull(ConflictError):
    """The bridge has no free port."""


class LeaseBusy(ConflictError):
    """Another living manager works on the lease at this moment."""


class QuotaExceeded(ConflictError):
    """The user has as many devices as the daemon's policy gives."""


class Overloaded(ConflictError):
    """The daemon has more to do than its limits allow; a later try may do."""


class HostError(TapsterError):
    """The host refused."""


class KernelError(HostError):
    """A system call failed."""

    def __init__(self, errno: int, action: str, said: str = "") -> None:
        super().__init__(errno, action, said)
        self.errno = errno
        """The kernel's error number, as in `errno`."""

    def __str__(self) -> str:
        errno, action, said = self.args
        return f"{action}: {said or os.strerror(errno)}"


class MissingCapability(HostError):
    """The process lacks the privilege for this."""


class ServiceUnavailable(HostError):
    """A service that keeps part of the wiring, such as OVSDB, cannot be reached.

    Or the library that speaks with it is not installed.
    """


class DaemonError(HostError):
    """The daemon does not answer, or not as it should."""


class LedgerError(TapsterError):
    """The ledger cannot be used; nothing was changed."""


class LedgerDamaged(LedgerError):
    """The file is not a ledger, or not a whole one."""


class LedgerTooNew(LedgerError):
    """A later release of Tapster wrote the ledger."""
