# SPDX-License-Identifier: Apache-2.0
"""The daemon as a whole: constructs its parts, and runs the thread that serves sockets.

That thread never waits for anything but its descriptors. The worker's thread does
everything that may take longer.
"""

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tapster.daemon import callers, config, policy, scrape
from tapster.daemon.config import Loaded
from tapster.daemon.connections import Connections
from tapster.daemon.dispatch import Dispatcher
from tapster.daemon.links import Links
from tapster.daemon.log import ERROR, INFO, WARNING, Log
from tapster.daemon.loop import READ, Loop
from tapster.daemon.methods.access import Access
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller
from tapster.daemon.processes import WatchedProcesses
from tapster.daemon.schedule import ReapSchedule
from tapster.daemon.service import Service
from tapster.daemon.upkeep import Upkeep
from tapster.daemon.worker import Worker
from tapster.errors import MissingCapability, RequestError, TapsterError
from tapster.kernel.port import System, Watch
from tapster.ledger import FIRST_IFINDEX
from tapster.light import Any
from tapster.model import Process
from tapster.operations.operations import Operations

REFRESH = 60.0
"""Seconds until the users and groups of the policy are looked up again."""
SWEEP = 1.0
"""Seconds between checks for conditions without an event: idle connections, leases of
other managers in further namespaces, due retries, and changes that nobody reports."""


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
        """Serve `operations` by the configuration at `path`.

        Owns the sockets. Recovers before it returns. Raises RequestError if the
        configuration is wrong, and HostError if the devices cannot be watched.
        """
        loaded = config.load(path)
        system = operations.context.system
        self._path = path
        self._log = log
        self._metrics = Metrics()
        self._loop = Loop()
        self._stopping = False
        self._reads = self._newest = 0
        """How often the configuration was read again, and the read that is in use."""
        self._looking_up = False
        """Whether a thread looks up the users and groups of the rules again."""
        self._scrapes: list[Callable[[str], None]] = []
        """The replies to scrapes for which the worker measures now."""
        self._ended: deque[Process] = deque()
        """The processes that have ended, for the worker."""
        self._listeners = list(listeners)
        self._worker = Worker(self._explain)
        self._lookups = Worker(self._explain, name="lookups", may_hang=True)
        self._processes = WatchedProcesses(self._loop, system, self._process_ended, log)
        self._upkeep = Upkeep(
            operations,
            self._metrics,
            log,
            on_event=self._on_event,
            watch_process=partial(self._worker.call_serving, self._processes.watch),
            forget_process=partial(self._worker.call_serving, self._processes.forget),
            submit=self._submit,
        )
        self._access = Access(operations, ledger, loaded, self._metrics)
        self._service = Service(
            operations, self._access, self._metrics, log, self._upkeep
        )
        self._connections = Connections(
            self._loop,
            lambda: self._access.loaded.config.limits,
            self._metrics,
            log,
            identify=lambda connected: callers.identify(connected, self._names),
            is_stranger=self._is_stranger,
            may_send_descriptors=self._has_rules,
        )
        self._dispatcher = Dispatcher(
            self._connections,
            self._worker,
            self._lookups,
            self._service,
            self._metrics,
            log,
        )
        self._schedule = ReapSchedule(self._loop, self._worker, self._upkeep, log)
        self._use(loaded)
        # Watch before recover looks, so that no change is missed between the two.
        watches = list(self._watch_links(system))
        self._links = Links(
            self._loop,
            watches,
            self._upkeep,
            self._submit,
            self._metrics,
            busy=lambda: self._worker.waiting,
        )
        for worker in (self._worker, self._lookups):
            self._loop.add(worker.wake, READ, partial(_deliver, worker))
        for listener in listeners:
            self._connections.listen(listener)
        scrape.serve(self._loop, scrapers, self._scrape, self._may_scrape)
        self._catch_signals()
        self._upkeep.recover()
        self._upkeep.find_deadline()
        self._worker.after = self._upkeep.find_deadline
        self._loop.at(self._loop.now() + SWEEP, self._sweep)
        self._loop.at(self._loop.now() + REFRESH, self._refresh)

    def serve(self) -> None:
        """Serve until told to stop by SIGTERM or SIGINT."""
        self._worker.start()
        self._lookups.start()
        try:
            while not self._stopping:
                self._worker.leave_alone()
                self._loop.turn(self._schedule.seconds())
                self._schedule.run()
        finally:
            self._stop()

    # Callbacks of the parts

    def _explain(self, error: Exception) -> TapsterError:
        return self._dispatcher.explain(error)

    def _on_event(self, event: Any) -> None:
        self._worker.call_serving(self._dispatcher.tell, event)

    def _has_rules(self, caller: Caller) -> bool:
        """Return whether the policy has a rule for a caller. A caller without a rule
        can hold no lease, so it has no process to bind."""
        return caller.root or bool(policy.rules_of(self._access.rules, caller))

    def _is_stranger(self, caller: Caller) -> bool:
        """Return whether nothing is allowed to a caller, also not by bridge.conf."""
        listed = self._access.loaded.listed
        return not self._has_rules(caller) and not any(line.allow for line in listed)

    def _process_ended(self, process: Process) -> None:
        """Let the worker release the leases of a process, and of all that end with it.

        When a host shuts down, hundreds of VMs end at once.
        """
        self._ended.append(process)
        if len(self._ended) == 1:
            self._submit(self._release_ended)

    def _release_ended(self) -> None:
        """Release the leases of the processes that have ended until now. Runs in the
        worker's thread."""
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        self._upkeep.processes_ended(ended)

    def _submit(self, work: Callable[[], Any]) -> None:
        self._worker.submit(work, self._note)

    def _note(self, result: Any) -> None:
        """Log a failure of work that no client asked for."""
        if isinstance(result, TapsterError):
            self._log(WARNING, "not-done", error=result)

    def _watch_links(self, system: System) -> Iterator[Watch]:
        yield system.watch(first=FIRST_IFINDEX)
        yield from system.watch_rules(first=FIRST_IFINDEX)
        try:
            yield system.watch(first=FIRST_IFINDEX, elsewhere=True)
            yield from system.watch_rules(first=FIRST_IFINDEX, elsewhere=True)
        except MissingCapability as error:
            self._log(WARNING, "not-watched", error=error)

    def _sweep(self) -> None:
        self._loop.at(self._loop.now() + SWEEP, self._sweep)
        self._connections.sweep()
        if not self._worker.waiting:  # before others are submitted
            self._submit(self._upkeep.patrol)
        self._submit(self._upkeep.follow_new_namespaces)
        if self._upkeep.retries:
            self._submit(self._upkeep.retry)
        if self._upkeep.deadline is not None:
            self._submit(self._upkeep.restrict)

    def _may_scrape(self, connected: socket.socket) -> bool:
        """Return whether the process at the other end may read all figures. Over TCP
        the configuration must have allowed every client."""
        if connected.family != socket.AF_UNIX:
            return True
        caller, pidfd = callers.identify(connected, self._names)
        if pidfd >= 0:
            os.close(pidfd)
        return policy.allows(self._access.rules, caller, policy.SEE_OTHERS)

    def _scrape(self, reply: Callable[[str], None]) -> None:
        """Pass the figures, in Prometheus' text format, to `reply`."""
        self._scrapes.append(reply)
        if len(self._scrapes) == 1:
            self._worker.submit(self._service.figures.measure, self._measured)

    def _measured(self, _: Any) -> None:
        """Answer all scrapes that have come by now."""
        self._metrics.put("connections", len(self._connections))
        text = self._metrics.text()
        replies, self._scrapes = self._scrapes, []
        for reply in replies:
            reply(text)

    # Signals and the configuration

    def _catch_signals(self) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals = (reader, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._loop.add(reader, READ, self._signalled)

    def _signalled(self, _: int) -> None:
        for number in os.read(self._signals[0], 64):
            if number == signal.SIGHUP:
                self.reload()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True

    def reload(self) -> None:
        """Read the configuration again. A broken configuration changes nothing.

        A thread of its own reads it: users and groups may be looked up at a server. So
        an earlier read may end after a later one, which knows more.
        """
        self._reads += 1
        number = self._reads

        def use(loaded: Loaded) -> bool:
            if number < self._newest:
                return False
            self._newest = number
            self._use_if_changed(loaded)
            return True

        self._in_background(partial(config.load, self._path, must_exist=True), use)

    def _refresh(self) -> None:
        """Look up the users and groups of the rules again."""
        self._loop.at(self._loop.now() + REFRESH, self._refresh)
        before = self._access.loaded
        if all(name.isdecimal() for name in before.names_to_look_up):
            return
        if self._looking_up:
            return  # the directory server does not answer: one thread waits for it

        def look_up() -> Loaded:
            self._looking_up = True
            try:
                return config.resolve(before)
            finally:
                self._looking_up = False

        def use(loaded: Loaded) -> bool:
            if self._access.loaded is not before:
                return False  # another configuration was read in the meantime
            self._use_if_changed(loaded)
            return True

        self._in_background(look_up, use)

    def _in_background(
        self, read: Callable[[], Loaded], use: Callable[[Loaded], bool]
    ) -> None:
        """Read a configuration, and let the serving thread use it. `use` returns False
        if it is outdated."""

        def run() -> None:
            try:
                result: Loaded | Exception = read()
            except Exception as error:  # noqa: BLE001 - however broken the file is
                result = error
            self._worker.call_serving(partial(self._loaded, use), result)

        thread = threading.Thread(target=run, name="configuration", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the host has no room for a thread
            self._loaded(use, error)

    def _loaded(
        self, use: Callable[[Loaded], bool], result: Loaded | Exception
    ) -> None:
        if isinstance(result, RequestError):
            self._log(ERROR, "config-kept", error=result)
        elif isinstance(result, Exception):
            self._log(ERROR, "config-kept", error=repr(result))
        elif not use(result):
            self._log(INFO, "config-outdated", path=self._path)

    def _use_if_changed(self, loaded: Loaded) -> None:
        if loaded != self._access.loaded:
            self._use(loaded)
            self._log(INFO, "config-read", path=self._path)

    def _use(self, loaded: Loaded) -> None:
        self._access.loaded = loaded
        self._names = dict(loaded.names)
        self._upkeep.reconnect = loaded.config.watch.repair
        for what, name in loaded.unknown:
            self._log(WARNING, f"unknown-{what}", name=name)

    # The end

    def _stop(self) -> None:
        self._log(INFO, "stopping")
        self._connections.stopping = True
        for listener in self._listeners:
            listener.close()
        # Finish and answer the requests under way, so that no lease is lost.
        self._worker.finish()
        self._lookups.finish()
        self._dispatcher.stopping = True
        self._connections.drop_all("stopping")
        signal.set_wakeup_fd(-1)
        self._links.close()
        self._processes.close()
        for fd in self._signals:
            os.close(fd)
        self._loop.close()


def _deliver(worker: Worker, _: int) -> None:
    worker.deliver()
