# SPDX-License-Identifier: Apache-2.0
"""Client: an AnyHost for which the daemon does the work.

Small and synchronous, because it sits in the start path of VMs. Requests go out as
plain JSON, which the daemon checks, and answers become values of the model. So the
client does without the interface's 30 types of messages, which take a tenth of a verb's
time to define.
"""

import os
import time

from tapster.api import (
    AnyHost,
    Reference,
    check_acquire,
    check_name,
    id_of,
    ids_of,
    leases_of,
    names_of,
)
from tapster.checks import check_value
from tapster.errors import DaemonError, RequestError
from tapster.gate import Gate
from tapster.kernel import unix
from tapster.light import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterable,
    Iterator,
    Mapping,
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
    State,
    Tap,
    Wiring,
    check_changes,
)
from tapster.open_device import OpenDevice
from tapster.rpc import varlink
from tapster.rpc.wire import LISTED, NAME, SOCKET, Device, Difference

if TYPE_CHECKING:
    from tapster.operations.decision import Repair
    from tapster.rpc.interface import Count, Event

T = TypeVar("T")
Answer = dict[str, Any]


def _field(name: str, kind: Any) -> Callable[[Answer], Any]:
    """Return the function that reads a field of an answer as a value of a type."""
    return lambda answer: varlink.from_json(kind, answer.get(name), name, strict=False)


def _opened(
    devices: Sequence[Device], fds: list[int], number: int
) -> tuple[OpenDevice, ...]:
    """Return so many devices of an answer, with the descriptors that came along.

    Raise DaemonError if the answer has other devices, or no descriptor, or the same one
    twice, where a device says that it has one.
    """
    places = [place for device in devices for place in device.fds + device.vhost_fds]
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
    except (OSError, OverflowError) as error:
        reason = (
            getattr(error, "strerror", None) or "no number of a process is so large"
        )
        raise RequestError(
            f"there is no process {pid} to bind a lease to: {reason}"
        ) from None


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
MOST_SECONDS = 1_000_000
"""The longest time limit of a call."""
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
    check_value(str | None, netns, "netns")
    if path == "":
        raise RequestError("path is empty: give the daemon's socket, or leave it out")
    if timeout is not None and not 0 < timeout <= MOST_SECONDS:
        raise RequestError(
            f"timeout must be more than 0 and at most {MOST_SECONDS} seconds, or None, "
            f"not {timeout}"
        )
    try:
        os.fsencode(where := socket_path(path))
    except (TypeError, UnicodeError):
        raise RequestError(f"the socket must be a path, not {path!r}") from None
    return Client(where, netns, timeout)


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
            remedy = (
                "the socket or a directory above it keeps this user out"
                if isinstance(error, PermissionError)
                else "start tapsterd"
            )
            raise DaemonError(
                f"no daemon answers at {self.path!r} ({error.strerror}); {remedy}"
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
        unix.shut_down(self._socket)  # it ends a `watch` in another thread
        self._socket.close()
        unix.close(self._fds)
        self._fds = []

    # Acquire and release

    def acquire_all(
        self,
        specs: Iterable[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[OpenDevice, ...]:
        """As AnyHost's. `pid` must be of the caller's own user."""
        chosen = check_acquire(specs, pid, on_close, vhost)
        if not chosen:
            return ()
        if pid not in (None, os.getpid()):
            return self._acquire_for(pid, chosen, on_close, vhost)
        asked = {
            "nics": [
                {"tap" if isinstance(spec, Tap) else "macvtap": varlink.to_json(spec)}
                for spec in chosen
            ],
            "bind": "close" if on_close else "nothing" if pid is None else "caller",
            "netns": self._netns,
            "vhost": vhost,
        }
        # If this process ends before it has received the answer, the daemon releases
        # the leases. So one call is enough, and nothing is left.
        devices, fds = self.call(
            "Acquire", asked, read=_field("devices", tuple[Device, ...])
        )
        return _opened(devices, fds, len(chosen))

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
                self.call("Bind", {"leases": ids, "process": 0}, [pidfd])
            except BaseException:
                for device in opened:
                    device.close()
                    self.release(device)
                raise
            return opened
        finally:
            os.close(pidfd)

    def release(self, lease: Reference) -> None:
        self.call("Release", {"lease": id_of(lease)})

    def bind(self, leases: Iterable[Reference], pid: int | None) -> None:
        """As AnyHost's. The process must be of the caller's own user."""
        check_value(int | None, pid, "pid")
        ids = tuple(ids_of(leases))
        if pid is None:
            self.call("Bind", {"leases": ids})
            return
        process = _open_process(pid)
        try:
            self.call("Bind", {"leases": ids, "process": 0}, [process])
        finally:
            os.close(process)

    def reopen(self, lease: Reference) -> OpenDevice:
        device, fds = self.call(
            "Reopen",
            {"lease": id_of(lease)},
            read=lambda answer: varlink.from_json(Device, answer, strict=False),
        )
        return _opened([device], fds, 1)[0]

    def set(self, lease: Reference, **changes: "Unpack[Changes]") -> Lease:
        check_changes(changes)
        asked = {
            "lease": id_of(lease),
            "fields": tuple(changes),
            "wiring": Wiring(**changes),
        }
        changed: Lease = self._ask("Set", asked, "lease", Lease)
        return changed

    # Look

    def leases(self, *, all: bool = True) -> list[Lease]:
        check_value(bool, all, "all")
        return self._pages("List", {"all": all}, "leases", Lease)

    def look_up(self, name_or_id: str, *, owner: str | None = None) -> Lease:
        check_name(name_or_id)
        check_value(str | None, owner, "owner")
        asked = {"lease": name_or_id, "netns": self._netns, "owner": owner}
        lease: Lease = self._ask("Get", asked, "lease", Lease)
        return lease

    def device(self, lease: Reference) -> Link | None:
        asked = {"lease": id_of(lease)}
        device: Link | None = self._ask("Get", asked, "device", Link | None)
        return device

    def differences(self, lease: Reference) -> dict[str, str]:
        """As AnyHost's. The key "service" has the reason if a backend cannot tell."""
        asked = {"lease": id_of(lease)}
        return dict(self._ask("Get", asked, "differences", tuple[Difference, ...]))

    def differing(self, leases: Iterable[Lease]) -> frozenset[str]:
        """As AnyHost's, for up to 100 active leases: each takes a call."""
        active = [lease for lease in leases_of(leases) if lease.state is State.ACTIVE]
        if len(active) > DIFFERING_LEASES:
            return frozenset()
        return frozenset(lease.id for lease in active if self.differences(lease))

    def history(self, query: HistoryQuery) -> list[HistoryEntry]:
        check_value(HistoryQuery, query, "query")
        asked = query._asdict()
        del asked["caller_uid"]  # the daemon knows its caller
        return self._pages("History", asked, "entries", HistoryEntry)

    def events(self, query: EventQuery = EVERY_EVENT) -> list[HistoryEvent]:
        check_value(EventQuery, query, "query")
        asked = query._asdict()
        del asked["caller_uid"]
        return self._pages("Events", asked, "events", HistoryEvent)

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
        return int(self._ask("Reap", {"now": now, "leases": ids}, "reaped", int))

    def recover(self, *, dry_run: bool = False) -> "list[Repair]":
        from tapster.operations.decision import Repair  # late: no start needs it

        check_value(bool, dry_run, "dry_run")
        asked = {"dry_run": dry_run}
        return list(self._ask("Recover", asked, "repairs", tuple[Repair, ...]))

    def examine(self) -> list[Problem]:
        return list(self._ask("Examine", {}, "problems", tuple[Problem, ...]))

    def remove_leftovers(
        self, ledger: str, names: Iterable[str] | None = None
    ) -> list[str]:
        check_value(str, ledger, "ledger")
        asked = {"ledger": ledger, "names": names_of(names)}
        return list(self._ask("RemoveLeftovers", asked, "names", tuple[str, ...]))

    # The daemon's own

    def ping(self) -> None:
        """Return when the daemon answers."""
        self.call("Ping", {})

    def statistics(self) -> "list[Count]":
        """Return what the daemon has done, counted."""
        from tapster.rpc.interface import Count  # late: no start needs it

        return list(self._ask("GetStatistics", {}, "counts", tuple[Count, ...]))

    def watch(self) -> "Iterator[Event]":
        """Yield events as they happen; the first event is "watching".

        Nothing else can be called on this connection any more. The events end when
        another thread closes the client.
        """
        from tapster.rpc.interface import Event  # late: no start needs it

        self._exchange(lambda: self._send("Watch", {}, (), more=True))
        self._watches = True
        self._socket.settimeout(None)
        while True:
            try:
                event, _ = self._receive("Watch", _field("event", Event))
            except DaemonError:
                if self._gate.closed:
                    return
                raise
            yield event

    def ready(self, seconds: float) -> bool:
        """Return whether `watch` has an event, or gets one within so many seconds."""
        return b"\0" in self._buffer or unix.readable(self._socket, seconds)

    def explain(self, user: str) -> list[str]:
        """Return what the daemon's policy gives a user, in lines for people."""
        check_value(str, user, "user")
        return list(self._ask("Explain", {"user": user}, "lines", tuple[str, ...]))

    # Messages

    def _ask(
        self, method: str, parameters: Mapping[str, Any], field: str, kind: Any
    ) -> Any:
        """Call a method; return a field of the answer as a value of a type."""
        return self.call(method, parameters, read=_field(field, kind))[0]

    def _pages(
        self, method: str, parameters: Mapping[str, Any], field: str, kind: Any
    ) -> list[Any]:
        """Call a method whose answer may come in several parts; return the items of a
        field of all parts."""
        read = _field(field, tuple[kind, ...])

        def exchange() -> list[Any]:
            items, _ = self._call(method, parameters, read, more=True)
            found = [*items]
            while self._continues:
                items, _ = self._receive(method, read)
                found += items
            return found

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
        parameters: Mapping[str, Any],
        fds: Sequence[int] = (),
        *,
        read: Callable[[Answer], Any] = dict,
    ) -> tuple[Any, list[int]]:
        """Call a method of the daemon's interface, by its name.

        Return what `read` makes of the answer, and the descriptors that came along. If
        the daemon was restarted, a method that may be repeated is called again.
        """
        return self._exchange(lambda: self._call(method, parameters, read, fds))

    def _call(
        self,
        method: str,
        parameters: Mapping[str, Any],
        read: Callable[[Answer], T],
        fds: Sequence[int] = (),
        *,
        more: bool = False,
    ) -> tuple[T, list[int]]:
        """As `call`. With `more` the answer may be the first of several parts."""
        try:
            self._send(method, parameters, fds, more=more)
            return self._receive(method, read)
        except _Lost:
            if method in _ONCE:
                raise
        # The daemon was restarted. This method may be carried out twice.
        self._disconnect()
        self._connect()
        self._send(method, parameters, fds, more=more)
        return self._receive(method, read)

    def _send(
        self,
        method: str,
        parameters: Mapping[str, Any],
        fds: Sequence[int],
        *,
        more: bool = False,
    ) -> None:
        message = {
            "method": f"{NAME}.{method}",
            "parameters": {
                name: varlink.to_json(value)
                for name, value in parameters.items()
                if value is not None
            },
            **({"more": True} if more else {}),
        }
        try:
            data = varlink.encode(message, strict=True)
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{error.object[error.start : error.end]!r} is half of a surrogate "
                "pair, and no text has it"
            ) from None
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

    def _receive(self, method: str, read: Callable[[Answer], T]) -> tuple[T, list[int]]:
        """Return what `read` makes of the answer, and the descriptors. An error of the
        daemon's is raised."""
        message, fds = self._message()
        self._waiting = self._continues = message.get("continues") is True
        try:
            if error := message.get("error"):
                raise self._failed(str(error), message.get("parameters"))
            answer = message.get("parameters", {})
            if not isinstance(answer, dict):
                raise varlink.Unfit("parameters", "an object")
            given = read(answer)
            if method not in _GIVE_DESCRIPTORS:
                unix.close(fds)
                fds = []
            return given, fds
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
            from tapster.rpc.interface import raised  # late: most calls succeed

            return raised(name, parameters)
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
