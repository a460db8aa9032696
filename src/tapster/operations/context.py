# SPDX-License-Identifier: Apache-2.0
"""What every operation works with: the ledger, the kernel, backends and claims.

A context is constructed once for each Host, and handed to the operations.
"""

import os

from tapster import backends as all_backends
from tapster.backends import MakeBackends
from tapster.errors import HostError, RequestError
from tapster.gate import Gate
from tapster.kernel.files import absolute
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.lock import LockFile
from tapster.kernel.port import Namespace, System
from tapster.ledger import DEFAULT_PATH, Ledger
from tapster.light import (
    TYPE_CHECKING,
    AbstractContextManager,
    Callable,
    Iterator,
    Mapping,
    Sequence,
    TypeVar,
    contextmanager,
)
from tapster.model import Life, Macvtap, Netns, Process
from tapster.operations.claims import Claims

if TYPE_CHECKING:
    from tapster.backends.backend import Backend
    from tapster.fleet.macs import FleetMacs, OnAsked

T = TypeVar("T")

WATCHED = 60.0
"""Seconds for which the reaper watches a new device where udev may change it."""


class Context:
    """A ledger, a network namespace, and the means to work on leases."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        system: System,
        namespace: Namespace,
        backends: "Sequence[Backend]",
        claims: Claims,
        start_reaper: Callable[[str], None],
        fleet: "FleetFinder | None" = None,
    ) -> None:
        """`start_reaper` starts a reaper of the ledger at a path.

        `fleet` finds the fleet's part of an acquire, where there may be a fleet.
        """
        self.ledger = ledger
        self.system = system
        self.namespace = namespace
        """The namespace in which devices are made."""
        self.backends = backends
        self.claims = claims
        self._gate = Gate("Host")
        self._fleet = fleet
        self._start_reaper = start_reaper
        self.fleet_figures: Callable[[], Mapping[str, float]] = dict
        """Numbers for monitoring, from the daemon's syncs with its fleet."""

    @property
    def gate(self) -> AbstractContextManager[object]:
        """Every operation runs inside it. An operation may call another."""
        return self._gate.lock

    def run(self, work: Callable[[], T]) -> T:
        """Do the work of a user's whole call; see `Gate.run`."""
        return self._gate.run(work)

    def close(self) -> None:
        """Close everything but the leases."""
        if self._gate.close():
            if self._fleet is not None:
                self._fleet.close()
            self.claims.close()
            self.namespace.close()
            self.ledger.close()

    def find_fleet(self) -> "FleetMacs | None":
        """Return the fleet's part of an acquire; None outside a fleet."""
        return None if self._fleet is None else self._fleet.find()

    def watch_fleet(self, on_asked: "OnAsked") -> None:
        """Have each question to the fleet reported, as `FleetMacs.on_asked` says."""
        if self._fleet is not None:
            self._fleet.on_asked = on_asked

    @contextmanager
    def opened(self, netns: Netns) -> Iterator[Namespace | None]:
        """Open a lease's namespace for a block; None if the namespace is gone.

        Only for a block, because an open namespace cannot end.
        """
        if self.is_here(netns):
            yield self.namespace
            return
        namespace = self.system.find(netns)
        try:
            yield namespace
        finally:
            if namespace is not None:
                namespace.close()

    @contextmanager
    def lower_namespace(self, spec: Macvtap) -> Iterator[Namespace]:
        """Open the namespace of a macvtap's lower device for a block."""
        if spec.lower_netns is None:
            yield self.namespace
            return
        namespace = self.system.netns(spec.lower_netns or None)
        try:
            yield namespace
        finally:
            namespace.close()

    def is_here(self, netns: Netns) -> bool:
        """Return whether `netns` is the namespace in which devices are made."""
        own = self.namespace.netns
        return (own.boot, own.cookie) == (netns.boot, netns.cookie)

    def process(self, pid: int, *, ended: bool = False) -> Process:
        """Return the process that has this pid now; with `ended`, also a zombie.

        Raises RequestError if there is none.
        """
        if process := self.system.process(pid, ended=ended):
            return process
        raise RequestError(
            f"there is no process {pid} to bind a lease to: it has ended, or the "
            "number is that of a thread"
        )

    def has_ended(self, process: Process) -> bool:
        """Whether a process has ended for certain."""
        return self.system.life(process) is Life.ENDED

    def watched_since(self) -> float | None:
        """Return since when new devices are watched, because udev may change them."""
        if not self.system.udev_interferes():
            return None
        return self.system.wallclock() - WATCHED

    def wake_reaper(self, *, new: bool = False) -> None:
        """Start a reaper if there is work for one, and no reaper runs.

        There is work while a lease waits, or is bound: then the reaper has to see
        the process end, or the tap closed; or if a `new` device has to be watched.
        """
        # The lock is asked first: to read the ledger costs more.
        if self.claims.is_reaper_awake():
            return
        ledger = self.ledger
        if not new and ledger.next_deadline() is None and not ledger.is_any_bound():
            return
        self._start_reaper(self.ledger.path)


def ledger_path(path: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the ledger: `path`, else `TAPSTER_LEDGER`, else the
    default."""
    if path is None:
        path = os.environ.get("TAPSTER_LEDGER") or DEFAULT_PATH
    where = os.fspath(path)
    if not where:
        raise RequestError("the ledger's path is empty")
    try:
        good = b"\0" not in os.fsencode(where)
    except UnicodeError:
        good = False
    if not good:
        raise RequestError(f"the ledger's path {where!r} has a character of no path")
    return absolute(where)


def open_context(
    ledger: str | os.PathLike[str] | None = None,
    *,
    netns: str | None = None,
    system: System | None = None,
    backends: MakeBackends | None = None,
    reaper: Callable[[str], None] | None = None,
    make: bool = True,
) -> Context:
    """Open a ledger and a namespace; the parameters are those of `open_operations`."""
    system = system or LinuxSystem()
    # A host in memory must touch nothing real, whatever its caller leaves out.
    if (ledger is None or backends is None or reaper is None) and system.stand_ins:
        ledger = ledger or system.stand_ins.ledger
        backends = backends or system.stand_ins.backends
        reaper = reaper or system.stand_ins.start_reaper
    make_backends = backends or all_backends.make
    opened = Ledger(ledger_path(ledger), system, make=make)
    try:
        return Context(
            ledger=opened,
            system=system,
            namespace=system.netns(netns),
            backends=make_backends(opened.id, opened.leases),
            claims=Claims(opened, make=make),
            start_reaper=reaper or start_reaper,
            fleet=FleetFinder(opened, system),
        )
    except BaseException:
        opened.close()
        raise


class FleetFinder:
    """Finds the fleet's part of an acquire, and keeps it for the next one."""

    def __init__(self, ledger: Ledger, system: System) -> None:
        self._ledger = ledger
        self._system = system
        self._macs: FleetMacs | None = None
        self.on_asked: OnAsked = lambda *_: None

    def find(self) -> "FleetMacs | None":
        """Return the fleet's MACs; None if the ledger's host is in no fleet now."""
        if not self._ledger.in_fleet():
            return None
        if self._macs is None:
            # Outside a fleet nothing of it is imported.
            from tapster.fleet.macs import FleetMacs

            self._macs = FleetMacs(self._ledger, self._system.wallclock)
            self._macs.on_asked = self.on_asked
        return self._macs

    def close(self) -> None:
        """Close the connection to the store, if there is one."""
        if self._macs is not None:
            self._macs.close()


def start_reaper(ledger: str) -> None:
    """Start a process that reaps the ledger at this path, and ends when it can.

    If another process has just started one, that one is enough.
    """
    # Rarely needed, and slow to import.
    from tapster.kernel.detached import start

    locks = LockFile(ledger, make=False)
    try:
        if locks.announce_reaper():
            start("tapster.reaper", ledger, keep=locks.fileno())
    except OSError as error:
        raise HostError(
            f"the reaper could not be started: {error.strerror}; released devices "
            "keep waiting until the next command starts the reaper"
        ) from error
    finally:
        locks.leave()
