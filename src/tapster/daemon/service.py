# SPDX-License-Identifier: Apache-2.0
"""What the interface's methods do, one call after the other, on one Host.

Everything here runs in the worker's thread, but for what says otherwise.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tapster import doctor, interface
from tapster.daemon import policy
from tapster.daemon.config import Loaded
from tapster.daemon.log import INFO, WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller, Need
from tapster.errors import (
    ConflictError,
    HostError,
    NoSuchLease,
    NotAllowed,
    QuotaExceeded,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.host import Host
from tapster.interface import Binding, Event
from tapster.kernel import process, unix, vhost
from tapster.kernel.port import HERE
from tapster.kernel.watch import Changes
from tapster.lifecycle import Action, Mended
from tapster.mending import REAP_BATCH
from tapster.model import Lease, Link, Netns, Process, Spec, State, Tap, Wiring
from tapster.varlink import Nothing

EXIT = "the process that the lease was bound to has ended"
CLOSE = "nobody has the device open any more"


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
        host: Host,
        ledger: str,
        loaded: Loaded,
        metrics: Metrics,
        log: Log,
        *,
        tell: Callable[[Event], None],
        watch: Callable[[Process], None],
    ) -> None:
        """`tell` is told every event; `watch` is asked to call `ended` at a process's
        end. Both are called in the worker's thread."""
        self.loaded = loaded
        self.deadline: float | None = None
        """When the next FIN WAIT ends, on `CLOCK_BOOTTIME`: for any thread to read."""
        self._host = host
        self._ledger = ledger
        self._metrics = metrics
        self._log = log
        self._tell = tell
        self._watch = watch
        self._bound: dict[Process, set[str]] = {}
        self._holder: dict[str, Process] = {}
        self._numbers: dict[Netns, int] = {host.netns: HERE}
        """What Watch calls the namespaces in which we have devices."""
        self._bridges: dict[tuple[Netns, str], int] = {}
        """The ifindex of each bridge of a namespace by its name, as it was last."""
        self._strange: dict[str, str] = {}
        """What is not as it should be, by lease: said once."""
        self._methods: dict[str, Callable[[Call], Answer]] = {
            "Acquire": self._acquire,
            "Bind": self._bind,
            "Release": self._release,
            "Get": self._get,
            "Set": self._set,
            "List": self._list,
            "History": self._history,
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
        host = self._host if asked.netns is None else self._inside(asked.netns)
        try:
            self._follow(host.netns)
            leases = host.acquire_all(
                specs,
                pid=call.caller.pid if bound_to_caller else None,
                on_close=asked.bind is Binding.CLOSE,
                user=call.caller.uid,
            )
        finally:
            if host is not self._host:
                host.close()
        fds = [fd for lease in leases for fd in lease.fds]
        ids = [lease.id for lease in leases]
        try:
            if bound_to_caller and process.over(call.pidfd):
                # Its pid may be another's by now, to which nothing may be bound.
                raise RequestError("the calling process has ended")
            if asked.vhost:
                fds += vhost.open_vhost(sum(spec.queues for spec in specs))
        except BaseException:
            unix.close(fds)
            self._take_back(ids)
            raise
        for lease in leases:
            self._hold(lease)
            self._say("acquired", lease)
        self._metrics.observe("acquire_seconds", time.perf_counter() - start)
        return Answer(
            interface.Leases(_placed(leases, len(fds))),
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
        count = self._host.count(caller.uid)
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
                lease = self._host.find(id)
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
        self._host.bind(leases, pid)
        if asked.process is not None and process.over(call.fds[asked.process]):
            # It has ended meanwhile, and the pid may be another's.
            for lease in leases:
                self._end(lease, EXIT)
        for lease in leases:
            self._let_go(lease.id)
            self._hold(self._host.find(lease.id))
        return Answer()

    def _release(self, call: Call) -> Answer:
        start = time.perf_counter()
        asked: interface.Release = call.parameters
        try:
            lease = self._own(call.caller, asked.lease)
        except NoSuchLease:
            with self._host.looking() as (ledger, _):
                if ledger.ended(asked.lease):
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
        changes = {field: getattr(asked.wiring, field) for field in asked.fields}
        needed = policy.needs(Tap(**changes), call.caller)
        self._permit_rule(
            call.caller,
            Need("kinds", lease.kind),
            *(need for need in needed if need.key not in ("kinds", "templates")),
        )
        changed = self._host.set(lease.id, **changes)
        self._say("set", changed, " ".join(asked.fields))
        return Answer(interface.Got(changed, self._host.link(changed)))

    def _end(self, lease: Lease, reason: str | None) -> None:
        self._host.release(lease.id)
        self._let_go(lease.id)
        if lease.state is State.ACTIVE:
            self._say("released", lease, reason)

    # Looking

    def _get(self, call: Call) -> Answer:
        asked: interface.Get = call.parameters
        host = self._host
        if asked.netns is not None:
            self._permit_rule(call.caller, Need("netns", asked.netns))
            host = self._inside(asked.netns)
        try:
            lease = self._seen(call.caller, asked.lease, host)
            differences = _differences(host, lease)
            return Answer(interface.Got(lease, host.link(lease), differences))
        finally:
            if host is not self._host:
                host.close()

    def _list(self, call: Call) -> Answer:
        asked: interface.List = call.parameters
        leases = self._host.leases(all=asked.all)
        if not policy.allows(self._rules, call.caller, policy.SEE_OTHERS):
            leases = [lease for lease in leases if lease.user == call.caller.uid]
        return Answer(interface.Leases(tuple(leases)))

    def _history(self, call: Call) -> Answer:
        asked: interface.History = call.parameters
        tenures = tuple(
            one
            for one in self._host.who(asked.name, asked.at)
            if policy.may_see(self._rules, call.caller, one.user)
        )
        return Answer(interface.Tenures(tenures))

    def _reopen(self, call: Call) -> Answer:
        asked: interface.Reopen = call.parameters
        lease = self._own(call.caller, asked.lease)
        fds = self._host.reopen(lease.id)
        self._say("reopened", lease)
        return Answer(interface.Opened(tuple(range(len(fds)))), fds)

    def _seen(self, caller: Caller, name_or_id: str, host: Host | None = None) -> Lease:
        """The lease, if the caller may know of it. Raises NoSuchLease."""
        lease = (host or self._host).find(name_or_id)
        if not policy.may_see(self._rules, caller, lease.user):
            raise NoSuchLease(f"no lease has the name or id {name_or_id!r}")
        return lease

    def _own(self, caller: Caller, id: str) -> Lease:
        """The lease with this id, if the caller may end it."""
        lease = self._seen(caller, id)
        if lease.id != id:
            raise NoSuchLease(f"no lease has the id {id!r}: {lease.name!r} is a name")
        if not policy.may_end(self._rules, caller, lease):
            self._permit_rule(caller, policy.END_OTHERS)
        return lease

    # Upkeep

    def _reap(self, call: Call) -> Answer:
        asked: interface.Reap = call.parameters
        self._permit_rule(call.caller, policy.MAINTAIN)
        reaped = self._host.reap(now=asked.now, told=self._reaped)
        return Answer(interface.Reaped(reaped))

    def reap(self) -> None:
        """End what is due, one batch: others wait."""
        self._host.reap(limit=REAP_BATCH, told=self._reaped)

    def _reaped(self, leases: Sequence[Lease]) -> None:
        self._metrics.add("reaped", by=len(leases))
        for lease in leases:
            self._strange.pop(lease.id, None)
            self._say("ended", lease)

    def look_ahead(self) -> None:
        """Find out when there is something to reap."""
        self.deadline = self._host.next_deadline()

    def _recover(self, call: Call) -> Answer:
        asked: interface.Recover = call.parameters
        self._permit_rule(call.caller, policy.MAINTAIN)
        mended = self._host.recover(dry_run=asked.dry_run)
        if not asked.dry_run:
            self._mended(mended)
        return Answer(interface.Recovered(tuple(mended)))

    def recover(self) -> None:
        """Bring all into agreement, and watch what is to be watched."""
        try:
            self._mended(self._host.recover())
        except (HostError, ConflictError) as error:
            self._log(WARNING, "not-recovered", error=error)
        for lease in self._host.leases():
            self._follow(lease.netns)
            if lease.state is not State.FIN_WAIT:
                self._hold(lease)

    def _examine(self, call: Call) -> Answer:
        self._permit_rule(call.caller, policy.MAINTAIN)
        return Answer(interface.Findings(tuple(doctor.examine(self._host))))

    def _remove_leftovers(self, call: Call) -> Answer:
        asked: interface.Leftovers = call.parameters
        self._permit_rule(call.caller, policy.MAINTAIN)
        names = self._host.remove_leftovers(asked.ledger)
        return Answer(interface.Names(tuple(names)))

    def _statistics(self, call: Call) -> Answer:
        self._permit_rule(call.caller, policy.SEE_OTHERS)
        self.measure()
        return Answer(interface.Statistics(self._metrics.counts()))

    def measure(self) -> None:
        """Bring the figures up to date that are not counted as they come."""
        for state, number in self._host.count().items():
            self._metrics.put("leases", number, state)
        self._metrics.put("collisions", self._host.collisions)
        self._metrics.put("reap_batches", self._host.batches)

    # What others do

    def ended(self, over: Process) -> None:
        """A process has ended: so do the leases bound to it."""
        self._mended(self._host.mend(sorted(self._bound.pop(over, ()))), EXIT)

    def changed(self, changes: Changes) -> None:
        """Look at our devices among those that changed, as they were seen last."""
        for netns, number in list(self._numbers.items()):
            links = {
                at: link for (of, at), link in changes.links.items() if of == number
            }
            for lease in self._host.at(netns, links):
                if lease.manager is not None or lease.state is State.RESERVED:
                    continue
                link = links[lease.ifindex]
                # Most changes are our own, and it costs the kernel nothing to see so.
                if self._what_is_strange(lease, link) or lease.id in self._strange:
                    self._look(lease, self._host.link(lease))
            if number in changes.over:
                self._forget_if_gone(netns)

    def _follow(self, netns: Netns) -> None:
        """See to it that Watch tells what happens in a namespace."""
        if netns in self._numbers:
            return
        try:
            number = self._host.number(netns)
        except HostError as error:
            self._log(WARNING, "not-watched", netns=netns.path, error=error)
            return
        if number is not None:
            self._numbers[netns] = number

    def _forget_if_gone(self, netns: Netns) -> None:
        """A namespace of this number has ended: it may be one that had it before."""
        try:
            if self._host.number(netns) is not None:
                return
        except HostError as error:
            self._log(WARNING, "not-told", netns=netns.path, error=error)
            return
        del self._numbers[netns]
        for place in [one for one in self._bridges if one[0] == netns]:
            del self._bridges[place]
        leases = [lease.id for lease in self._host.leases() if lease.netns == netns]
        self._mended(self._host.mend(leases))

    def _look(self, lease: Lease, link: Link | None) -> None:
        strange = self._what_is_strange(lease, link)
        if strange == self._strange.get(lease.id, ""):
            return
        self._strange[lease.id] = strange
        if strange == CLOSE:
            self._mended(self._host.mend([lease.id]), CLOSE)
        elif strange:
            event, _, detail = strange.partition(": ")
            self._log(WARNING, event, lease=lease.id, name=lease.name, detail=detail)
            self._say(event, lease, detail or None)
            if link is None:
                self._mended(self._host.mend([lease.id]))
            elif event != "renamed" and self.loaded.config.watch.mend:
                self._mended(self._host.mend([lease.id], wiring=True))
        else:
            del self._strange[lease.id]
            if lease.state is State.ACTIVE:
                self._say("sound", lease)

    def _what_is_strange(self, lease: Lease, link: Link | None) -> str:
        if link is None:
            return "lost: somebody deleted the device"
        if link.name != lease.name:
            return f"renamed: it is called {link.name} now"
        if lease.state is not State.ACTIVE:
            return ""
        if lease.wiring.up and not link.up:
            return "down: somebody took it down"
        bridge = lease.wiring.bridge
        place = (lease.netns, bridge or "")
        if bridge is not None and link.master != self._bridges.get(place):
            if not self._host.joined(link, lease):
                return f"moved: it is not on bridge {bridge}"
            self._bridges[place] = link.master
        if lease.on_close and not link.carrier:
            return CLOSE
        return ""

    def _mended(self, mended: Iterable[Mended], reason: str | None = None) -> None:
        for lease, action in mended:
            self._metrics.add("recovered", action)
            self._log(INFO, "mended", lease=lease.id, name=lease.name, action=action)
            if action is not Action.REWIRE:
                self._let_go(lease.id)
            if action is Action.RELEASE:
                self._say("released", lease, reason or EXIT)
            elif action is Action.REPLANT:
                self._say("replanted", lease, "a placeholder holds the name")
            elif action is Action.CLOSE:
                self._say("ended", lease)

    # Helpers

    @property
    def _rules(self) -> tuple[policy.Rule, ...]:
        return self.loaded.config.allow

    def _permit_rule(self, caller: Caller, *needed: Need) -> None:
        self._permit(self._rules, caller, *needed)

    def _permit(
        self, rules: tuple[policy.Rule, ...], caller: Caller, *needed: Need
    ) -> None:
        if reason := policy.refusal(rules, caller, needed):
            self._metrics.add("refused", "policy")
            raise NotAllowed(reason)

    def _inside(self, netns: str) -> Host:
        """A Host of another namespace, for a moment: an open one cannot end."""
        return Host(self._ledger, netns=netns, reaper=lambda _: None)

    def _hold(self, lease: Lease) -> None:
        """Watch the process with which a lease ends."""
        if lease.process is None:
            return
        self._let_go(lease.id)
        self._holder[lease.id] = lease.process
        self._bound.setdefault(lease.process, set()).add(lease.id)
        self._watch(lease.process)

    def _let_go(self, id: str) -> None:
        holder = self._holder.pop(id, None)
        if holder is not None and holder in self._bound:
            self._bound[holder].discard(id)
            if not self._bound[holder]:
                del self._bound[holder]

    def _say(self, event: str, lease: Lease, detail: str | None = None) -> None:
        self._metrics.add("events", event)
        self._log(
            INFO,
            event,
            lease=lease.id,
            name=lease.name,
            owner=lease.owner or None,
            user=lease.user,
            detail=detail,
        )
        said = Event(
            round(time.time(), 3),
            event,
            lease.id,
            lease.name,
            lease.owner,
            lease.user,
            detail,
        )
        self._tell(said)


def _differences(host: Host, lease: Lease) -> tuple[interface.Difference, ...]:
    try:
        differ = host.differences(lease)
    except ServiceUnavailable as error:
        differ = {"service": str(error)}
    return tuple(interface.Difference(*one) for one in differ.items())


def _placed(leases: Sequence[Lease], total: int) -> tuple[Lease, ...]:
    """The leases with the places of their descriptors: first all of the devices, then
    those of vhost, if there are any."""
    placed: list[Lease] = []
    queues = sum(len(lease.fds) for lease in leases)
    at = 0
    for lease in leases:
        places = tuple(range(at, at + len(lease.fds)))
        more = tuple(queues + one for one in places) if total > queues else ()
        placed.append(lease._replace(fds=places, vhost=more))
        at += len(lease.fds)
    return tuple(placed)
