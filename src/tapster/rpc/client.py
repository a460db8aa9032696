# SPDX-License-Identifier: Apache-2.0
"""The daemon's client: what `Host` does, for who is not root.

with tapster.connect() as host:
    lease = host.acquire(tapster.Tap(bridge="br0"))

Small and synchronous: it sits in the start path of virtual machines.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from tapster.errors import DaemonError, RequestError
from tapster.kernel import unix
from tapster.model import HistoryEntry, Lease, Link, Problem, Spec, State, Wiring
from tapster.operations.decision import Repair
from tapster.rpc import interface, varlink
from tapster.rpc.interface import NAME, SOCKET, Binding, Count, Event

_METHODS = {method.name: method for method in interface.METHODS}
_ONCE = {"Acquire", "Reopen", "Watch"}
"""What must not be asked for again: it may have been done."""
_READ = 1 << 16


DIFFERING_LEASES = 100
"""How many leases `differing` looks at."""


class _Lost(DaemonError):
    """The connection broke off."""


def socket_path(path: str | os.PathLike[str] | None = None) -> str:
    """The daemon's socket: `path`, else `TAPSTER_SOCKET`, else the usual one."""
    return os.fspath(path or os.environ.get("TAPSTER_SOCKET") or SOCKET)


def connect(
    path: str | os.PathLike[str] | None = None, *, netns: str | None = None
) -> "Client":
    """The daemon at `path`, else at `TAPSTER_SOCKET`, else where it usually is.

    New devices are made, and names looked for, in the network namespace `netns`;
    None is the daemon's. Raises DaemonError if no daemon answers.
    """
    return Client(socket_path(path), netns)


class Client:
    """The devices that the daemon manages for the caller, with Host's methods.

    May be used by one thread at a time. Close it, or use it as a context manager;
    that ends no lease. Every method raises what Host's does, and DaemonError,
    NotAllowed, QuotaExceeded and Overloaded.
    """

    def __init__(self, path: str, netns: str | None = None) -> None:
        self.path = path
        self._netns = netns
        self._connect()

    def _connect(self) -> None:
        try:
            self._socket = unix.connect(self.path)
        except OSError as error:
            raise DaemonError(
                f"no daemon answers at {self.path!r} ({error.strerror}); "
                "start tapsterd, or run as root"
            ) from error
        self._buffer = b""
        self._fds: list[int] = []

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        unix.close(self._fds)
        self._fds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # As Host's

    def acquire(self, spec: Spec, *, pid: int | None = None) -> Lease:
        """As Host's. `pid`, if given, is the caller's own."""
        (lease,) = self.acquire_all([spec], pid=pid)
        return lease

    def acquire_all(
        self,
        specs: Sequence[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[Lease, ...]:
        """As Host's. With `vhost`, where the host has it, each lease has descriptors
        of /dev/vhost-net too."""
        if pid not in (None, os.getpid()):
            raise RequestError("acquire binds to the caller; bind() to another process")
        # Bound to this process until it knows of them: so nothing is left if either
        # side dies before that.
        binding = Binding.CLOSE if on_close else Binding.CALLER
        nics = tuple(interface.nic(spec) for spec in specs)
        asked = interface.Acquire(nics, binding, self._netns, vhost)
        given, fds = self._call("Acquire", asked)
        leases = tuple(
            lease._replace(
                fds=tuple(fds[place] for place in lease.fds),
                vhost=tuple(fds[place] for place in lease.vhost),
            )
            for lease in given.leases
        )
        if pid is None and not on_close:
            try:
                self.bind(leases, None)
            except BaseException:
                unix.close(fds)
                raise
            leases = tuple(lease._replace(process=None) for lease in leases)
        return leases

    @contextmanager
    def holding(self, *specs: Spec) -> Iterator[tuple[Lease, ...]]:
        """As Host's."""
        leases = self.acquire_all(specs)
        with ExitStack() as ending:
            for lease in leases:
                ending.callback(self.release, lease.id)
                ending.callback(unix.close, lease.fds + lease.vhost)
            yield leases

    def bind(self, leases: Sequence[Lease], pid: int | None) -> None:
        """As Host's; the process must be of the caller's own user."""
        ids = tuple(lease.id for lease in leases)
        if pid is None:
            self._call("Bind", interface.Bind(ids))
            return
        try:
            process = os.pidfd_open(pid)
        except OSError as error:
            raise RequestError(
                f"there is no process {pid} to bind a lease to: {error.strerror}"
            ) from None
        try:
            self._call("Bind", interface.Bind(ids, 0), [process])
        finally:
            os.close(process)

    def release(self, id: str) -> None:
        """As Host's."""
        self._call("Release", interface.Release(id))

    def reopen(self, id: str) -> tuple[int, ...]:
        """As Host's."""
        given, fds = self._call("Reopen", interface.Reopen(id))
        return tuple(fds[place] for place in given.fds)

    def find(self, name_or_id: str) -> Lease:
        """As Host's: what the caller may see."""
        asked = interface.Get(name_or_id, self._netns)
        lease: Lease = self._call("Get", asked)[0].lease
        return lease

    def device(self, lease: Lease) -> Link | None:
        """As Host's."""
        device: Link | None = self._call("Get", interface.Get(lease.id))[0].device
        return device

    def differences(self, lease: Lease) -> dict[str, str]:
        """As Host's; what cannot be told is said as of the backend "service"."""
        return dict(self._call("Get", interface.Get(lease.id))[0].differences)

    def differing(self, leases: Sequence[Lease]) -> frozenset[str]:
        """As Host's, for up to 100 leases: each takes a call."""
        active = [lease for lease in leases if lease.state is State.ACTIVE]
        if len(active) > DIFFERING_LEASES:
            return frozenset()
        return frozenset(lease.id for lease in active if self.differences(lease))

    def set(self, id: str, **changes: Any) -> Lease:
        """As Host's."""
        if unknown := sorted(changes.keys() - set(Wiring._fields)):
            raise RequestError(
                f"{', '.join(unknown)} cannot be changed, but these can: "
                f"{', '.join(Wiring._fields)}"
            )
        asked = interface.Set(id, tuple(changes), Wiring(**changes))
        lease: Lease = self._call("Set", asked)[0].lease
        return lease

    def leases(self, *, all: bool = True) -> list[Lease]:
        """As Host's: those that the caller may see."""
        return list(self._call("List", interface.List(all))[0].leases)

    def who(self, name: str, at: float | None = None) -> list[HistoryEntry]:
        """As Host's: what the caller may see."""
        return list(self._call("History", interface.History(name, at))[0].entries)

    def reap(self, *, now: bool = False) -> int:
        """As Host's."""
        return int(self._call("Reap", interface.Reap(now))[0].reaped)

    def recover(self, *, dry_run: bool = False) -> list[Repair]:
        """As Host's."""
        return list(self._call("Recover", interface.Recover(dry_run))[0].repairs)

    def remove_leftovers(self, ledger: str) -> list[str]:
        """As Host's."""
        given, _ = self._call("RemoveLeftovers", interface.Leftovers(ledger))
        return list(given.names)

    # The daemon's own

    def ping(self) -> None:
        """Return when the daemon answers."""
        self._call("Ping", varlink.Nothing())

    def examine(self) -> list[Problem]:
        """What is wrong on the host."""
        return list(self._call("Examine", varlink.Nothing())[0].problems)

    def statistics(self) -> list[Count]:
        """What the daemon has done, counted."""
        return list(self._call("GetStatistics", varlink.Nothing())[0].counts)

    def watch(self) -> Iterator[Event]:
        """What happens, as it happens; the first event is "watching".

        Nothing else can be called on this connection any more.
        """
        self._send("Watch", varlink.Nothing(), (), more=True)
        while True:
            given, _ = self._receive("Watch")
            yield given.event

    def ready(self, seconds: float) -> bool:
        """Whether `watch` has an event, or gets one within so many seconds."""
        return b"\0" in self._buffer or unix.readable(self._socket, seconds)

    # Messages

    def _call(
        self, method: str, parameters: Any, fds: Sequence[int] = ()
    ) -> tuple[Any, list[int]]:
        try:
            self._send(method, parameters, fds)
            return self._receive(method)
        except _Lost:
            if method in _ONCE:
                raise
        # The daemon was restarted; what is asked for may be done twice.
        self.close()
        self._connect()
        self._send(method, parameters, fds)
        return self._receive(method)

    def _send(
        self, method: str, parameters: Any, fds: Sequence[int], *, more: bool = False
    ) -> None:
        message = {
            "method": f"{NAME}.{method}",
            "parameters": varlink.to_json(parameters),
            **({"more": True} if more else {}),
        }
        data = varlink.encode(message)
        try:
            while data:
                data = data[unix.send(self._socket, data, fds) :]
                fds = ()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it closed
        except OSError as error:
            raise DaemonError(f"{self.path!r}: {error.strerror}") from error

    def _receive(self, method: str) -> tuple[Any, list[int]]:
        """The answer, and its descriptors. An error of the daemon's is raised."""
        message, fds = self._message()
        try:
            if error := message.get("error"):
                raise self._failed(str(error), message.get("parameters"))
            given = message.get("parameters", {})
            kind = _METHODS[method].gives
            return varlink.from_json(kind, given, strict=False), fds
        except varlink.Unfit as error:
            unix.close(fds)
            raise DaemonError(f"the daemon's answer is wrong: {error}") from error
        except BaseException:
            unix.close(fds)
            raise

    def _failed(self, error: str, parameters: Any) -> Exception:
        where, _, name = error.rpartition(".")
        if where == NAME:
            return interface.raised(name, parameters)
        if where == varlink.SERVICE and name == "InvalidParameter":
            return RequestError(f"the daemon does not know {parameters}")
        return DaemonError(f"the daemon refused: {error} {parameters or ''}")

    def _message(self) -> tuple[dict[str, Any], list[int]]:
        while b"\0" not in self._buffer:
            try:
                data, fds = unix.receive(self._socket, _READ, unix.SCM_MAX_FD)
            except OSError as error:
                raise _Lost(f"{self.path!r}: {error.strerror}") from error
            if not data:
                raise _Lost(f"the daemon at {self.path!r} closed the connection")
            self._buffer += data
            self._fds += fds
        text, _, self._buffer = self._buffer.partition(b"\0")
        # Answers come one at a time, so what has come is this one's.
        fds, self._fds = self._fds, []
        try:
            return varlink.decode(text), fds
        except varlink.Malformed as error:
            unix.close(fds)
            raise DaemonError(f"{self.path!r} is not a Varlink service") from error
