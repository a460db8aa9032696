# SPDX-License-Identifier: Apache-2.0
"""What the interface's methods do, one call after the other, on one Host.

Everything here runs in the worker's thread, but for what says otherwise.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from tapster import doctor
from tapster.daemon import policy
from tapster.daemon.config import Loaded
from tapster.daemon.log import WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller, Need
from tapster.daemon.upkeep import EXIT, Upkeep
from tapster.errors import (
    NoSuchLease,
    NotAllowed,
    QuotaExceeded,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel import process, unix
from tapster.light import Any, NamedTuple
from tapster.model import HistoryQuery, Lease, Spec, State, Tap, Wiring
from tapster.operations.devices import Opened
from tapster.operations.look import Look
from tapster.operations.operations import Operations, open_operations
from tapster.rpc import interface
from tapster.rpc.interface import Binding
from tapster.rpc.varlink import Nothing

HISTORY_LIMIT = 1000
"""Entries of the history, or events, in one answer."""


class Call(NamedTuple):
    """One call, by whom, with the descriptors that came with it."""

    caller: Caller
    pidfd: int
    """Of the caller, to look whether it lives; -1 if there is none."""
    parameters: Any
    fds: Sequence[int]


class Answer(NamedTuple):
    """The answer, with descriptors to send and close, and what to do if nobody takes
    it."""

    parameters: Any = Nothing()
    fds: tuple[int, ...] = ()
    undo: Callable[[], None] | None = None


class Service:
    """The methods."""

    def __init__(
        self,
        operations: Operations,
        ledger: str,
        loaded: Loaded,
        metrics: Metrics,
        log: Log,
        upkeep: Upkeep,
    ) -> None:
        self.loaded = loaded
        self._operations = operations
        self._ledger = ledger
        self._metrics = metrics
        self._log = log
        self._upkeep = upkeep
        self._methods: dict[str, Callable[[Call], Answer]] = {
            "Acquire": self._acquire,
            "Bind": self._bind,
            "Release": self._release,
            "Get": self._get,
            "Set": self._set,
            "List": self._list,
            "History": self._history,
            "Events": self._events,
            "Reopen": self._reopen,
            "Reap": self._reap,
            "Recover": self._recover,
            "Examine": self._examine,
            "RemoveLeftovers": self._remove_leftovers,
            "GetStatistics": self._statistics,
        }

    def call(self, method: str, call: Call) -> Answer:
        """Do what is called for. Raises TapsterError."""
        return self._methods[method](call)

    # Acquire and release

    def _acquire(self, call: Call) -> Answer:
        start = time.perf_counter()
        asked: interface.Acquire = call.parameters
        specs = [interface.spec_of(nic) for nic in asked.nics]
        self._check(call.caller, specs, asked)
        bound_to_caller = asked.bind is Binding.CALLER
        if bound_to_caller and not call.caller.pid:
            raise RequestError("your process cannot be seen from here: bind to nothing")
        operations = self._operations
        if asked.netns is not None:
            operations = self._inside(asked.netns)
        try:
            self._upkeep.follow(operations.context.namespace.netns)
            acquired = operations.acquire(
                specs,
                pid=call.caller.pid if bound_to_caller else None,
                on_close=asked.bind is Binding.CLOSE,
                vhost=asked.vhost,
                caller_uid=call.caller.uid,
            )
        finally:
            if operations is not self._operations:
                operations.close()
        leases = [opened.lease for opened in acquired]
        fds = [fd for opened in acquired for fd in opened.fds + opened.vhost_fds]
        ids = [lease.id for lease in leases]
        try:
            if bound_to_caller and process.over(call.pidfd):
                # Its pid may be another's by now, to which nothing may be bound.
                raise RequestError("the calling process has ended")
            for lease in leases:
                self._upkeep.bind(lease)
                self._upkeep.report("acquired", lease)
        except BaseException:
            unix.close(fds)
            self._take_back(ids)
            raise
        self._metrics.observe("acquire_seconds", time.perf_counter() - start)
        return Answer(
            interface.Devices(_placed(acquired)),
            tuple(fds),
            lambda: self._take_back(ids),
        )

    def _check(
        self, caller: Caller, specs: Sequence[Spec], asked: interface.Acquire
    ) -> None:
        if not specs:
            raise RequestError("no device is asked for: give nics")
        limits = self.loaded.config.limits
        room = min(limits.descriptors, unix.SCM_MAX_FD)
        if (wanted := sum(one.queues for one in specs) * (1 + asked.vhost)) > room:
            raise RequestError(f"{wanted} descriptors are asked for: at most {room}")
        more = [Need("features", "vhost")] if asked.vhost else []
        if asked.netns is not None:
            more.append(Need("netns", asked.netns))
        for spec in specs:
            rules = self.loaded.config.allow
            if asked.bind is Binding.CLOSE and not more and isinstance(spec, Tap):
                rules = self.loaded.rules(spec.bridge)
            self._permit(rules, caller, *policy.needs(spec, caller), *more)
        self._check_quota(caller, len(specs))

    def _check_quota(self, caller: Caller, wanted: int) -> None:
        config = self.loaded.config
        quota = policy.quota(config.allow, caller, config.limits.devices)
        if quota is None:
            return
        count = self._operations.look.count(caller.uid)
        held = count[State.ACTIVE] + count[State.RESERVED]
        if held + wanted > quota:
            self._metrics.add("refused", "quota")
            raise QuotaExceeded(
                f"{caller} has {held} of {quota} devices and asks for {wanted} more; "
                "release one, or have devices = raised in a rule of the policy"
            )
        if (waiting := count[State.FIN_WAIT]) + wanted > config.limits.waiting:
            self._metrics.add("refused", "waiting")
            raise QuotaExceeded(
                f"{caller} has {waiting} devices in FIN WAIT: at most "
                f"{config.limits.waiting}; wait until some are gone"
            )

    def _take_back(self, ids: Iterable[str]) -> None:
        for id in ids:
            try:
                lease = self._operations.look.lease(id)
                if lease.state is State.ACTIVE:
                    self._end(lease, "the caller did not get it")
            except TapsterError as error:
                self._log(WARNING, "not-taken-back", lease=id, error=error)

    def _bind(self, call: Call) -> Answer:
        asked: interface.Bind = call.parameters
        leases = [self._own(call.caller, id) for id in asked.leases]
        pid = None
        if asked.process is not None:
            if not 0 <= asked.process < len(call.fds):
                raise RequestError(f"no descriptor {asked.process} came with the call")
            pidfd = call.fds[asked.process]
            pid = process.pid_of(pidfd)
            if not call.caller.root and process.owner(pid) != call.caller.uid:
                raise NotAllowed(f"process {pid} is not {call.caller}'s")
        self._operations.bind([lease.id for lease in leases], pid)
        if asked.process is not None and process.over(call.fds[asked.process]):
            # It has ended meanwhile, and the pid may be another's.
            for lease in leases:
                self._end(lease, EXIT)
        for lease in leases:
            self._upkeep.bind(self._operations.look.lease(lease.id))
        return Answer()

    def _release(self, call: Call) -> Answer:
        start = time.perf_counter()
        asked: interface.Release = call.parameters
        try:
            lease = self._own(call.caller, asked.lease)
        except NoSuchLease:
            if self._operations.look.has_ended(asked.lease):
                return Answer()
            raise
        self._end(lease, None)
        self._metrics.observe("release_seconds", time.perf_counter() - start)
        return Answer()

    def _set(self, call: Call) -> Answer:
        asked: interface.Set = call.parameters
        lease = self._own(call.caller, asked.lease)
        if unknown := set(asked.fields) - set(Wiring._fields):
            raise RequestError(f"{', '.join(sorted(unknown))} cannot be changed")
        changes: Any = {field: getattr(asked.wiring, field) for field in asked.fields}
        needed = policy.needs(Tap(**changes), call.caller)
        self._permit_rule(
            call.caller,
            Need("kinds", lease.kind),
            *(need for need in needed if need.key not in ("kinds", "templates")),
        )
        changed = self._operations.rewire.set(lease.id, changes)
        self._upkeep.report("set", changed, " ".join(asked.fields))
        return Answer(interface.Got(changed, self._operations.look.device(changed)))

    def _end(self, lease: Lease, reason: str | None) -> None:
        self._operations.release(lease.id)
        self._upkeep.unbind(lease.id)
        if lease.state is State.ACTIVE:
            self._upkeep.report("released", lease, reason)

    # Looking

    def _get(self, call: Call) -> Answer:
        asked: interface.Get = call.parameters
        operations = self._operations
        if asked.netns is not None:
            self._permit_rule(call.caller, Need("netns", asked.netns))
            operations = self._inside(asked.netns)
        try:
            lease = self._seen(call.caller, asked.lease, operations.look)
            differences = _differences(operations.look, lease)
            device = operations.look.device(lease)
            return Answer(interface.Got(lease, device, differences))
        finally:
            if operations is not self._operations:
                operations.close()

    def _list(self, call: Call) -> Answer:
        asked: interface.List = call.parameters
        leases = self._operations.look.leases(all=asked.all)
        if not policy.allows(self.rules, call.caller, policy.SEE_OTHERS):
            leases = [lease for lease in leases if lease.caller_uid == call.caller.uid]
        return Answer(interface.Leases(tuple(leases)))

    def _history(self, call: Call) -> Answer:
        asked: interface.History = call.parameters
        if len(asked.label) not in (0, 2):
            raise RequestError("label has a key and a value")
        query = HistoryQuery(
            asked.name,
            asked.owner,
            asked.mac,
            asked.lease,
            (asked.label[0], asked.label[1]) if asked.label else None,
            asked.at,
            asked.since,
            asked.until,
            self._only(call),
            min(HISTORY_LIMIT, HISTORY_LIMIT if asked.limit is None else asked.limit),
        )
        entries = tuple(self._operations.look.history(query))
        return Answer(interface.HistoryEntries(entries))

    def _events(self, call: Call) -> Answer:
        asked: interface.Span = call.parameters
        only = self._only(call)
        events = tuple(
            event
            for event in self._operations.look.events(asked.since, asked.until)
            if only is None or event.caller_uid == only
        )
        return Answer(interface.HistoryEvents(events[-HISTORY_LIMIT:]))

    def _only(self, call: Call) -> int | None:
        """The user id whose leases alone the caller may see; None for all."""
        if policy.allows(self.rules, call.caller, policy.SEE_OTHERS):
            return None
        return call.caller.uid

    def _reopen(self, call: Call) -> Answer:
        asked: interface.Reopen = call.parameters
        lease = self._own(call.caller, asked.lease)
        opened = self._operations.reopen(lease.id)
        self._upkeep.report("reopened", lease)
        (device,) = _placed([opened])
        return Answer(device, opened.fds)

    def _seen(self, caller: Caller, name_or_id: str, look: Look | None = None) -> Lease:
        """The lease, if the caller may know of it. Raises NoSuchLease."""
        lease = (look or self._operations.look).find(name_or_id)
        if not policy.may_see(self.rules, caller, lease.caller_uid):
            raise NoSuchLease(f"no lease has the name or id {name_or_id!r}")
        return lease

    def _own(self, caller: Caller, id: str) -> Lease:
        """The lease with this id, if the caller may end it."""
        lease = self._seen(caller, id)
        if lease.id != id:
            raise NoSuchLease(f"no lease has the id {id!r}: {lease.name!r} is a name")
        if not policy.may_end(self.rules, caller, lease):
            self._permit_rule(caller, policy.END_OTHERS)
        return lease

    # Upkeep

    def _reap(self, call: Call) -> Answer:
        asked: interface.Reap = call.parameters
        self._permit_rule(call.caller, policy.MAINTAIN)
        reaped = self._operations.reap(
            now=asked.now, on_reaped=self._upkeep.report_reaped
        )
        return Answer(interface.Reaped(reaped))

    def _recover(self, call: Call) -> Answer:
        asked: interface.Recover = call.parameters
        self._permit_rule(call.caller, policy.MAINTAIN)
        repairs = self._operations.recover(
            dry_run=asked.dry_run, on_repaired=self._upkeep.report_repairs
        )
        return Answer(interface.Recovered(tuple(repairs)))

    def _examine(self, call: Call) -> Answer:
        self._permit_rule(call.caller, policy.MAINTAIN)
        return Answer(interface.Problems(tuple(doctor.examine(self._operations))))

    def _remove_leftovers(self, call: Call) -> Answer:
        asked: interface.Leftovers = call.parameters
        self._permit_rule(call.caller, policy.MAINTAIN)
        names = self._operations.remove_leftovers(asked.ledger)
        return Answer(interface.Names(tuple(names)))

    def _statistics(self, call: Call) -> Answer:
        self._permit_rule(call.caller, policy.SEE_OTHERS)
        self.measure()
        return Answer(interface.Statistics(self._metrics.counts()))

    def measure(self) -> None:
        """Bring the figures up to date that are not counted as they come."""
        for state, number in self._operations.look.count().items():
            self._metrics.put("leases", number, state)
        self._metrics.put("collisions", self._operations.acquire.collisions)
        self._metrics.put("reap_batches", self._operations.reap.batches)

    # Helpers

    @property
    def rules(self) -> tuple[policy.Rule, ...]:
        return self.loaded.config.allow

    def _permit_rule(self, caller: Caller, *needed: Need) -> None:
        self._permit(self.rules, caller, *needed)

    def _permit(
        self, rules: tuple[policy.Rule, ...], caller: Caller, *needed: Need
    ) -> None:
        if reason := policy.refusal(rules, caller, needed):
            self._metrics.add("refused", "policy")
            raise NotAllowed(reason)

    def _inside(self, netns: str) -> Operations:
        """Operations in another namespace, for a moment: an open one cannot end."""
        return open_operations(self._ledger, netns=netns, reaper=lambda _: None)


def _differences(look: Look, lease: Lease) -> tuple[interface.Difference, ...]:
    try:
        differ = look.differences(lease)
    except ServiceUnavailable as error:
        differ = {"service": str(error)}
    return tuple(interface.Difference(*one) for one in differ.items())


def _placed(opened: Sequence[Opened]) -> tuple[interface.Device, ...]:
    """The devices, with the places of their descriptors among all of them."""
    devices: list[interface.Device] = []
    at = 0
    for lease, fds, vhost_fds in opened:
        after = at + len(fds)
        end = after + len(vhost_fds)
        devices.append(
            interface.Device(lease, tuple(range(at, after)), tuple(range(after, end)))
        )
        at = end
    return tuple(devices)
