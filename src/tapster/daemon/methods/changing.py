# SPDX-License-Identifier: Apache-2.0
"""Bind, Release, Set and Reopen: what a caller does with a lease that it has."""

import time
from contextlib import suppress

from tapster import model
from tapster.daemon.methods.access import Access
from tapster.daemon.methods.call import Answer, Call, distinct, placed
from tapster.daemon.methods.requests import (
    Requests,
    printable,
    recorded,
)
from tapster.daemon.metrics import Metrics
from tapster.daemon.upkeep import EXIT, Upkeep
from tapster.errors import (
    ConflictError,
    NoSuchLease,
    NoSuchLink,
    NotAllowed,
    RequestError,
)
from tapster.kernel import process
from tapster.light import Any, cast
from tapster.model import Changes, Lease, Life, Macvtap, State, Tap, Wiring
from tapster.operations.operations import Operations
from tapster.rpc import interface

_JOINING = frozenset({"bridge", "ovs", "redirect", "standby", "mtu"})
"""The fields whose change may give a device the MTU of another one."""


class Changing:
    """The methods that change one lease, or end it."""

    def __init__(
        self,
        operations: Operations,
        access: Access,
        requests: Requests,
        upkeep: Upkeep,
        metrics: Metrics,
    ) -> None:
        self._operations = operations
        self._access = access
        self._requests = requests
        self._upkeep = upkeep
        self._metrics = metrics

    def bind(self, call: Call) -> Answer:
        """Let leases end with a process of the caller's, or with none."""
        asked: interface.Bind = call.parameters
        leases = [self._access.own(call.caller, id) for id in distinct(asked.leases)]
        pid = None
        if asked.process is not None:
            if not 0 <= asked.process < len(call.fds):
                raise RequestError(f"no descriptor {asked.process} came with the call")
            pidfd = call.fds[asked.process]
            pid = process.pid_of(pidfd)
            if not call.caller.root and process.owner(pid) != call.caller.uid:
                raise NotAllowed(f"process {pid} is not {call.caller}'s")
        ids = [lease.id for lease in leases]
        self._operations.bind(ids, pid, on_repaired=self._upkeep.report_repairs)
        bound = [lease for id in ids if (lease := self._active(id)) is not None]
        if asked.process is not None and process.over(call.fds[asked.process]):
            # The process has ended during the call. Its leases last until the taps are
            # closed. But if another process has the pid by now, that one was bound.
            life = self._operations.context.system.life
            for lease in bound:
                if lease.process and life(lease.process) is not Life.ENDED:
                    self._operations.release(lease.id)
                    self._upkeep.released(lease, EXIT)
            bound = [lease for id in ids if (lease := self._active(id)) is not None]
        for lease in bound:
            self._upkeep.bind(lease)
        return Answer()

    def _active(self, id: str) -> Lease | None:
        """Return a lease unless it has been released."""
        with suppress(NoSuchLease):
            lease = self._operations.look.lease(id)
            return lease if lease.state is State.ACTIVE else None
        return None

    def release(self, call: Call) -> Answer:
        """Release a lease that the caller may end."""
        start = time.perf_counter()
        asked: interface.Release = call.parameters
        # A look at the lease before its release takes as long as the release's first
        # transaction, which looks at it, too.
        found: list[Lease] = []

        def check(lease: Lease) -> None:
            self._access.permit_end(call.caller, lease)
            self._upkeep.look_before_end(lease)
            found.append(lease)

        try:
            self._operations.release(asked.lease, check)
        except NoSuchLease:
            self._access.with_id(call.caller, asked.lease)  # the id may be a name
            raise
        for lease in found:
            self._upkeep.released(lease, None)
        self._metrics.observe("release_seconds", time.perf_counter() - start)
        return Answer()

    def set(self, call: Call) -> Answer:
        """Change a wiring, if the caller could acquire a device of the new wiring."""
        asked: interface.Set = call.parameters
        lease = self._access.own(call.caller, asked.lease)
        if self._upkeep.is_taken_off(lease.id) and not call.caller.root:
            raise ConflictError(
                f"device {lease.name!r} is off its bridge for a minute: the process "
                "that has it open changed its MAC again and again"
            )
        fields = dict.fromkeys(asked.fields)
        if unknown := fields.keys() - set(Wiring._fields):
            named = printable(", ".join(sorted(unknown)))
            raise RequestError(f"{named} cannot be changed")
        changes = {field: getattr(asked.wiring, field) for field in fields}
        request = self._request_after(lease, changes)
        with self._operations.context.opened(lease.netns) as namespace:
            if namespace is None:
                raise NoSuchLink(
                    f"the namespace of lease {lease.id} is gone", name=lease.netns.path
                )
            request = self._requests.check(call.caller, namespace, request)
            spec = interface.spec_of(request.nics[0])
            if isinstance(spec, Tap):
                if "bridge" in changes:
                    changes["bridge"] = spec.bridge
                if changes.keys() & _JOINING:
                    # The request is known here; None is the MTU of the device it joins.
                    changes["mtu"] = spec.mtu
        changed = self._operations.rewire.set(lease.id, cast(Changes, changes))
        self._operations.context.ledger.set_asked(lease.id, recorded(request))
        self._upkeep.report("set", changed, " ".join(fields))
        return Answer(interface.Got(changed, self._operations.look.device(changed)))

    def _request_after(
        self, lease: Lease, changes: dict[str, Any]
    ) -> interface.Acquire:
        """Return the request for a lease as it will be after the changes."""
        request = self._requests.of(lease)
        spec = interface.spec_of(request.nics[0])
        if isinstance(spec, Macvtap):
            model.check_macvtap_wiring(lease.wiring._replace(**changes))
            spec = spec._replace(mtu=changes.get("mtu", spec.mtu))
        else:
            spec = spec._replace(**changes)
        return request._replace(nics=(interface.nic(spec),))

    def reopen(self, call: Call) -> Answer:
        """Open the device of a lease of the caller's again."""
        asked: interface.Reopen = call.parameters
        lease = self._access.own(call.caller, asked.lease)
        opened = self._operations.reopen(lease.id)
        self._upkeep.report("reopened", lease)
        (device,) = placed([opened])
        return Answer(device, opened.fds)
