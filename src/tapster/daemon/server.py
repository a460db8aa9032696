# SPDX-License-Identifier: Apache-2.0
"""The thread that serves the sockets, and never waits for anything else."""

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from errno import EMFILE, ENFILE
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from traceback import format_exception
from typing import Any

from tapster import __version__
from tapster.daemon import config, policy, scrape
from tapster.daemon.config import Loaded
from tapster.daemon.connection import Connection
from tapster.daemon.log import ERROR, INFO, WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller
from tapster.daemon.service import Answer, Call, Service
from tapster.daemon.throttle import Throttle
from tapster.daemon.upkeep import Upkeep
from tapster.daemon.worker import Worker
from tapster.errors import HostError, Overloaded, RequestError, TapsterError
from tapster.kernel import unix
from tapster.kernel.watch import Changes, Watch
from tapster.ledger import FIRST_IFINDEX
from tapster.model import Process
from tapster.operations.operations import Operations
from tapster.rpc import interface, varlink
from tapster.rpc.interface import INTERFACE, METHODS, NAME, Event
from tapster.rpc.varlink import SERVICE, SERVICE_INTERFACE

SWEEP = 1.0
"""Seconds between looks for connections that are idle or stalled."""
REAP_PAUSE = 0.25
"""Seconds between two reaps: a device costs 20 ms to delete alone, 0.5 ms among
others, and one that has waited may wait a little longer."""
ACCEPTS = 32
"""Connections accepted at a time, before others are served."""

_KNOWN = {NAME: INTERFACE, SERVICE: SERVICE_INTERFACE}
_METHODS = {f"{NAME}.{method.name}": method for method in METHODS}


class Server:
    """The daemon, from its listening sockets to its end."""

    def __init__(
        self,
        operations: Operations,
        ledger: str,
        path: str,
        listeners: Sequence[socket.socket],
        scrapers: Sequence[socket.socket],
        log: Log,
    ) -> None:
        """Serve `operations` by the configuration at `path`. Owns the sockets.

        Recovers before it returns. Raises RequestError if the configuration is
        wrong, and HostError if the devices cannot be watched.
        """
        loaded = config.load(path)
        self._path = path
        self._log = log
        self._metrics = Metrics()
        self._throttle = Throttle()
        self._selector = DefaultSelector()
        self._connections: set[Connection] = set()
        self._processes: dict[Process, int] = {}
        self._unwatched: set[Process] = set()
        self._stopping = False
        self._reaping = False
        self._changed: deque[Changes] = deque()
        self._looking = self._recovering = False
        self._patience = 0.0
        self._swept = 0.0
        self._paused: list[socket.socket] = []
        self._worker = Worker(self._unforeseen)
        self._upkeep = Upkeep(
            operations,
            self._metrics,
            log,
            tell=partial(self._worker.hand_back, self._tell),
            watch=partial(self._worker.hand_back, self._watch_process),
        )
        self._service = Service(
            operations, ledger, loaded, self._metrics, log, self._upkeep
        )
        self._use(loaded)
        # Before recover looks, so that nothing is missed between the two.
        self._watches = list(self._watch_links())
        for watch in self._watches:
            self._register(watch, partial(self._links_changed, watch))
        self._register(self._worker.wake, lambda _: self._worker.results())
        self._listeners = list(listeners)
        for listener in listeners:
            listener.setblocking(False)
            self._register(listener, partial(self._accept, listener))
        scrape.serve(self._selector, scrapers, self._scrape)
        self._catch_signals()
        self._upkeep.recover()
        self._upkeep.look_ahead()
        self._worker.after = self._upkeep.look_ahead

    def serve(self) -> None:
        """Serve until told to stop by SIGTERM or SIGINT."""
        self._worker.start()
        try:
            while not self._stopping:
                for key, events in self._selector.select(self._timeout()):
                    key.data(events)
                self._keep_time()
        finally:
            self._stop()

    # The loop

    def _register(self, thing: Any, call: Callable[[int], None]) -> None:
        self._selector.register(thing, EVENT_READ, call)

    def _timeout(self) -> float:
        return min(SWEEP, max(self._until_reap(), 0.0))

    def _until_reap(self) -> float:
        """Seconds until there is something to reap."""
        deadline = self._upkeep.deadline
        if deadline is None or self._reaping:
            return SWEEP
        due = deadline - time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(due, self._patience - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._until_reap() <= 0:
            self._reaping = True
            self._submit(self._upkeep.reap, self._reaped)
        if now - self._swept >= SWEEP:
            self._swept = now
            self._sweep(now)

    def _submit(
        self, job: Callable[[], Any], then: Callable[[Any], None] | None = None
    ) -> None:
        self._worker.submit(job, then or self._noted)

    def _noted(self, result: Any) -> None:
        """Of what nobody has asked for, only failures are said."""
        if isinstance(result, TapsterError):
            self._log(WARNING, "not-done", error=result)

    def _reaped(self, result: Any) -> None:
        self._reaping = False
        self._patience = time.monotonic() + REAP_PAUSE
        if isinstance(result, TapsterError):
            self._log(WARNING, "not-reaped", error=result)
            self._patience = time.monotonic() + SWEEP  # it stays due

    def _catch_signals(self) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals = (reader, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._register(reader, self._signalled)

    def _signalled(self, _: int) -> None:
        for number in os.read(self._signals[0], 64):
            if number == signal.SIGHUP:
                self.reload()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True

    def reload(self) -> None:
        """Read the configuration again; a broken one changes nothing."""
        try:
            self._use(config.load(self._path))
        except RequestError as error:
            self._log(ERROR, "config-kept", error=error)
            return
        self._log(INFO, "config-read", path=self._path)

    def _use(self, loaded: Loaded) -> None:
        self._service.loaded = loaded
        self._upkeep.reconnect = loaded.config.watch.mend

    def _stop(self) -> None:
        self._log(INFO, "stopping")
        self._paused = []
        for listener in self._listeners:
            listener.close()
        # What is under way is finished and answered: no lease is lost.
        self._worker.finish()
        for connection in list(self._connections):
            self._drop(connection, "stopping")
        signal.set_wakeup_fd(-1)
        for watch in self._watches:
            watch.close()
        for pidfd in self._processes.values():
            os.close(pidfd)
        for fd in self._signals:
            os.close(fd)
        self._selector.close()

    # What happens on the host

    def _watch_links(self) -> Iterator[Watch]:
        yield Watch()
        try:
            yield Watch(elsewhere=True)
        except PermissionError:
            self._log(WARNING, "not-watched", detail="CAP_NET_BROADCAST is missing")

    def _links_changed(self, watch: Watch, _: int) -> None:
        changes = watch.changes(FIRST_IFINDEX)
        if changes is None:  # too much at once: look at everything
            if not self._recovering:
                self._recovering = True
                self._submit(self._recover)
            return
        if changes.links or changes.over:
            self._changed.append(changes)
        if self._changed and not self._looking:
            self._looking = True
            self._submit(self._look)

    def _recover(self) -> None:
        """Runs in the worker's thread: what is missed from now on is another's."""
        self._recovering = False
        self._upkeep.recover()

    def _look(self) -> None:
        """Look at what has changed until now: many messages make one look.

        Runs in the worker's thread. First the flag, then the numbers: what comes
        between the two is looked at now, what comes later has a look of its own.
        """
        self._looking = False
        seen = Changes({}, set())
        while self._changed:
            changes = self._changed.popleft()
            for number, links in changes.links.items():
                seen.links.setdefault(number, {}).update(links)
            seen.over.update(changes.over)
        self._upkeep.changed(seen)

    def _watch_process(self, wanted: Process) -> None:
        """Look out for the end of a process that a lease is bound to."""
        if wanted in self._processes:
            return
        try:
            pidfd = os.pidfd_open(wanted.pid)
        except ProcessLookupError:
            self._submit(partial(self._upkeep.ended, wanted))
            return
        except OSError:  # out of descriptors: it is tried again
            self._unwatched.add(wanted)
            return
        self._processes[wanted] = pidfd
        self._register(pidfd, lambda _: self._process_ended(wanted))

    def _process_ended(self, over: Process) -> None:
        pidfd = self._processes.pop(over)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._submit(partial(self._upkeep.ended, over))

    def _tell(self, event: Event) -> None:
        message = None
        rules = self._service.loaded.config.allow
        for connection in [one for one in self._connections if one.watching]:
            if not policy.may_see(rules, connection.caller, event.caller_uid):
                continue
            if message is None:
                happened = varlink.to_json(interface.Happened(event))
                message = varlink.encode({"parameters": happened, "continues": True})
            self._send(connection, message)
            if connection.full:
                self._drop(connection, "behind")

    # Connections

    def _accept(self, listener: socket.socket, _: int) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._not_accepted(listener, error)
                return
            try:
                self._welcome(accepted)
            except OSError as error:
                accepted.close()
                self._not_accepted(listener, error)
                return

    def _not_accepted(self, listener: socket.socket, error: OSError) -> None:
        self._log(WARNING, "not-accepted", error=error)
        if error.errno in (EMFILE, ENFILE):
            # Until somebody leaves: to try on and on would only burn time.
            self._selector.unregister(listener)
            self._paused.append(listener)

    def _welcome(self, accepted: socket.socket) -> None:
        caller = config.caller_of(unix.peer(accepted))
        pidfd = unix.peer_pidfd(accepted)
        if pidfd is None:
            pidfd = _pidfd_of(caller.pid)
        connection = Connection(accepted, caller, pidfd, time.monotonic())
        self._connections.add(connection)
        self._selector.register(accepted, EVENT_READ, partial(self._on, connection))
        if reason := self._crowded(caller):
            connection.closing = True
            self._metrics.add("refused", "connections")
            self._fail(connection, Overloaded(reason))
            self._drop(connection, "crowded")

    def _crowded(self, caller: Caller) -> str | None:
        if caller.root:
            return None
        limits = self._service.loaded.config.limits
        everybody = len(self._connections)
        own = sum(one.caller.uid == caller.uid for one in self._connections)
        if own > limits.connections_per_user:
            return f"{caller} has {limits.connections_per_user} connections: close some"
        if everybody > limits.connections:
            return f"there are {limits.connections} connections: try again later"
        return None

    def _on(self, connection: Connection, events: int) -> None:
        if connection.closed:
            return  # by an earlier event of the same turn
        now = time.monotonic()
        try:
            if events & EVENT_WRITE:
                connection.since = now
                connection.flush()
            if events & EVENT_READ and connection.events & EVENT_READ:
                connection.receive(now)
        except OSError as error:
            self._drop(connection, error.strerror or "lost")
            return
        self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """Answer what has come, as far as that can be done now."""
        limit = self._service.loaded.config.limits.message
        while not (connection.closed or connection.busy or connection.closing):
            if connection.sending or connection.watching or self._stopping:
                break
            message = connection.next_message()
            if message is None:
                if connection.size > limit:
                    self._reject(connection, f"a request has at most {limit} bytes")
                break
            if len(message) > limit:
                self._reject(connection, f"a request has at most {limit} bytes")
                break
            self._received(connection, message)
        self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        """Wait for what comes next, or close."""
        if connection.closed:
            return
        over = connection.closing or connection.ended
        if over and not connection.busy and not connection.sending:
            self._drop(connection, "closed")
            return
        if connection.ended and connection.watching:
            self._drop(connection, "closed")
            return
        key = self._selector.get_map().get(connection.socket)
        if events := connection.events:
            if key is None:
                call = partial(self._on, connection)
                self._selector.register(connection.socket, events, call)
            elif key.events != events:
                self._selector.modify(connection.socket, events, key.data)
        elif key is not None:
            self._selector.unregister(connection.socket)

    def _drop(self, connection: Connection, reason: str) -> None:
        if connection.closed:
            return
        if connection.socket in self._selector.get_map():
            self._selector.unregister(connection.socket)
        if connection.undo is not None:
            self._submit_unless_stopped(connection.undo)
        connection.close()
        self._connections.discard(connection)
        self._metrics.add("dropped", reason)
        self._resume()

    def _submit_unless_stopped(self, undo: Callable[[], None]) -> None:
        if self._stopping:
            undo()
        else:
            self._submit(undo)

    def _resume(self) -> None:
        """A descriptor is free again: somebody may come in."""
        for listener in self._paused:
            self._register(listener, partial(self._accept, listener))
        self._paused = []

    def _sweep(self, now: float) -> None:
        limits = self._service.loaded.config.limits
        self._throttle.forget(now)
        self._resume()
        for connection in list(self._connections):
            quiet = now - connection.since
            if connection.busy:
                continue
            if connection.sending or connection.receiving:
                if quiet > limits.stall:
                    self._drop(connection, "stalled")
            elif not connection.watching and quiet > limits.idle:
                self._drop(connection, "idle")
        for process in list(self._unwatched):
            self._unwatched.discard(process)
            self._watch_process(process)
        # Others may have released something, or acquired it in another namespace.
        self._submit(self._upkeep.look_around)

    # Calls

    def _received(self, connection: Connection, text: bytes) -> None:
        connection.since = time.monotonic()
        fds, connection.fds = connection.fds, []
        try:
            message = varlink.decode(text)
            name = message.get("method")
            given = message.get("parameters", {})
            oneway = message.get("oneway") is True
            if not isinstance(name, str):
                raise varlink.Malformed("it names no method")
        except varlink.Malformed as error:
            unix.close(fds)
            self._reject(connection, f"that was no Varlink request: {error}")
            return
        try:
            self._dispatch(connection, name, given, message, oneway, fds)
        except TapsterError as error:
            unix.close(fds)
            self._fail(connection, error, oneway)
        except varlink.Unfit as error:
            unix.close(fds)
            self._metrics.add("failures", "InvalidParameter")
            parameter = varlink.ParameterName(f"{error.parameter}: {error}")
            self._standard(connection, "InvalidParameter", parameter, oneway)
        except Exception as error:  # noqa: BLE001 - one call must not end all
            unix.close(fds)
            self._fail(connection, self._unforeseen(error), oneway)

    def _unforeseen(self, error: Exception) -> TapsterError:
        self._log(ERROR, "failed", traceback="".join(format_exception(error)))
        return HostError(f"the daemon failed: {error!r}; see its log")

    def _dispatch(
        self,
        connection: Connection,
        name: str,
        given: Any,
        message: dict[str, Any],
        oneway: bool,
        fds: list[int],
    ) -> None:
        """Answer at once, or let the worker. Takes `fds` over, unless it raises."""
        limits = self._service.loaded.config.limits
        caller = connection.caller
        if not caller.root and not self._throttle.admit(
            caller.uid, limits.requests, connection.since
        ):
            self._metrics.add("refused", "requests")
            raise Overloaded(f"{caller} may send {limits.requests} requests a second")
        method = _METHODS.get(name)
        if method is None:
            self._describe(connection, name, given, oneway)
            unix.close(fds)
            return
        parameters = varlink.from_json(method.takes, given)
        self._metrics.add("calls", method.name)
        if method.name == "Ping":
            self._answer(connection, Answer(), oneway)
        elif method.more:
            if message.get("more") is not True:
                self._standard(connection, "ExpectedMore", varlink.Nothing(), oneway)
            else:
                self._start_watching(connection)
        else:
            self._start(connection, method.name, parameters, fds, oneway)
            return
        unix.close(fds)

    def _start(
        self,
        connection: Connection,
        method: str,
        parameters: Any,
        fds: list[int],
        oneway: bool,
    ) -> None:
        connection.busy = True
        call = Call(connection.caller, connection.pidfd, parameters, fds)

        def done(result: Any) -> None:
            unix.close(fds)
            connection.busy = False
            connection.since = time.monotonic()
            if isinstance(result, TapsterError):
                self._fail(connection, result, oneway)
            else:
                self._answer(connection, result, oneway)
            self._go_on(connection)

        self._submit(partial(self._service.call, method, call), done)

    def _start_watching(self, connection: Connection) -> None:
        connection.watching = True
        event = Event(round(time.time(), 3), "watching")
        happened = varlink.to_json(interface.Happened(event))
        message = {"parameters": happened, "continues": True}
        self._send(connection, varlink.encode(message))

    def _describe(
        self, connection: Connection, name: str, given: Any, oneway: bool
    ) -> None:
        """Answer what every Varlink service is asked."""
        where, _, method = name.rpartition(".")
        if where not in _KNOWN:
            said: Any = varlink.InterfaceName(where)
            self._standard(connection, "InterfaceNotFound", said, oneway)
        elif name == f"{SERVICE}.GetInfo":
            varlink.from_json(varlink.Nothing, given)
            info = varlink.Info(
                "Tapster",
                "tapsterd",
                __version__,
                "https://tapster.invalid/",
                tuple(sorted(_KNOWN)),
            )
            self._answer(connection, Answer(info), oneway)
        elif name == f"{SERVICE}.GetInterfaceDescription":
            wanted = varlink.from_json(varlink.InterfaceName, given).interface
            if wanted in _KNOWN:
                text = varlink.describe(_KNOWN[wanted])
                self._answer(connection, Answer(varlink.Description(text)), oneway)
            else:
                said = varlink.InterfaceName(wanted)
                self._standard(connection, "InterfaceNotFound", said, oneway)
        else:
            said = varlink.MethodName(method)
            self._standard(connection, "MethodNotFound", said, oneway)

    # Answers

    def _answer(self, connection: Connection, answer: Answer, oneway: bool) -> None:
        if connection.closed or oneway:
            unix.close(answer.fds)
            if answer.undo is not None and (connection.closed or answer.fds):
                self._submit_unless_stopped(answer.undo)
            return
        try:
            message = {"parameters": varlink.to_json(answer.parameters)}
            data = varlink.encode(message)
        except Exception as error:  # noqa: BLE001 - what was made for nobody goes
            unix.close(answer.fds)
            if answer.undo is not None:
                self._submit_unless_stopped(answer.undo)
            self._fail(connection, self._unforeseen(error))
            return
        self._send(connection, data, answer.fds, answer.undo)  # it takes the fds over

    def _fail(
        self, connection: Connection, error: TapsterError, oneway: bool = False
    ) -> None:
        name = type(error).__name__
        self._metrics.add("failures", name)
        if not oneway:
            said = varlink.to_json(interface.failure(error))
            self._send(
                connection,
                varlink.encode({"error": f"{NAME}.{name}", "parameters": said}),
            )

    def _standard(
        self, connection: Connection, name: str, parameters: Any, oneway: bool
    ) -> None:
        if not oneway:
            said = varlink.to_json(parameters)
            message = {"error": f"{SERVICE}.{name}", "parameters": said}
            self._send(connection, varlink.encode(message))

    def _reject(self, connection: Connection, reason: str) -> None:
        """Say what was wrong, and hang up: what follows cannot be understood."""
        connection.closing = True
        self._fail(connection, RequestError(reason))

    def _send(
        self,
        connection: Connection,
        data: bytes,
        fds: Sequence[int] = (),
        undo: Callable[[], None] | None = None,
    ) -> None:
        if connection.closed:
            return
        try:
            connection.send(data, fds, undo)
        except OSError as error:
            self._drop(connection, error.strerror or "lost")
            return
        self._settle(connection)

    def _scrape(self, reply: Callable[[str], None]) -> None:
        """Hand the figures, as Prometheus reads them, to `reply`."""
        self._metrics.put("connections", len(self._connections))
        self._submit(self._service.measure, lambda _: reply(self._metrics.text()))


def _pidfd_of(pid: int) -> int:
    """A pidfd of a process that has just connected, or -1.

    Only where the kernel does not give the peer's own: the pid could, in theory, be
    another's by now.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
