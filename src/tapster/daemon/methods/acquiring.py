# SPDX-License-Identifier: Apache-2.0
"""Acquire: make devices for a caller, within the policy."""

import time
from collections.abc import Iterable

from tapster.daemon.log import WARNING, Log
from tapster.daemon.methods.access import Access
from tapster.daemon.methods.call import Answer, Call, placed
from tapster.daemon.methods.requests import Requests, recorded
from tapster.daemon.metrics import Metrics
from tapster.daemon.upkeep import Upkeep
from tapster.errors import RequestError, TapsterError
from tapster.kernel import process, unix
from tapster.model import State
from tapster.operations.devices import Opened
from tapster.operations.operations import Operations
from tapster.rpc import interface
from tapster.rpc.interface import Binding


class Acquiring:
    """The method Acquire."""

    def __init__(
        self,
        operations: Operations,
        access: Access,
        requests: Requests,
        upkeep: Upkeep,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._operations = operations
        self._access = access
        self._requests = requests
        self._upkeep = upkeep
        self._metrics = metrics
        self._log = log

    def acquire(self, call: Call) -> Answer:
        """Make the devices, and watch over their leases. The answer can be undone."""
        start = time.perf_counter()
        asked: interface.Acquire = call.parameters
        bound_to_caller = asked.bind is Binding.CALLER
        if bound_to_caller and not call.caller.pid:
            raise RequestError(
                "the daemon cannot see your process: bind the leases to nothing"
            )
        self._requests.check_size(asked)
        if asked.netns is None:
            acquired = self._acquire(self._operations, call)
        else:
            with self._access.open_inside(call.caller, asked.netns) as operations:
                acquired = self._acquire(operations, call)
        leases = [opened.lease for opened in acquired]
        fds = [fd for opened in acquired for fd in opened.fds + opened.vhost_fds]
        ids = [lease.id for lease in leases]
        try:
            if bound_to_caller and process.over(call.pidfd):
                # Another process may have the pid by now. No lease must end with that
                # process.
                raise RequestError("the calling process has ended")
            for lease in leases:
                self._upkeep.acquired(lease)
        except BaseException:
            unix.close(fds)
            self._take_back(ids)
            raise
        self._metrics.observe("acquire_seconds", time.perf_counter() - start)
        return Answer(
            interface.Devices(placed(acquired)),
            tuple(fds),
            lambda: self._take_back(ids),
        )

    def _acquire(self, operations: Operations, call: Call) -> list[Opened]:
        """Make the devices with the operations of their namespace."""
        asked: interface.Acquire = call.parameters
        caller = call.caller
        namespace = operations.context.namespace
        requests = self._requests.admit(caller, namespace, asked)
        self._upkeep.follow(namespace.netns)
        limits = self._access.loaded.config.limits
        return operations.acquire(
            [interface.spec_of(request.nics[0]) for request in requests],
            pid=caller.pid if asked.bind is Binding.CALLER else None,
            on_close=asked.bind is Binding.CLOSE,
            vhost=asked.vhost,
            caller_uid=caller.uid,
            asked=[recorded(request) for request in requests],
            max_keys=None if caller.root else limits.keys,
        )

    def _take_back(self, ids: Iterable[str]) -> None:
        """Release leases that the caller did not get."""
        for id in ids:
            try:
                lease = self._operations.look.lease(id)
                if lease.state is State.ACTIVE:
                    self._operations.release(id)
                    self._upkeep.released(lease, "the caller did not get it")
            except TapsterError as error:
                self._log(WARNING, "not-taken-back", lease=id, error=error)
