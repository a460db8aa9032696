# SPDX-License-Identifier: Apache-2.0
"""Client: an AnyHost for which the daemon does the work.

Small and synchronous, because it sits in the start path of VMs.
"""

import os
import time

from tapster.api import AnyHost, Reference, check_acquire, id_of, ids_of, names_of
from tapster.checks import check_record, check_value
from tapster.errors import DaemonError, RequestError
from tapster.gate import Gate
from tapster.kernel import unix
from tapster.light import Any, Callable, Iterable, Iterator, Sequence, TypeVar, Unpack
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
    State,
    Wiring,
    check_changes,
)
from tapster.open_device import OpenDevice
from tapster.operations.decision import Repair
from tapster.rpc import interface, varlink
from tapster.rpc.interface import LISTED, NAME, SOCKET, Binding, Count, Event

T = TypeVar("T")


def _opened(
    devices: Sequence[interface.Device], fds: list[int], number: int
) -> tuple[OpenDevice, ...]:
    """Return so many devices of an answer, with the descriptors that came along.

    Raise DaemonError if the answer has other devices, or no descriptor, or the same one
    twice, where a device says that it has one.
    """
    places = [place for one in devices for place in one.fds + one.vhost_fds]
    if len(devices) != number or sorted(places) != [*range(len(fds))]:
        unix.close(fds)
        raise DaemonError(
            f"the daemon's answer is wrong: {len(devices)} devices and {len(fds)} "
            f"descriptors, at {places}, where {number} devices were asked for"
        )
    return tuple(
        OpenDevice(
            device.lease,
            tuple(fds[place] for place in device.fds),
            tuple(fds[place] for place in device.vhost_fds),
        )
        for device in devices
    )


def _open_process(pid: int) -> int:
    """Open a pidfd of the process that a lease is to end with."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise RequestError(
            f"there is no process {pid} to bind a lease to: {error.strerror}"
        ) from None


_METHODS = {method.name: method for method in interface.METHODS}
_ONCE = {"Acquire", "Reopen", "Watch"}
"""Methods that are not called again after a lost connection: they may have been carried
out."""
_GIVE_DESCRIPTORS = {"Acquire", "Reopen"}
"""Methods whose answers have descriptors. Those that come with others are closed."""
_READ = 1 << 16
LARGEST = 1 << 26
"""Bytes of an answer."""


ANSWER_SECONDS = 120.0
"""How long a call waits for its answer, unless the caller says otherwise. A daemon that
waits for a switch that hangs may need some seconds. A stopped daemon never answers."""
DIFFERING_LEASES = 100
"""How many leases `differing` looks at."""


class _Lost(DaemonError):
    """The connection broke off."""


def socket_path(path: str | os.PathLike[str] | None = None) -> str:
    """Return the daemon's socket: `path`, else `TAPSTER_SOCKET`, else the usual one."""
    return os.fspath(path or os.environ.get("TAPSTER_SOCKET") or SOCKET)


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    netns: str | None = None,
    timeout: float | None = ANSWER_SECONDS,
) -> "Client":
    """Connect to the daemon at `path`, else at `TAPSTER_SOCKET`, else at the usual
    path.

    New devices are made, and names are looked up, in the network namespace `netns`;
    None means the daemon's. Each call waits for its answer for `timeout` seconds; None
    means without end. Raises DaemonError if no daemon answers.
    """
    check_value(float | None, timeout, "timeout")
    return Client(socket_path(path), netns, timeout)


class Client(AnyHost):
    """The devices that the daemon manages for the caller.

    Threads may share it; it lets one in at a time. A forked child connects by itself. A
    signal handler that interrupts a call cannot use the same client. If an exception
    ends a call, as Ctrl-C does, the connection is closed: the daemon takes back what
    the call would have given, and the next call connects again. The same happens if the
    daemon does not answer in time. Close it, or use it as a context manager; that ends
    no lease. Methods also raise DaemonError, NotAllowed, QuotaExceeded and Overloaded.
    The caller sees its own leases only, unless the policy allows more.
    """

    def __init__(
        self,
        path: str,
        netns: str | None = None,
        timeout: float | None = ANSWER_SECONDS,
    ) -> None:
        self.path = path
        self._netns = netns
        self._timeout = timeout
        self._gate = Gate("client")
        self._watches = False
        self._connect()

    def _connect(self) -> None:
        try:
            self._socket = unix.connect(self.path, self._timeout)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise DaemonError(
                f"no daemon answers at {self.path!r} ({error.strerror}); start tapsterd"
            ) from error
        self._buffer = b""
        self._fds: list[int] = []
        self._continues = False
        """Whether the last answer was a part, and more follow."""
        self._waiting = False
        """Whether a request was sent, or a part of it, and its answer is due."""

    def close(self) -> None:
        if self._gate.close():
            self._disconnect()

    def _disconnect(self) -> None:
        self._waiting = True  # no call may use this connection
        self._socket.close()
        unix.close(self._fds)
        self._fds = []

    # Acquire and release

    def acquire_all(
        self,
        specs: Sequence[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[OpenDevice, ...]:
        """As AnyHost's. `pid` must be of the caller's own user."""
        check_acquire(specs, pid, on_close, vhost)
        if pid not in (None, os.getpid()):
            return self._acquire_for(pid, specs, on_close, vhost)
        binding = Binding.NOTHING
        if on_close or pid is not None:
            binding = Binding.CLOSE if on_close else Binding.CALLER
        nics = tuple(interface.nic(spec) for spec in specs)
        request = interface.Acquire(nics, binding, self._netns, vhost)
        # If this process ends before it has received the answer, the daemon releases
        # the leases. So one call is enough, and nothing is left.
        answer, fds = self.call("Acquire", request)
        return _opened(answer.devices, fds, len(specs))

    def _acquire_for(
        self, pid: int, specs: Sequence[Spec], on_close: bool, vhost: bool
    ) -> tuple[OpenDevice, ...]:
        """Acquire devices whose leases end with another process than the caller's.

        Until they are bound to that process, they end with the caller.
        """
        if on_close:
            raise RequestError(
                "through the daemon, on_close goes with no other process's pid: "
                "give one of them"
            )
        pidfd = _open_process(pid)
        try:
            opened = self.acquire_all(specs, pid=os.getpid(), vhost=vhost)
            try:
                ids = tuple(device.id for device in opened)
                self.call("Bind", interface.Bind(ids, 0), [pidfd])
            except BaseException:
                for device in opened:
                    device.close()
                    self.release(device)
                raise
            return opened
        finally:
            os.close(pidfd)

    def release(self, lease: Reference) -> None:
        self.call("Release", interface.Release(id_of(lease)))

    def bind(self, leases: Iterable[Reference], pid: int | None) -> None:
        """As AnyHost's. The process must be of the caller's own user."""
        check_value(int | None, pid, "pid")
        ids = tuple(ids_of(leases))
        if pid is None:
            self.call("Bind", interface.Bind(ids))
            return
        process = _open_process(pid)
        try:
            self.call("Bind", interface.Bind(ids, 0), [process])
        finally:
            os.close(process)

    def reopen(self, lease: Reference) -> OpenDevice:
        answer, fds = self.call("Reopen", interface.Reopen(id_of(lease)))
        return _opened([answer], fds, 1)[0]

    def set(self, lease: Reference, **changes: Unpack[Changes]) -> Lease:
        check_changes(changes)
        request = interface.Set(id_of(lease), tuple(changes), Wiring(**changes))
        changed: Lease = self.call("Set", request)[0].lease
        return changed

    # Look

    def leases(self, *, all: bool = True) -> list[Lease]:
        check_value(bool, all, "all")
        parts = self._pages("List", interface.List(all))
        return [lease for part in parts for lease in part.leases]

    def look_up(self, name_or_id: str, *, owner: str | None = None) -> Lease:
        check_value(str, name_or_id, "name_or_id")
        check_value(str | None, owner, "owner")
        request = interface.Get(name_or_id, self._netns, owner)
        lease: Lease = self.call("Get", request)[0].lease
        return lease

    def device(self, lease: Reference) -> Link | None:
        device: Link | None = self.call("Get", interface.Get(id_of(lease)))[0].device
        return device

    def differences(self, lease: Reference) -> dict[str, str]:
        """As AnyHost's. The key "service" has the reason if a backend cannot tell."""
        return dict(self.call("Get", interface.Get(id_of(lease)))[0].differences)

    def differing(self, leases: Iterable[Lease]) -> frozenset[str]:
        """As AnyHost's, for up to 100 active leases: each takes a call."""
        active = [lease for lease in leases if lease.state is State.ACTIVE]
        if len(active) > DIFFERING_LEASES:
            return frozenset()
        return frozenset(lease.id for lease in active if self.differences(lease))

    def history(self, query: HistoryQuery) -> list[HistoryEntry]:
        check_record(query)
        asked = interface.History(
            query.name,
            query.at,
            query.owner,
            query.mac,
            query.lease,
            query.label or (),
            query.since,
            query.until,
            query.limit,
        )
        parts = self._pages("History", asked)
        return [entry for part in parts for entry in part.entries]

    def events(self, query: EventQuery = EVERY_EVENT) -> list[HistoryEvent]:
        check_record(query)
        asked = interface.Events(
            query.since,
            query.until,
            query.event,
            query.name,
            query.owner,
            query.lease,
            query.limit,
        )
        parts = self._pages("Events", asked)
        return [event for part in parts for event in part.events]

    # Look after

    def reap(
        self, leases: Iterable[Reference] | None = None, *, now: bool = False
    ) -> int:
        check_value(bool, now, "now")
        if leases is None:
            return self._reap(now, None)
        ids = tuple(ids_of(leases))
        parts = range(0, max(len(ids), 1), LISTED)
        return sum(self._reap(now, ids[first : first + LISTED]) for first in parts)

    def _reap(self, now: bool, ids: tuple[str, ...] | None) -> int:
        return int(self.call("Reap", interface.Reap(now, ids))[0].reaped)

    def recover(self, *, dry_run: bool = False) -> list[Repair]:
        check_value(bool, dry_run, "dry_run")
        return list(self.call("Recover", interface.Recover(dry_run))[0].repairs)

    def examine(self) -> list[Problem]:
        return list(self.call("Examine", varlink.Nothing())[0].problems)

    def remove_leftovers(
        self, ledger: str, names: Iterable[str] | None = None
    ) -> list[str]:
        check_value(str, ledger, "ledger")
        asked = interface.Leftovers(ledger, names_of(names))
        answer, _ = self.call("RemoveLeftovers", asked)
        return list(answer.names)

    # The daemon's own

    def ping(self) -> None:
        """Return when the daemon answers."""
        self.call("Ping", varlink.Nothing())

    def statistics(self) -> list[Count]:
        """Return what the daemon has done, counted."""
        return list(self.call("GetStatistics", varlink.Nothing())[0].counts)

    def watch(self) -> Iterator[Event]:
        """Yield events as they happen; the first event is "watching".

        Nothing else can be called on this connection any more.
        """
        self._exchange(lambda: self._send("Watch", varlink.Nothing(), (), more=True))
        self._watches = True
        self._socket.settimeout(None)
        while True:
            given, _ = self._receive("Watch")
            yield given.event

    def ready(self, seconds: float) -> bool:
        """Return whether `watch` has an event, or gets one within so many seconds."""
        return b"\0" in self._buffer or unix.readable(self._socket, seconds)

    def explain(self, user: str) -> list[str]:
        """Return what the daemon's policy gives a user, in lines for people."""
        check_value(str, user, "user")
        return list(self.call("Explain", interface.Explain(user))[0].lines)

    # Messages

    def _pages(self, method: str, parameters: Any) -> list[Any]:
        """Call a method whose answer may come in several parts."""

        def exchange() -> list[Any]:
            answer, _ = self._call(method, parameters, more=True)
            parts = [answer]
            while self._continues:
                answer, _ = self._receive(method)
                parts.append(answer)
            return parts

        return self._exchange(exchange)

    def _exchange(self, work: Callable[[], T]) -> T:
        """Exchange messages, one thread at a time. None is under way afterwards."""

        def exchange() -> T:
            if self._watches:
                raise RequestError("this client watches: connect another one")
            # The daemon was restarted. Or an exception ended a call, and another one
            # the lines below.
            if self._waiting or unix.at_end(self._socket):
                self._disconnect()
                self._connect()
            try:
                return work()
            except BaseException:
                if self._waiting:
                    self._disconnect()
                raise

        return self._gate.run(exchange)

    def call(
        self,
        method: str,
        parameters: Any,
        fds: Sequence[int] = (),
    ) -> tuple[Any, list[int]]:
        """Call a method of the daemon's interface, by its name.

        Return the answer, and the descriptors that came along. If the daemon was
        restarted, a method that may be repeated is called again.
        """
        return self._exchange(lambda: self._call(method, parameters, fds))

    def _call(
        self,
        method: str,
        parameters: Any,
        fds: Sequence[int] = (),
        *,
        more: bool = False,
    ) -> tuple[Any, list[int]]:
        """As `call`. With `more` the answer may be the first of several parts."""
        try:
            self._send(method, parameters, fds, more=more)
            return self._receive(method)
        except _Lost:
            if method in _ONCE:
                raise
        # The daemon was restarted. This method may be carried out twice.
        self._disconnect()
        self._connect()
        self._send(method, parameters, fds, more=more)
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
        self._waiting = True
        try:
            while data:
                data = data[unix.send(self._socket, data, fds) :]
                fds = ()
        except TimeoutError as error:
            raise self._late() from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it closed
        except OSError as error:
            raise DaemonError(f"{self.path!r}: {error.strerror}") from error

    def _receive(self, method: str) -> tuple[Any, list[int]]:
        """Return the answer, and its descriptors. An error of the daemon's is
        raised."""
        message, fds = self._message()
        self._waiting = self._continues = message.get("continues") is True
        try:
            if error := message.get("error"):
                raise self._failed(str(error), message.get("parameters"))
            given = message.get("parameters", {})
            kind = _METHODS[method].gives
            answer = varlink.from_json(kind, given, strict=False)
            if method not in _GIVE_DESCRIPTORS:
                unix.close(fds)
                fds = []
            return answer, fds
        except varlink.Unfit as error:
            unix.close(fds)
            raise DaemonError(f"the daemon's answer is wrong: {error}") from error
        except BaseException:
            unix.close(fds)
            raise

    def _check_rest(self, began: float) -> None:
        """Wait for the rest of an answer no longer than for a whole one. Raise
        DaemonError if it has no end."""
        if len(self._buffer) > LARGEST or len(self._fds) > unix.SCM_MAX_FD:
            raise DaemonError(
                f"the answer of {self.path!r} is too long: {len(self._buffer)} bytes "
                f"and {len(self._fds)} descriptors have come"
            )
        if self._timeout is not None and not self._watches:
            left = began + self._timeout - time.monotonic()
            if left <= 0:
                raise self._late()
            self._socket.settimeout(left)

    def _late(self) -> DaemonError:
        return DaemonError(
            f"the daemon at {self.path!r} has not answered in {self._timeout:g} s: "
            "it is stopped, or very busy"
        )

    def _failed(self, error: str, parameters: Any) -> Exception:
        where, _, name = error.rpartition(".")
        if where == NAME:
            return interface.raised(name, parameters)
        if where == varlink.SERVICE and name == "InvalidParameter":
            return RequestError(f"the daemon does not know {parameters}")
        return DaemonError(f"the daemon refused: {error} {parameters or ''}")

    def _message(self) -> tuple[dict[str, Any], list[int]]:
        began = 0.0
        while b"\0" not in self._buffer:
            if not began:
                began = time.monotonic()
            else:
                self._check_rest(began)
            try:
                data, fds = unix.receive(self._socket, _READ, unix.SCM_MAX_FD)
            except TimeoutError as error:
                raise self._late() from error
            except OSError as error:
                raise _Lost(f"{self.path!r}: {error.strerror}") from error
            if not data:
                raise _Lost(f"the daemon at {self.path!r} closed the connection")
            self._buffer += data
            self._fds += fds
        if began and self._timeout is not None and not self._watches:
            self._socket.settimeout(self._timeout)
        text, _, self._buffer = self._buffer.partition(b"\0")
        # Answers come one at a time, so these descriptors belong to this answer.
        fds, self._fds = self._fds, []
        try:
            return varlink.decode(text), fds
        except varlink.Malformed as error:
            unix.close(fds)
            raise DaemonError(f"{self.path!r} is not a Varlink service") from error
