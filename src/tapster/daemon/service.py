# SPDX-License-Identifier: Apache-2.0
"""Carries out the methods of the interface, one call after the other.

Everything here runs in the worker's thread, unless its docstring says otherwise.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from tapster import doctor, model
from tapster.daemon import config, policy
from tapster.daemon.config import Loaded
from tapster.daemon.log import WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller, DeviceRequest, Need
from tapster.daemon.upkeep import EXIT, Upkeep
from tapster.errors import (
    LedgerError,
    MacTaken,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    NotAllowed,
    QuotaExceeded,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel import netns as netns_of_process
from tapster.kernel import process, unix
from tapster.kernel.port import Namespace
from tapster.light import Any, NamedTuple, remembered
from tapster.model import (
    EventQuery,
    HistoryEvent,
    HistoryQuery,
    Lease,
    Life,
    Link,
    Macvtap,
    Mode,
    Spec,
    State,
    Tap,
    Wiring,
)
from tapster.operations.devices import Opened
from tapster.operations.look import Look
from tapster.operations.operations import Operations, open_operations
from tapster.operations.reap import REAP_BATCH
from tapster.rpc import interface
from tapster.rpc.description import Nothing
from tapster.rpc.interface import Binding
from tapster.rpc.varlink import decode, encode, from_json, to_json
from tapster.rpc.wire import LISTED, Device, Difference

PAGE = 100
"""Leases or events in one part of an answer."""
HISTORY_PAGE = 25
"""Entries of the history in one part of an answer: each may have long labels."""
LABELS = 500
"""Labels by which the figures count leases."""
HISTORY_LIMIT = 1000
"""Entries of the history, or events, in one answer."""

REFUSAL_PAUSE = 1.0
"""Seconds between two refusals of one user that are recorded."""
STRANGERS_PAUSE = 60.0
"""The same of all users for whom there is no rule."""
REFUSED_USERS = 1000
_JOINING = frozenset({"bridge", "ovs", "standby", "mtu"})
"""The fields whose change may give a device another MTU."""
LONGEST_TEXT = 200
"""Characters of a text of the caller's that the history keeps."""


class Call(NamedTuple):
    """One call of a client, with the descriptors that came with it."""

    caller: Caller
    pidfd: int
    """Of the calling process; -1 if there is none."""
    parameters: Any
    fds: Sequence[int]


class Answer(NamedTuple):
    """An answer or a part of an answer, with descriptors to send and then close."""

    parameters: Any = Nothing()
    fds: tuple[int, ...] = ()
    undo: Callable[[], None] | None = None
    """Undoes the request, in case the client does not receive the answer."""
    next_page: "Callable[[], Answer] | None" = None
    """Fetches the next part."""


class Unfinished(NamedTuple):
    """In place of an answer: the call is to go on after the calls that wait."""

    go_on: "Callable[[], Answer | Unfinished]"


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
        self._refused: dict[int | None, float] = {}
        """When a refusal was last recorded, by user id; under None, of users for whom
        there is no rule."""
        operations.context.watch_fleet(self._count_registrations)
        self._methods: dict[str, Callable[[Call], Answer | Unfinished]] = {
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
            "Explain": self._explain,
            "GetStatistics": self._statistics,
        }

    def call(self, method: str, call: Call) -> Answer | Unfinished:
        """Carry out a call. Raises TapsterError."""
        try:
            return self._methods[method](call)
        except (NameTaken, MacTaken) as error:
            raise self._discreet(error, call.caller) from None

    def _discreet(
        self, error: NameTaken | MacTaken, caller: Caller
    ) -> NameTaken | MacTaken:
        """Return an error that says of another user's lease only that there is one."""
        if error.lease is None:
            return error
        with suppress(NoSuchLease):
            self._seen(caller, error.lease)
            return error
        if isinstance(error, MacTaken):
            return MacTaken(
                f"MAC {error.mac} is in use by a device of another user on the same "
                "network; give this VM another MAC",
                mac=error.mac,
            )
        waits = "" if error.until is None else ", in FIN WAIT"
        return NameTaken(
            f"name {error.name!r} is in use by another user{waits}; ask for another",
            name=error.name,
            until=error.until,
        )

    # Acquire and release

    def _acquire(self, call: Call) -> Answer:
        start = time.perf_counter()
        asked: interface.Acquire = call.parameters
        bound_to_caller = asked.bind is Binding.CALLER
        if bound_to_caller and not call.caller.pid:
            raise RequestError(
                "the daemon cannot see your process: bind the leases to nothing"
            )
        self._check_size(asked)
        operations = self._operations
        if asked.netns is not None:
            operations = self._inside(call.caller, asked.netns)
        try:
            namespace = operations.context.namespace
            try:
                requests = [
                    self._checked(call.caller, namespace, asked._replace(nics=(nic,)))
                    for nic in asked.nics
                ]
                self._check_quota(call.caller, len(requests))
            except (NotAllowed, QuotaExceeded) as error:
                self._record_refusal(call.caller, asked, str(error))
                raise
            self._upkeep.follow(namespace.netns)
            limits = self.loaded.config.limits
            acquired = operations.acquire(
                [interface.spec_of(request.nics[0]) for request in requests],
                pid=call.caller.pid if bound_to_caller else None,
                on_close=asked.bind is Binding.CLOSE,
                vhost=asked.vhost,
                caller_uid=call.caller.uid,
                asked=[recorded(request) for request in requests],
                max_keys=None if call.caller.root else limits.keys,
            )
        finally:
            if operations is not self._operations:
                operations.close()
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
            interface.Devices(_placed(acquired)),
            tuple(fds),
            lambda: self._take_back(ids),
        )

    def _record_refusal(
        self, caller: Caller, asked: interface.Acquire, reason: str
    ) -> None:
        """Record in the history that a user was refused a device, once a second; of all
        users without a rule, once a minute.

        The user's share of the history bounds these, too.
        """
        now = time.time()
        # One user may have the ids of thousands for whom there is no rule.
        known = bool(policy.rules_of(self.rules, caller))
        user = caller.uid if known else None
        pause = REFUSAL_PAUSE if known else STRANGERS_PAUSE
        if now - self._refused.get(user, 0.0) < pause:
            return
        if len(self._refused) >= REFUSED_USERS:
            self._refused.clear()
        self._refused[user] = now
        spec = interface.spec_of(asked.nics[0])
        refused = HistoryEvent(
            round(now, 3),
            "refused",
            "",
            _printable(spec.name),
            _printable(spec.owner),
            caller.uid,
            _printable(reason.partition("\n")[0]),
        )
        with suppress(LedgerError), self._operations.context.gate:
            self._operations.context.ledger.record_event(refused)

    def _check_size(self, asked: interface.Acquire) -> None:
        """Raise RequestError if an answer has no room for the requested descriptors."""
        if not asked.nics:
            raise RequestError("the request names no device: give nics")
        limits = self.loaded.config.limits
        room = min(limits.descriptors, unix.SCM_MAX_FD)
        # The number of queues is checked later. Each device counts, whatever it says.
        queues = sum(max(interface.spec_of(nic).queues, 1) for nic in asked.nics)
        if (wanted := queues * (1 + asked.vhost)) > room:
            raise RequestError(
                f"the request needs {wanted} descriptors; an answer has room for {room}"
            )

    def _checked(
        self, caller: Caller, namespace: Namespace, request: interface.Acquire
    ) -> interface.Acquire:
        """Check a request for one device; return it with the bridge's own name."""
        if caller.root:
            return request  # everything is allowed; the acquire checks the rest
        spec = interface.spec_of(request.nics[0])
        model.check_spec(spec)
        lowers = False
        if isinstance(spec, Tap):
            if link := _bridge_of(namespace, spec):
                lowers = spec.mtu is not None and spec.mtu < link.mtu
                if spec.bridge is not None:
                    # A rule lists a bridge by its name, never by an altname.
                    spec = spec._replace(bridge=link.name)
            request = request._replace(nics=(interface.nic(spec),))
        rules = self.rules
        if request.bind is Binding.CLOSE and isinstance(spec, Tap):
            rules = self.loaded.rules_for_bridge(spec.bridge)
        device = DeviceRequest(spec, request.netns, request.vhost, lowers)
        if reason := policy.judge(rules, caller, device):
            self._metrics.add("refused", "policy")
            raise NotAllowed(reason)
        return request

    def _check_quota(self, caller: Caller, wanted: int) -> None:
        config = self.loaded.config
        quota = policy.quota(self.rules, caller, config.limits.devices)
        if quota is None:
            return
        count = self._operations.look.count(caller.uid)
        held = count[State.ACTIVE] + count[State.RESERVED]
        if held + wanted > quota:
            self._metrics.add("refused", "quota")
            raise QuotaExceeded(
                f"{caller} has {held} of {quota} devices and asks for {wanted} more; "
                "release one, or have devices = raised in a rule of the policy",
                limit=quota,
            )
        if (waiting := count[State.FIN_WAIT]) + wanted > config.limits.waiting:
            self._metrics.add("refused", "waiting")
            raise QuotaExceeded(
                f"{caller} has {waiting} devices in FIN WAIT and asks for {wanted} "
                f"more: {config.limits.waiting} are allowed; wait until some are gone",
                limit=config.limits.waiting,
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
        leases = [self._own(call.caller, id) for id in _distinct(asked.leases)]
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
                    self._end(lease, EXIT)
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

    def _release(self, call: Call) -> Answer:
        start = time.perf_counter()
        asked: interface.Release = call.parameters
        # A look at the lease before its release takes as long as the release's first
        # transaction, which looks at it, too.
        found: list[Lease] = []

        def check(lease: Lease) -> None:
            self._permit_end(call.caller, lease)
            found.append(lease)

        try:
            self._operations.release(asked.lease, check)
        except NoSuchLease:
            self._named(call.caller, asked.lease)  # the id may be a name
            raise
        for lease in found:
            self._upkeep.released(lease, None)
        self._metrics.observe("release_seconds", time.perf_counter() - start)
        return Answer()

    def _set(self, call: Call) -> Answer:
        asked: interface.Set = call.parameters
        lease = self._own(call.caller, asked.lease)
        fields = dict.fromkeys(asked.fields)
        if unknown := fields.keys() - set(Wiring._fields):
            named = _printable(", ".join(sorted(unknown)))
            raise RequestError(f"{named} cannot be changed")
        changes: Any = {field: getattr(asked.wiring, field) for field in fields}
        request = self._asked_for(lease)
        spec = interface.spec_of(request.nics[0])
        if isinstance(spec, Macvtap):
            wiring = lease.wiring._replace(**changes)
            model.check_macvtap_wiring(wiring)
            spec = spec._replace(mtu=changes.get("mtu", spec.mtu))
        else:
            spec = spec._replace(**changes)
        request = request._replace(nics=(interface.nic(spec),))
        with self._operations.context.opened(lease.netns) as namespace:
            if namespace is None:
                raise NoSuchLink(
                    f"the namespace of lease {lease.id} is gone", name=lease.netns.path
                )
            request = self._checked(call.caller, namespace, request)
            spec = interface.spec_of(request.nics[0])
            if isinstance(spec, Tap):
                if "bridge" in changes:
                    changes["bridge"] = spec.bridge
                if changes.keys() & _JOINING:
                    # As in an acquire. With the MTU of its former bridge the device
                    # might lower this bridge's.
                    on = _bridge_of(namespace, spec)
                    mtu = spec.mtu or (on.mtu if on else lease.wiring.mtu)
                    changes["mtu"] = mtu
        changed = self._operations.rewire.set(lease.id, changes)
        self._operations.context.ledger.set_asked(lease.id, recorded(request))
        self._upkeep.report("set", changed, " ".join(fields))
        return Answer(interface.Got(changed, self._operations.look.device(changed)))

    def _asked_for(self, lease: Lease) -> interface.Acquire:
        """Return the request for a lease as it is now. Root's command may have changed
        the lease. For a lease that no daemon acquired, return a request for everything
        that the lease has."""
        spec: Spec
        if text := self._operations.look.asked(lease.id):
            request: interface.Acquire = from_json(
                interface.Acquire, decode(text.encode())
            )
            spec = interface.spec_of(request.nics[0])
            if isinstance(spec, Tap):
                # The lease has an MTU, also if none was asked for.
                wiring = lease.wiring._replace(mtu=spec.mtu)
                spec = spec._replace(**wiring._asdict())
                request = request._replace(nics=(interface.nic(spec),))
            return request
        common: dict[str, Any] = {
            "name": lease.name,
            "owner": lease.owner,
            "mac": lease.mac,
            "queues": lease.queues,
            "vnet_hdr": lease.vnet_hdr,
            "fin_wait": lease.fin_wait,
        }
        if lease.lower is not None:
            mode = lease.mode or Mode.BRIDGE
            spec = Macvtap(lease.lower, mode=mode, mtu=lease.wiring.mtu, **common)
        else:
            spec = Tap(**common, **lease.wiring._asdict())
        here = self._operations.context.is_here(lease.netns)
        netns = None if here else lease.netns.path
        return interface.Acquire((interface.nic(spec),), netns=netns)

    def _end(self, lease: Lease, reason: str | None) -> None:
        self._operations.release(lease.id)
        self._upkeep.released(lease, reason)

    # Looking

    def _get(self, call: Call) -> Answer:
        asked: interface.Get = call.parameters
        operations = self._operations
        if asked.netns is not None:
            operations = self._inside(call.caller, asked.netns)
        try:
            lease = self._seen(call.caller, asked.lease, operations, asked.owner)
            differences = _differences(operations.look, lease)
            device = operations.look.device(lease)
            return Answer(interface.Got(lease, device, differences))
        finally:
            if operations is not self._operations:
                operations.close()

    def _list(self, call: Call) -> Answer:
        return self._lease_page(call, 0)

    def _lease_page(self, call: Call, after: int) -> Answer:
        leases, more = self._operations.look.page(
            after=after,
            limit=PAGE,
            caller_uid=self._only(call),
            all=call.parameters.all,
        )
        following = None if more is None else partial(self._lease_page, call, more)
        return Answer(interface.Leases(tuple(leases)), next_page=following)

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
            _history_limit(asked.limit),
        )
        return self._history_page(query, frozenset())

    def _history_page(self, query: HistoryQuery, seen: frozenset[str]) -> Answer:
        """Return the next page of a history. The daemon keeps no later entry in memory.

        `seen` has the ids of the leases of earlier pages that began at `query.until`.
        """
        assert query.limit is not None
        size = min(query.limit, HISTORY_PAGE)
        # One more tells whether there are more.
        look_for = query._replace(limit=size + 1 + len(seen))
        found = [
            entry
            for entry in self._operations.look.history(look_for)
            if entry.lease not in seen
        ]
        page, left = found[:size], query.limit - size
        next_page = None
        if left and len(found) > size:
            until = page[-1].created
            if until != query.until:
                seen = frozenset()
            seen |= {entry.lease for entry in page if entry.created == until}
            rest = query._replace(until=until, limit=left)
            next_page = partial(self._history_page, rest, seen)
        return Answer(interface.HistoryEntries(tuple(page)), next_page=next_page)

    def _events(self, call: Call) -> Answer:
        asked: interface.Events = call.parameters
        query = EventQuery(
            asked.since,
            asked.until,
            asked.event,
            asked.name,
            asked.owner,
            asked.lease,
            self._only(call),
            _history_limit(asked.limit),
        )
        return self._event_page(self._operations.look.event_numbers(query))

    def _event_page(self, numbers: Sequence[int]) -> Answer:
        """Return the first of these events. Only the numbers of the rest are kept."""
        page, rest = numbers[:PAGE], numbers[PAGE:]
        events = self._operations.look.numbered_events(page)
        return Answer(
            interface.HistoryEvents(tuple(events)),
            next_page=partial(self._event_page, rest) if rest else None,
        )

    def _only(self, call: Call) -> int | None:
        """Return the user id whose leases the caller may see; None if the caller may
        see all leases."""
        return self._only_of(call.caller)

    def _only_of(self, caller: Caller) -> int | None:
        if policy.allows(self.rules, caller, policy.SEE_OTHERS):
            return None
        return caller.uid

    def _reopen(self, call: Call) -> Answer:
        asked: interface.Reopen = call.parameters
        lease = self._own(call.caller, asked.lease)
        opened = self._operations.reopen(lease.id)
        self._upkeep.report("reopened", lease)
        (device,) = _placed([opened])
        return Answer(device, opened.fds)

    def _seen(
        self,
        caller: Caller,
        name_or_id: str,
        operations: Operations | None = None,
        owner: str | None = None,
    ) -> Lease:
        """Return the lease, if the caller may know of it. Raises NoSuchLease.

        A caller learns nothing about leases that it may not see, not even that several
        leases have the same name.
        """
        look = (operations or self._operations).look
        return look.find(name_or_id, owner, caller_uid=self._only_of(caller))

    def _own(self, caller: Caller, id: str) -> Lease:
        """Return the lease with this id, if it is the caller's, or the caller is root.

        Who changes or opens a device steps over the rules of its user, or reads what
        its VM receives. So no rule allows that.
        """
        lease = self._named(caller, id)
        if lease.caller_uid != caller.uid and not caller.root:
            self._metrics.add("refused", "policy")
            raise NotAllowed(
                f"lease {id} is another user's: only that user and root may change "
                "or open its device"
            )
        return lease

    def _endable(self, caller: Caller, id: str) -> Lease:
        """Return the lease with this id, if the caller may end it."""
        lease = self._named(caller, id)
        self._permit_end(caller, lease)
        return lease

    def _named(self, caller: Caller, id: str) -> Lease:
        """Return the lease with this id, if the caller may know of it."""
        lease = self._seen(caller, id)
        if lease.id != id:
            raise NoSuchLease(
                f"no lease has the id {id!r}: {lease.name!r} is a name", reference=id
            )
        return lease

    def _permit_end(self, caller: Caller, lease: Lease) -> None:
        """Raise unless the caller may end a lease: NoSuchLease if it may not know of
        it, or else NotAllowed."""
        if not policy.may_see(self.rules, caller, lease.caller_uid):
            raise NoSuchLease(
                f"no lease has the name or id {lease.id!r}", reference=lease.id
            )
        if not policy.may_end(self.rules, caller, lease):
            self._permit_rule(caller, policy.END_OTHERS)

    # Upkeep

    def _reap(self, call: Call) -> Answer | Unfinished:
        asked: interface.Reap = call.parameters
        if asked.leases is not None:
            return self._reap_some(call.caller, asked.leases)
        self._permit_rule(call.caller, policy.MAINTAIN)
        waiting = self._operations.look.count()[State.FIN_WAIT]
        return self._reap_batch(asked.now, waiting, 0, None)

    def _reap_batch(
        self, now: bool, most: int, reaped: int, failure: TapsterError | None
    ) -> Answer | Unfinished:
        """Reap a batch. `reaped` leases have ended before, and `failure` occurred.

        Stop at `most`: others may release leases as fast as this reaps them.
        """
        batch: list[Lease] = []
        try:
            self._operations.reap(now=now, limit=REAP_BATCH, on_reaped=batch.extend)
        except TapsterError as error:
            failure = failure or error
        self._upkeep.report_reaped(batch)
        reaped += len(batch)
        if batch and reaped < most:
            return Unfinished(partial(self._reap_batch, now, most, reaped, failure))
        if failure:
            raise failure
        return Answer(interface.Reaped(reaped))

    def _reap_some(self, caller: Caller, ids: Sequence[str]) -> Answer:
        """End the FIN WAIT of leases that the caller may end; needs `fin-wait`."""
        look = self._operations.look
        there = [id for id in _distinct(ids) if not look.has_ended(id)]
        leases = [self._endable(caller, id) for id in there]
        if not policy.allows(self.rules, caller, policy.MAINTAIN):
            self._permit_rule(caller, policy.FIN_WAIT)
        reaped = self._operations.reap.some(
            [lease.id for lease in leases], on_reaped=self._upkeep.report_reaped
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
        names = self._operations.remove_leftovers(asked.ledger, asked.names)
        return Answer(interface.Names(tuple(names)))

    def _explain(self, call: Call) -> Answer:
        """Explain the policy to a user. Runs in the thread for look-ups."""
        asked: interface.Explain = call.parameters
        caller = config.caller_named(asked.user)
        if caller.uid != call.caller.uid:
            self._permit_rule(call.caller, policy.MAINTAIN)
        lines = policy.explain(self.rules, caller, self.loaded.config.limits.devices)
        return Answer(interface.Lines(tuple(lines)))

    def _statistics(self, call: Call) -> Answer:
        self._permit_rule(call.caller, policy.SEE_OTHERS)
        self.measure()
        return Answer(interface.Statistics(self._metrics.counts()))

    def measure(self) -> None:
        """Update the figures that are computed on demand."""
        for state, number in self._operations.look.count().items():
            self._metrics.put("leases", number, state)
        self._metrics.replace("labelled_leases", self._labelled())
        self._metrics.put("collisions", self._operations.acquire.collisions)
        self._metrics.put("reap_batches", self._operations.reap.batches)
        context = self._operations.context
        if context.ledger.in_fleet():
            # Outside a fleet nothing of it is imported.
            from tapster.fleet.book import Book, figures

            shown = figures(Book(context.ledger), context.system.wallclock())
            for figure, value in {**shown, **context.fleet_figures()}.items():
                self._metrics.put("fleet", value, figure)

    def _labelled(self) -> dict[str, float]:
        """Return how many active leases have each label that the configuration counts.

        A user chooses the values of a label, so only the most frequent are shown.
        """
        keys = self.loaded.config.metrics.labels
        counted = self._operations.look.count_labels() if keys else {}
        found = [item for item in counted.items() if item[0][0] in keys]
        found.sort(key=lambda item: (-item[1], item[0]))
        return {f"{key}={value}": n for (key, value), n in found[:LABELS]}

    def _count_registrations(self, results: Sequence[str], seconds: float) -> None:
        for result in results:
            self._metrics.add("fleet_registrations", result)
        self._metrics.observe("fleet_request_seconds", seconds)

    # Helpers

    @property
    def rules(self) -> tuple[policy.Rule, ...]:
        """The rules of the policy as they are now. Any thread may read them."""
        return self.loaded.rules

    def _permit_rule(self, caller: Caller, *needed: Need) -> None:
        self._permit(self.rules, caller, *needed)

    def _permit(
        self, rules: tuple[policy.Rule, ...], caller: Caller, *needed: Need
    ) -> None:
        if reason := policy.refusal(rules, caller, needed):
            self._metrics.add("refused", "policy")
            raise NotAllowed(reason)

    def _inside(self, caller: Caller, netns: str) -> Operations:
        """Open the operations of another namespace for a block: an open namespace
        cannot end. Raise NotAllowed unless a rule for the caller lists it."""
        if not netns.isprintable():
            raise RequestError(f"netns {netns!r} is not text that can be printed")
        self._permit_rule(caller, Need("netns", netns))
        listed = "/" in netns and not caller.root
        if listed and netns_of_process.leads_elsewhere(netns):
            raise NotAllowed(f"{netns!r} leads elsewhere: a link is not followed")
        operations = open_operations(self._ledger, netns=netns, reaper=lambda _: None)
        try:
            # A link may have come after the look, and may be gone by now.
            cookie = operations.context.namespace.netns.cookie
            if listed and not netns_of_process.is_at(netns, cookie):
                raise NotAllowed(f"{netns!r} led elsewhere when it was opened")
        except BaseException:
            operations.close()
            raise
        return operations


def _bridge_of(namespace: Namespace, spec: Tap) -> Link | None:
    """Return the bridge that a tap is to be on. One of Open vSwitch has a device of its
    name."""
    name = spec.bridge or spec.ovs
    return namespace.named(name) if name else None


def _distinct(ids: Sequence[str]) -> list[str]:
    """Return the ids of leases that a call names, each once. Raises RequestError."""
    distinct = [*dict.fromkeys(ids)]
    if len(distinct) > LISTED:
        raise RequestError(
            f"a call names at most {LISTED} leases, not {len(distinct)}: call again "
            "for the others"
        )
    return distinct


def _history_limit(limit: int | None) -> int:
    """Return how many entries an answer may have. Raises RequestError."""
    if limit is not None and limit < 1:
        raise RequestError(f"limit must be 1 or more, not {limit}")
    return HISTORY_LIMIT if limit is None else min(limit, HISTORY_LIMIT)


def _printable(text: str) -> str:
    """Return a text of the caller's without what moves a cursor, and not too long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown[:LONGEST_TEXT]


# Many VMs of a host are asked for alike.
@remembered
def recorded(request: interface.Acquire) -> str:
    """Return a request for one device as text for the ledger."""
    return encode(to_json(request)).rstrip(b"\0").decode()


def _differences(look: Look, lease: Lease) -> tuple[Difference, ...]:
    try:
        differ = look.differences(lease)
    except ServiceUnavailable as error:
        differ = {"service": str(error)}
    return tuple(Difference(*difference) for difference in differ.items())


def _placed(opened: Sequence[Opened]) -> tuple[Device, ...]:
    """Return the devices, with the places of their descriptors in the answer."""
    devices: list[Device] = []
    at = 0
    for lease, fds, vhost_fds in opened:
        after = at + len(fds)
        end = after + len(vhost_fds)
        devices.append(Device(lease, tuple(range(at, after)), tuple(range(after, end))))
        at = end
    return tuple(devices)
