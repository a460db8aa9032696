# SPDX-License-Identifier: Apache-2.0
"""Every error that Tapster raises, in one tree, split by whose fault it is.

    TapsterError
    +-- RequestError           the request is impossible
    |   +-- BadName            Linux would refuse the name or template
    |   +-- NoSuchLease        no lease has this id or name
    |   +-- NoSuchLink         the bridge, lower device or netns is missing or unfit
    +-- NotAllowed             no rule of the daemon's policy allows the request
    +-- ConflictError          something else holds what is needed
    |   +-- NameTaken          the only name that will do is in use, or waits
    |   +-- MacTaken           another VM on the segment has the MAC
    |   +-- NamesExhausted     every name of the template is in use
    |   +-- BridgeFull         the bridge has no port left
    |   +-- OwnerRequired      the name is leased to an owner that was not named
    |   +-- LeaseBusy          another manager works on the lease at this moment
    |   +-- QuotaExceeded      the user has as many devices as the policy allows
    |   +-- Overloaded         the daemon has more to do than its limits allow
    +-- HostError              the host refused
    |   +-- KernelError        a system call failed
    |   +-- MissingCapability  the process may not do this
    |   +-- ServiceUnavailable a service that a backend needs is not there
    |   +-- NftRefused         nftables refused a change of its rules
    |   +-- DaemonError        the daemon does not answer, or not as it should
    +-- LedgerError            the ledger cannot be used
    |   +-- LedgerDamaged      the file is not a ledger, or not a whole one
    |   +-- LedgerTooNew       a later release wrote the ledger
    +-- InternalError          Tapster itself is at fault: please report it

Every message names the value that was wrong, and says what would be right. What a
program may want to know of an error is in its attributes.
"""

import os
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM

from tapster.light import ClassVar


class TapsterError(Exception):
    """The root of all errors of Tapster. `help("tapster.errors")` shows the tree."""

    fields: ClassVar[tuple[str, ...]] = ()
    """The names of the attributes that this type of error has."""

    def __init__(self, *args: object, **fields: object) -> None:
        super().__init__(*args)
        if unknown := fields.keys() - set(self.fields):
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}")
        self.__dict__.update(fields)


class RequestError(TapsterError, ValueError):
    """The request is impossible."""


class BadName(RequestError):
    """Linux would refuse the name or template."""

    fields: ClassVar[tuple[str, ...]] = ("name",)
    name: str | None = None
    """The name or template that was given."""


class NoSuchLease(RequestError):
    """No lease has this id or name."""

    fields: ClassVar[tuple[str, ...]] = ("reference",)
    reference: str | None = None
    """The id or name that was given."""


class NoSuchLink(RequestError):
    """A bridge, lower device or network namespace is missing or unfit."""

    fields: ClassVar[tuple[str, ...]] = ("name",)
    name: str | None = None
    """The name of the device, or the name or path of the namespace."""


class NotAllowed(TapsterError):
    """No rule of the daemon's policy allows it; the message says which would."""


class ConflictError(TapsterError):
    """Another lease, manager or program holds what is needed.

    Another name, or a later attempt, may succeed.
    """


class NameTaken(ConflictError):
    """The only name that the request allows is in use or in FIN WAIT."""

    fields: ClassVar[tuple[str, ...]] = ("name", "lease", "owner", "until")
    name: str | None = None
    """The name."""
    lease: str | None = None
    """The id of the lease that has the name; None if a foreign device has it."""
    owner: str | None = None
    """The owner of that lease."""
    until: float | None = None
    """Seconds of `CLOCK_BOOTTIME` at which the lease's FIN WAIT ends; None if it is not
    in it.

    For an owner that reclaims the name: now, if another manager works on the lease."""


class MacTaken(ConflictError):
    """Another active lease has the MAC on the same bridge or lower device."""

    fields: ClassVar[tuple[str, ...]] = ("mac", "lease", "owner")
    mac: str | None = None
    """The MAC that was given."""
    lease: str | None = None
    """The id of the lease that has the MAC."""
    owner: str | None = None
    """The owner of that lease."""


class NamesExhausted(ConflictError):
    """Every name that the template can make is in use."""

    fields: ClassVar[tuple[str, ...]] = ("template",)
    template: str | None = None
    """The template that was given."""


class BridgeFull(ConflictError):
    """The bridge has no free port."""

    fields: ClassVar[tuple[str, ...]] = ("bridge",)
    bridge: str | None = None
    """The name of the bridge."""


class OwnerRequired(ConflictError):
    """The lease of this name has an owner that the caller did not name.

    A name alone may be another VM's by now.
    """

    fields: ClassVar[tuple[str, ...]] = ("name", "lease", "owner")
    name: str | None = None
    """The name that was given."""
    lease: str | None = None
    """The id of the lease that has the name."""
    owner: str | None = None
    """The owner of that lease."""


class LeaseBusy(ConflictError):
    """Another living manager works on the lease at this moment."""

    fields: ClassVar[tuple[str, ...]] = ("lease",)
    lease: str | None = None
    """The id of the lease."""


class QuotaExceeded(ConflictError):
    """The user has as many devices, or keys of names, as the daemon allows."""

    fields: ClassVar[tuple[str, ...]] = ("limit",)
    limit: int | None = None
    """How many the user can have."""


class Overloaded(ConflictError):
    """The daemon has more to do than its limits allow; a later attempt may succeed."""


class HostError(TapsterError):
    """The host refused."""


class KernelError(HostError):
    """A system call failed."""

    errno: int
    """The kernel's error number, as in Python's module `errno`."""

    def __init__(self, errno: int, action: str, reason: str = "") -> None:
        super().__init__(errno, action, reason)
        self.errno = errno

    def __str__(self) -> str:
        errno, action, reason = self.args
        return f"{action}: {reason or os.strerror(errno)}"


class MissingCapability(HostError):
    """The process lacks the privilege for this."""

    fields: ClassVar[tuple[str, ...]] = ("capability",)
    capability: str | None = None
    """The missing capability, as capabilities(7) calls it."""


class ServiceUnavailable(HostError):
    """A service that a backend needs, such as OVSDB, cannot be reached.

    Or the library that speaks with the service is not installed.
    """


class NftRefused(HostError):
    """nftables refused commands, and carried out none of them.

    Another program may have changed a table in between.
    """


class DaemonError(HostError):
    """The daemon does not answer, or not as it should."""


class LedgerError(TapsterError):
    """The ledger cannot be used; nothing was changed."""


class LedgerDamaged(LedgerError):
    """The file is not a ledger, or not a whole one."""


class LedgerTooNew(LedgerError):
    """A later release of Tapster wrote the ledger."""


class InternalError(TapsterError):
    """A fault of Tapster's own, which it did not foresee."""


OF_ONE_LEASE = (RequestError, ConflictError, HostError, InternalError)
"""What is raised when one lease, or its device, cannot be worked on: its bridge may be
missing. The work on other leases goes on. A LedgerError concerns all leases."""

LASTING = (LedgerDamaged, LedgerTooNew)
"""The errors of a ledger that another attempt meets again. Any other LedgerError may
pass: the file is locked, or its disk is full."""

_NO_ROOM = (EMFILE, ENFILE, ENOMEM, ENOBUFS)


def is_shortage(error: Exception) -> bool:
    """Return whether memory or descriptors were short: the same call may work later."""
    return isinstance(error, OSError | KernelError) and error.errno in _NO_ROOM


def unforeseen(error: Exception) -> TapsterError:
    """Return the error for an exception that no code of ours foresaw.

    That the process can open no more files, or has no memory, shows at any place: also
    where a module is loaded. Anything else is an InternalError.
    """
    if isinstance(error, OSError) and error.errno and is_shortage(error):
        opened = f"opening {error.filename!r}" if error.filename else "going on"
        return KernelError(error.errno, opened)
    return InternalError(
        f"Tapster failed unexpectedly: {type(error).__name__}: {error}; this is a "
        "fault of Tapster: please report it, with the traceback, to its developers"
    )
