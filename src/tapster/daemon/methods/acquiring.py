# SPDX-License-Identifier: Apache-2.0
"""Acquire: make devices for callers, within the policy."""

import time
from collections.abc import Hashable, Iterable, Sequence
from functools import partial

from tapster.daemon.log import WARNING, Log
from tapster.daemon.methods.access import Access
from tapster.daemon.methods.call import Answer, Call, placed
from tapster.daemon.methods.requests import Requests, recorded
from tapster.daemon.metrics import Metrics
from tapster.daemon.upkeep import Upkeep
from tapster.errors import ConflictError, RequestError, TapsterError
from tapster.kernel import process, unix
from tapster.light import NamedTuple
from tapster.model import State
from tapster.operations.devices import Opened
from tapster.operations.operations import Operations
from tapster.rpc import interface
from tapster.rpc.interface import Binding

Result = Answer | TapsterError
"""What a call gets."""


class Admitted(NamedTuple):
    """A call that the policy allows, with a request for each of its devices."""

    call: Call
    requests: list[interface.Acquire]


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
        asked: interface.Acquire = call.parameters
        if asked.netns is None:
            (result,) = self._acquire(self._operations, [call])
        else:
            with self._access.open_inside(call.caller, asked.netns) as operations:
                (result,) = self._acquire(operations, [call])
        if isinstance(result, TapsterError):
            raise result
        return result

    def kind_of(self, call: Call) -> Hashable:
        """Return what calls must have in common to be carried out together; None if
        the call must be carried out alone.

        Only the acquire of a device that needs no backend is quick enough: a user that
        comes now waits for all that are carried out together.
        """
        asked: interface.Acquire = call.parameters
        if asked.netns is not None or asked.vhost or len(asked.nics) != 1:
            return None
        tap = asked.nics[0].tap
        if tap is None or tap.queues != 1:
            return None
        backends = self._operations.context.backends
        if any(backend.concerns(tap.wiring) for backend in backends):
            return None
        return call.caller.uid, asked.bind

    def acquire_together(self, calls: Sequence[Call]) -> list[Result]:
        """Carry out calls of one kind; return what each of them gets.

        One transaction of the ledger serves all, so eight calls take three quarters
        of the time that they take one after the other.
        """
        return self._acquire(self._operations, calls)

    def _acquire(self, operations: Operations, calls: Sequence[Call]) -> list[Result]:
        """Carry out calls of one kind with the operations of their namespace."""
        start = time.perf_counter()
        results: dict[int, Result] = {}
        admitted: dict[int, Admitted] = {}
        for number, call in enumerate(calls):
            wanted = sum(len(other.requests) for other in admitted.values())
            try:
                admitted[number] = self._admit(operations, call, wanted)
            except TapsterError as error:
                results[number] = error
        if admitted:
            self._upkeep.follow(operations.context.namespace.netns)
            made = self._make(operations, [*admitted.values()])
            results.update(zip(admitted, made, strict=True))
        for _ in admitted:
            self._metrics.observe("acquire_seconds", time.perf_counter() - start)
        return [results[number] for number in range(len(calls))]

    def _admit(self, operations: Operations, call: Call, wanted: int) -> Admitted:
        """Check a call. `wanted` devices are about to be made for its caller."""
        asked: interface.Acquire = call.parameters
        if asked.bind is Binding.CALLER and not call.caller.pid:
            raise RequestError(
                "the daemon cannot see your process: bind the leases to nothing"
            )
        if not call.caller.root and not self._upkeep.may_acquire(call.caller.uid):
            raise ConflictError(
                "processes of yours changed the MACs of their devices again and again: "
                "try again in a minute"
            )
        self._requests.check_size(asked)
        namespace = operations.context.namespace
        return Admitted(
            call, self._requests.admit(call.caller, namespace, asked, wanted)
        )

    def _make(
        self, operations: Operations, admitted: Sequence[Admitted]
    ) -> list[Result]:
        """Make the devices of all calls or, if that fails, of each call by itself."""
        try:
            acquired = self._make_devices(operations, admitted)
        except TapsterError as error:
            if len(admitted) == 1:
                return [error]
            return [self._make(operations, [alone])[0] for alone in admitted]
        devices = iter(acquired)
        shares = [[next(devices) for _ in requests] for _, requests in admitted]
        try:
            return [
                self._answer(call, share)
                for (call, _), share in zip(admitted, shares, strict=True)
            ]
        except BaseException:
            for share in shares:
                self._give_up(share)
            raise

    def _make_devices(
        self, operations: Operations, admitted: Sequence[Admitted]
    ) -> list[Opened]:
        first = admitted[0].call
        asked: interface.Acquire = first.parameters
        wanted = [request for _, requests in admitted for request in requests]
        limits = self._access.loaded.config.limits
        return operations.acquire(
            [interface.spec_of(request.nics[0]) for request in wanted],
            pids=[call.caller.pid for call, requests in admitted for _ in requests]
            if asked.bind is Binding.CALLER
            else (),
            on_close=asked.bind is Binding.CLOSE,
            vhost=asked.vhost,
            caller_uid=first.caller.uid,
            asked=[recorded(request) for request in wanted],
            max_keys=None if first.caller.root else limits.keys,
        )

    def _answer(self, call: Call, acquired: Sequence[Opened]) -> Result:
        """Watch over the leases of a call; return what the call gets."""
        if call.parameters.bind is Binding.CALLER and process.over(call.pidfd):
            # Another process may have the pid by now. No lease must end with that
            # process.
            self._give_up(acquired)
            return RequestError("the calling process has ended")
        for opened in acquired:
            self._upkeep.acquired(opened.lease)
        return Answer(
            interface.Devices(placed(acquired)),
            tuple(_descriptors(acquired)),
            partial(self._take_back, [opened.lease.id for opened in acquired]),
        )

    def _give_up(self, acquired: Sequence[Opened]) -> None:
        """Close and release devices that the caller will not get."""
        unix.close(_descriptors(acquired))
        self._take_back([opened.lease.id for opened in acquired])

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


def _descriptors(acquired: Sequence[Opened]) -> list[int]:
    return [fd for opened in acquired for fd in opened.fds + opened.vhost_fds]
