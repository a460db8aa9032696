# SPDX-License-Identifier: Apache-2.0
"""AnyHost: the methods that Host and Client share."""

from select import select
from time import CLOCK_BOOTTIME, clock_gettime

from tapster.checks import check_value, shown
from tapster.errors import (
    OF_ONE_LEASE,
    NameTaken,
    NoSuchLease,
    NotAllowed,
    OwnerRequired,
    RequestError,
)
from tapster.light import (
    TYPE_CHECKING,
    AbstractContextManager,
    Callable,
    Iterable,
    Iterator,
    Protocol,
    Self,
    Sequence,
    TypeVar,
    Unpack,
)
from tapster.model import (
    EVERY_EVENT,
    Changes,
    EventQuery,
    HistoryEntry,
    HistoryEvent,
    HistoryQuery,
    Lease,
    Link,
    Problem,
    Spec,
)
from tapster.open_device import OpenDevice

if TYPE_CHECKING:
    from tapster.operations.decision import Repair

Reference = str | Lease | OpenDevice
"""Which lease is meant: its id, the lease, or its open device. Never a name."""


NAME_RETRY = 0.02
"""Seconds until the next attempt to get a name whose FIN WAIT is over."""
ENDING_SECONDS = 5.0
"""How long to try to get a name whose FIN WAIT is over: until its device is deleted."""
LONGEST_SLEEP = 3600.0

T = TypeVar("T")


class AnyHost(Protocol):
    """Acquires, releases and looks after network devices for VMs.

    `Host` does this itself and needs privileges. `connect()` gives a `Client`, for
    which the daemon does it. Close either, or use it as a context manager; that
    ends no lease.

    Every method raises RequestError if the request is impossible, ConflictError if
    another lease, process or program holds what is needed, HostError if the host
    refuses, LedgerError if the ledger cannot be used, and InternalError at a fault of
    Tapster's own.
    """

    def close(self) -> None:
        """Close everything but the leases."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Acquire and release

    def acquire(
        self,
        spec: Spec,
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> OpenDevice:
        """Make a device and connect it. If that fails, nothing is left behind.

        The lease lasts until `release`. With `pid` it also ends with that process;
        with `on_close`, when no process has the tap open any more. With `vhost` the
        result has descriptors of /dev/vhost-net, where the host has it.
        """
        (opened,) = self.acquire_all([spec], pid=pid, on_close=on_close, vhost=vhost)
        return opened

    def acquire_all(
        self,
        specs: Iterable[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[OpenDevice, ...]:
        """Make all the devices of one VM, or none; otherwise as `acquire`."""

    def acquire_waiting(
        self,
        specs: Iterable[Spec],
        *,
        wait: float,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[OpenDevice, ...]:
        """As `acquire_all`; but if a name is in FIN WAIT, wait until it is free.

        Wait at most `wait` seconds, and no longer than FIN WAIT lasts. If FIN WAIT is
        over and the device is being deleted, wait for that in any case. Raises
        NameTaken at once if an active lease has the name.
        """
        check_value(float, wait, "wait")
        if not wait >= 0:
            raise RequestError(f"wait must be 0 or more seconds, not {wait}")
        chosen = specs_of(specs)

        def acquire() -> tuple[OpenDevice, ...]:
            return self.acquire_all(chosen, pid=pid, on_close=on_close, vhost=vhost)

        return wait_for_name(self, acquire, wait)

    def holding(self, *specs: Spec) -> "AbstractContextManager[tuple[OpenDevice, ...]]":
        """Acquire devices for a block; then close and release them."""
        from contextlib import contextmanager  # late: no verb holds devices

        return contextmanager(_holding)(self, specs)

    def release(self, lease: Reference) -> None:
        """End a lease: its device goes down and off its bridge.

        The device stays, and holds its name, until its FIN WAIT is over. May be
        repeated, also after the lease has ended.
        """

    def bind(self, leases: Iterable[Reference], pid: int | None) -> None:
        """Let active leases end with the process `pid`, and with no other.

        None: with no process. If one of the leases has been released, none is bound.
        """

    def reopen(self, lease: Reference) -> OpenDevice:
        """Open an active lease's device again, for a VMM that replaces itself.

        Raises LeaseBusy while a tap of one queue is open elsewhere: the kernel
        allows a queue one descriptor.
        """

    def set(self, lease: Reference, **changes: "Unpack[Changes]") -> Lease:
        """Change what an active lease's device is connected to, all or nothing.

        The keyword arguments are fields of `Wiring`; what is not given stays. The
        VM keeps its descriptors. May be repeated.
        """

    # Look

    def leases(self, *, all: bool = True) -> list[Lease]:
        """Return every lease, oldest first; without those in FIN WAIT if not `all`."""

    def find(self, name_or_id: str, *, owner: str | None = None) -> Lease:
        """Return the lease with this id, or of this name and owner.

        A name in the host's own network namespace comes first, then a name
        anywhere. Raises NoSuchLease, and OwnerRequired if a name is given and its
        lease has an owner, but no owner is given: the name of a lease that has ended
        may be another VM's by now.
        """
        lease = self.look_up(name_or_id, owner=owner)
        if lease.owner and owner is None and lease.id != name_or_id:
            raise OwnerRequired(
                f"{name_or_id!r} belongs to owner {lease.owner!r}, which was not "
                f"named; name the owner, or use the id {lease.id}",
                name=name_or_id,
                lease=lease.id,
                owner=lease.owner,
            )
        return lease

    def look_up(self, name_or_id: str, *, owner: str | None = None) -> Lease:
        """Return a lease as `find` does, of any owner if none is given: to look only.

        Raises NoSuchLease.
        """

    def device(self, lease: Reference) -> Link | None:
        """Return the lease's device as the kernel shows it now; None if it is gone."""

    def differences(self, lease: Reference) -> dict[str, str]:
        """Return how a device differs from its request, by backend; {} if it does not.

        Raises ServiceUnavailable if a backend cannot tell.
        """

    def differing(self, leases: Iterable[Lease]) -> frozenset[str]:
        """Return the ids of those active leases whose devices are not as requested.

        This is quick for many leases. `differences` also asks the backends, and says
        how a device differs.
        """

    def who(self, name: str, at: float | None = None) -> list[HistoryEntry]:
        """Return who holds or held `name`, latest first; at wall clock `at` if
        given."""
        check_value(str, name, "name")
        return self.history(HistoryQuery(name, at=at))

    def history(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Return the leases that fit a query, active ones too, the latest first.

        Raises RequestError for a time in the future.
        """

    def events(self, query: EventQuery = EVERY_EVENT) -> list[HistoryEvent]:
        """Return what happened to devices, the earliest first.

        Devices that were put back, and, where the daemon runs, those that others
        deleted, moved, renamed or changed, and requests that its policy refused.
        """

    # Look after

    def reap(
        self, leases: Iterable[Reference] | None = None, *, now: bool = False
    ) -> int:
        """Delete the devices whose FIN WAIT is over, or all that wait if `now`.

        With `leases`, end the FIN WAIT of these at this moment, and of no others: for
        an owner who knows that its own cleanup by name is over. Each must have been
        released. Return how many leases ended. A lease that cannot be ended keeps
        waiting, and the reason is raised after the rest is done.
        """

    def recover(self, *, dry_run: bool = False) -> "list[Repair]":
        """Bring ledger and kernel into agreement; return what was, or would be, done.

        Leases that a living process works on are left alone. May be repeated.
        """

    def examine(self) -> list[Problem]:
        """Return what is wrong on the host, and what would be the remedy."""

    def remove_leftovers(
        self, ledger: str, names: Iterable[str] | None = None
    ) -> list[str]:
        """Delete the devices that carry the stamp of a lost ledger.

        Only the caller can know that a ledger is lost. A device with a lease in the
        host's own ledger stays. So does a tap that a process has open. Return the
        devices' names.

        With `names`, delete these devices alone; if one of them must stay, delete none
        and raise.
        """


def id_of(reference: Reference) -> str:
    """Return the id of the lease that is meant. Raises RequestError."""
    if isinstance(reference, Lease | OpenDevice):
        return reference.id
    if not isinstance(reference, str):
        raise RequestError(
            "a lease is given by its id, a Lease or an OpenDevice, "
            f"not by {shown(reference)}"
        )
    if len(reference) != ID_LENGTH:
        raise NoSuchLease(
            f"no lease has the id {reference!r}; if that is a name, look for it "
            f"with find({reference!r}, owner=...)",
            reference=reference,
        )
    return reference


ID_LENGTH = 16
"""Characters of a lease's id."""


def check_name(name_or_id: str) -> None:
    """Check what a lease is looked for by. Raises RequestError."""
    check_value(str, name_or_id, "name_or_id")
    try:
        name_or_id.encode()
    except UnicodeEncodeError:
        # As a word of a command line that is not UTF-8.
        raise NoSuchLease(
            f"no lease has the name or id {name_or_id!r}", reference=name_or_id
        ) from None


def ids_of(references: Iterable[Reference]) -> list[str]:
    """Return the ids of the leases that are meant. Raises RequestError."""
    _check_several(references, "leases")
    return [id_of(reference) for reference in references]


def leases_of(leases: Iterable[Lease]) -> list[Lease]:
    """Return the leases that are meant. Raises RequestError."""
    _check_several(leases, "leases")
    chosen = list(leases)
    for lease in chosen:
        if not isinstance(lease, Lease):
            raise RequestError(f"each of leases must be a Lease, not {shown(lease)}")
    return chosen


def names_of(names: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return names of devices. Raises RequestError."""
    if names is None:
        return None
    _check_several(names, "names")
    chosen = tuple(names)
    for name in chosen:
        check_value(str, name, "name")
    return chosen


def wait_for_name(host: AnyHost, attempt: Callable[[], T], wait: float) -> T:
    """Call `attempt` again while it fails because a name is in FIN WAIT.

    Wait at most `wait` seconds, or ENDING_SECONDS if FIN WAIT is over. Raise the
    NameTaken of the last attempt.
    """
    start = clock_gettime(CLOCK_BOOTTIME)
    while True:
        try:
            return attempt()
        except NameTaken as error:
            now = clock_gettime(CLOCK_BOOTTIME)
            if error.until is None:
                raise
            is_over = error.until <= now
            end = start + (max(wait, ENDING_SECONDS) if is_over else wait)
            if now >= end:
                raise
            # The first process that sees a due lease ends it: look again soon.
            left = min(max(error.until - now, NAME_RETRY), end - now)
        select([], [], [], min(left, LONGEST_SLEEP))
        try:
            host.reap()
        except (NotAllowed, *OF_ONE_LEASE):
            continue  # acquire says what is wrong


def _holding(host: AnyHost, specs: Sequence[Spec]) -> Iterator[tuple[OpenDevice, ...]]:
    from contextlib import ExitStack

    devices = host.acquire_all(specs)
    with ExitStack() as ending:  # each, even if another fails
        for opened in devices:
            ending.callback(host.release, opened.id)
            ending.callback(opened.close)
        yield devices


def check_acquire(
    specs: Iterable[Spec], pid: int | None, on_close: bool, vhost: bool
) -> tuple[Spec, ...]:
    """Check the types of what `acquire_all` is called with; return the requests.

    A generator gives them once only. Raises RequestError.
    """
    check_value(int | None, pid, "pid")
    check_value(bool, on_close, "on_close")
    check_value(bool, vhost, "vhost")
    return specs_of(specs)


def specs_of(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """Return the requests that are meant. Raises RequestError."""
    _check_several(specs, "specs")
    chosen = tuple(specs)
    for spec in chosen:
        check_value(Spec, spec, "spec")
    return chosen


def _check_several(value: object, where: str) -> None:
    """Refuse one item where several belong: a record and a str are iterable too."""
    is_item = isinstance(value, str) or hasattr(value, "_fields")
    if is_item or not hasattr(value, "__iter__"):
        raise RequestError(f"{where} must be several, such as a list, not {value!r}")
