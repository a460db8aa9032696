# SPDX-License-Identifier: Apache-2.0
"""The upkeep of leases: ends leases, and repairs what other programs change.

Everything here runs in the worker's thread, unless its docstring says otherwise.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from tapster.daemon.log import INFO, WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.turns import Turns
from tapster.errors import HostError, LedgerError, NoSuchLease, TapsterError
from tapster.kernel.port import ALL, REDIRECTED, WatchReport
from tapster.light import NamedTuple
from tapster.model import HistoryEvent, Lease, Link, Netns, Process, State
from tapster.operations.decision import Action, Repair
from tapster.operations.followed import FollowedNamespaces
from tapster.operations.operations import Operations
from tapster.operations.pace import Pace
from tapster.rpc.interface import Event, event_of

EXIT = "the process that the lease was bound to has ended"
CLOSE = "nobody has the device open any more"
RULES = "another program deleted rules of its filter or limits; they are back"
ENTRY = "another program deleted its static entry from its bridge; it is back"
FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until a repair that failed is tried again. The wait doubles from the first
value to the last."""

LOOK_BATCH = 32
"""Reported devices that are compared with their leases in one piece of work."""
MOST_FRESH = 1000
"""New leases to keep until the first look at their devices."""
PATROL = 8
"""Devices that one patrol looks at."""
REPAIR_BATCH = 8
"""Leases that are repaired in one piece of work: each takes about a millisecond."""


class Repairing(NamedTuple):
    """What is to be repaired of some leases, and why."""

    reason: str | None = None
    wiring: bool = False
    backends: bool = False
    """As in `Recover.some`."""

    @property
    def batch(self) -> int | None:
        """How many leases are repaired in one piece of work; None for all.

        One transaction restores the rules of all leases, and a list of a table takes
        as long for one lease as for all.
        """
        return None if self.backends else REPAIR_BATCH


PLAIN = Repairing()


class Retry(NamedTuple):
    """A lease whose repair failed, and when to try again."""

    when: float
    wait: float
    """Seconds between the previous attempt and this attempt."""
    what: Repairing


LIFE = ("acquired", "released", "ended", "restored")
"""Events that the history already records: of leases, and of repairs as `repaired`."""


class Upkeep:
    """Ends leases, repairs devices, and reports both as events."""

    def __init__(
        self,
        operations: Operations,
        metrics: Metrics,
        log: Log,
        *,
        on_event: Callable[[Event], None],
        watch_process: Callable[[Process], None],
        forget_process: Callable[[Process], None],
        submit: Callable[[Callable[[], object]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_event` gets every event. `watch_process` requests a call of
        `processes_ended` at the end of a process; `forget_process` cancels the request.
        `submit` hands a job to the worker. All four are called in the worker's
        thread."""
        self.reconnect = False
        """Whether to restore a device that another program took down, took off its
        bridge, renamed, or changed in another property."""
        self.deadline: float | None = None
        """When the next FIN WAIT ends, on `CLOCK_BOOTTIME`. Any thread may read it."""
        self._operations = operations
        self._metrics = metrics
        self._log = log
        self._on_event = on_event
        self._watch_process = watch_process
        self._forget_process = forget_process
        self._clock = clock
        self._bound: dict[Process, set[str]] = {}
        """The leases that end with each watched process."""
        self._process_of: dict[str, Process] = {}
        self._followed = FollowedNamespaces(
            operations.context.namespace.netns, self._doubt, clock
        )
        self._fresh: dict[tuple[int, int], Lease] = {}
        """The leases that this daemon has acquired, until the first look at their
        devices, by the cookie of their namespace and their ifindex."""
        self._bridges: dict[tuple[int, str], int] = {}
        """The last known ifindex of each bridge, by the cookie of its namespace and by
        its name."""
        self._problems: dict[str, str] = {}
        """The reported problem of each device, by lease, so that it is reported
        once."""
        self._retries: dict[str, Retry] = {}
        self._worked_on: set[str] = set()
        """The leases to look at again: they changed while another manager worked on
        them, which may not have seen the change, or too often to be reported."""
        self._patrolled = 0
        """Where the next patrol begins in the ledger's list of leases."""
        self._pace = Pace()
        """Of putting back a foreign MAC, alias or name."""
        self._told = Pace()
        """Of reporting changes of a device."""
        self._turns = Turns(submit, clock)
        self._repairing: dict[Repairing, list[str]] = {}
        """The leases that wait for their repair."""

    # Deadlines

    def reap(self, batch: int) -> None:
        """End one batch of leases whose FIN WAIT is over. Calls can run between two
        batches."""
        self._operations.reap(limit=batch, on_reaped=self.report_reaped)

    def report_reaped(self, leases: Sequence[Lease]) -> None:
        """Report leases whose FIN WAIT has been ended."""
        self._metrics.add("reaped", by=len(leases))
        for lease in leases:
            self._problems.pop(lease.id, None)
            self.report("ended", lease)

    def find_deadline(self) -> bool:
        """Find out when the next FIN WAIT ends; say whether that has changed."""
        before, self.deadline = self.deadline, self._operations.reap.next_deadline()
        return self.deadline != before

    # Agreement of ledger and kernel

    def recover(self) -> None:
        """Bring ledger and kernel into agreement, and watch what has leases."""
        self._fresh.clear()
        self._forget_ended(self._followed.others())
        # Follow first: then changes during recover are reported.
        self._followed.follow_all(self._operations.look)
        self._worked_on.update(
            lease.id for lease in self._operations.look.leases() if _is_worked_on(lease)
        )
        try:
            self._operations.recover(on_repaired=self.report_repairs)
        except TapsterError as error:
            self._log(WARNING, "not-recovered", error=error)
        leases = {lease.id: lease for lease in self._operations.look.leases()}
        self._problems = {id: p for id, p in self._problems.items() if id in leases}
        for lease in leases.values():
            if lease.state is not State.FIN_WAIT:
                self.bind(lease)
        self._turns.run()

    def retry(self) -> None:
        """Repair the leases whose retry is due; look at those that were worked on."""
        self._look_again()
        now = self._clock()
        for id, retry in list(self._retries.items()):
            if retry.when <= now:
                self._repair([id], retry.what)
        self._turns.run()

    def restrict(self) -> None:
        """Take from users the right to open waiting taps that are closed by now."""
        self.report_repairs(self._operations.recover.restrict())

    @property
    def retries(self) -> int:
        """How many leases wait for a retry. Any thread may read it."""
        return len(self._retries) + len(self._worked_on)

    # Namespaces

    def follow_new_namespaces(self) -> None:
        """Follow namespaces in which other managers have acquired leases."""
        self._forget_ended(self._followed.suspects(soon=False))
        if found := self._followed.follow_all(self._operations.look):
            self._repair(self._leases_in(found))
        self._turns.run()

    def follow(self, netns: Netns) -> bool:
        """As `FollowedNamespaces.follow`."""
        return self._followed.follow(self._operations.look, netns)

    def _doubt(self, event: str, netns: Netns, error: HostError) -> None:
        self._log(WARNING, event, netns=netns.path, error=error)

    def _forget_ended(self, suspects: Collection[Netns]) -> None:
        """Stop following those namespaces that have ended, and repair their leases."""
        if not suspects:
            return
        ended = self._followed.forget_ended(self._operations.look, suspects)
        self._bridges = {
            place: ifindex
            for place, ifindex in self._bridges.items()
            if place[0] in self._followed
        }
        if ended:
            self._repair(self._leases_in(ended))

    def _leases_in(self, netnses: Iterable[Netns]) -> list[str]:
        where = {(netns.boot, netns.cookie) for netns in netnses}
        return [
            lease.id
            for lease in self._operations.look.leases()
            if (lease.netns.boot, lease.netns.cookie) in where
        ]

    # Devices

    def look_at(self, changes: WatchReport) -> None:
        """Compare the reported devices with their leases."""
        ended: list[Netns] = []
        for netns, number in self._followed.numbered():
            links = [*changes.links.get(number, {}).items()]
            for start in range(0, len(links), LOOK_BATCH):
                batch = dict(links[start : start + LOOK_BATCH])
                self._turns.add(partial(self._look_at_links, netns, batch))
            if rules := changes.rules.get(number):
                self._look_at_rules(netns, rules)
            if ports := changes.entries.get(number):
                self._look_at_entries(netns, ports)
            if number in changes.ended:
                ended.append(netns)
        self._followed.suspect(ended)
        self._forget_ended(self._followed.suspects(soon=True))
        self._turns.run()

    def _look_at_links(
        self, netns: Netns, links: Mapping[int, Callable[[], Link] | None]
    ) -> None:
        # An acquire makes its device change a dozen times. Its first look needs no row.
        others = [
            number for number in links if not self._is_fresh(netns, number, links)
        ]
        for lease in self._operations.look.at(netns, others):
            if _is_worked_on(lease):
                self._worked_on.add(lease.id)
                continue
            decode = links[lease.ifindex]
            try:
                self._look_if_suspicious(lease, decode and decode())
            except TapsterError as error:
                self._log(WARNING, "not-looked-at", lease=lease.id, error=error)

    def _is_fresh(
        self,
        netns: Netns,
        ifindex: int,
        links: Mapping[int, Callable[[], Link] | None],
    ) -> bool:
        """Return whether a device is as its acquire has left it.

        Whoever changes the lease changes the device afterwards, and that is reported.
        """
        lease = self._fresh.pop((netns.cookie, ifindex), None)
        decode = links[ifindex]
        if lease is None or decode is None:
            return False
        with suppress(TapsterError):
            return not self._problem_of(lease, decode())
        return False

    def _look_again(self) -> None:
        """Look at the devices that were not looked at when they changed."""
        worked_on, self._worked_on = self._worked_on, set()
        for id in worked_on:
            try:
                lease = self._operations.look.lease(id)
            except NoSuchLease:
                continue
            except TapsterError as error:
                self._log(WARNING, "not-looked-at", lease=id, error=error)
                continue
            if _is_worked_on(lease):
                self._worked_on.add(id)
            else:
                self._look_now(lease)

    def patrol(self) -> None:
        """Look at the next few devices, for what the kernel reports to nobody.

        A port's properties, VLANs and static entry may be changed so, by bridge(8), and
        settings of IPv4, by sysctl(8).
        """
        look = self._operations.look
        leases, after = look.page(
            after=self._patrolled, limit=PATROL, caller_uid=None, all=False
        )
        self._patrolled = after or 0
        for lease in leases:
            if not _is_worked_on(lease):
                # The end of a device, or of its namespace, is reported.
                self._look_now(lease, if_there=True)
                self._repair_again(lease)
        self._turns.run()

    def _repair_again(self, lease: Lease) -> None:
        """Repair what could not be repaired when it was found.

        As the MTU of a macvtap, which is at most its lower device's.
        """
        found = self._problems.get(lease.id, "").startswith("changed: ")
        if self.reconnect and found and lease.id not in self._retries:
            self._repair([lease.id], Repairing(wiring=True))

    def _look_now(self, lease: Lease, *, if_there: bool = False) -> None:
        try:
            link = self._operations.look.device(lease)
            if link is not None or not if_there:
                self._look(lease, link)
        except TapsterError as error:
            self._log(WARNING, "not-looked-at", lease=lease.id, error=error)

    def _look_at_rules(self, netns: Netns, ifindexes: set[int]) -> None:
        """Put back what another program took of filters and limits.

        Unlike a port that leaves its bridge, a filter that is gone is put back whatever
        the configuration says: guests may send forged frames until then.
        """
        leases = (
            [lease for lease in self._operations.look.leases() if lease.netns == netns]
            if ALL in ifindexes
            else self._operations.look.at(netns, ifindexes - {REDIRECTED})
        )
        if REDIRECTED in ifindexes:
            leases += self._operations.look.redirected(netns)
        attached = [
            lease.id
            for lease in leases
            if lease.state is State.ACTIVE and lease.manager is None and lease.backends
        ]
        if attached:
            self._repair(attached, Repairing(RULES, wiring=True, backends=True))

    def _look_at_entries(self, netns: Netns, ports: set[int]) -> None:
        """Put back the static entries that another program took from a bridge.

        Without it, the guest gets no unicast frames, and another may take its MAC. A
        port that has left its bridge has no entry there.
        """
        look = self._operations.look
        lost = []
        for lease in look.at(netns, ports):
            if lease.state is not State.ACTIVE or _is_worked_on(lease):
                continue
            try:
                link = look.device(lease)
                if link is not None and link.up and look.joined(link, lease):
                    lost.append(lease.id)
            except TapsterError as error:
                self._log(WARNING, "not-looked-at", lease=lease.id, error=error)
        self._repair(lost, Repairing(ENTRY, wiring=True))

    def _look_if_suspicious(self, lease: Lease, link: Link | None) -> None:
        # Tapster itself makes most changes. Their reports show no problem, so the
        # kernel need not be asked.
        if self._problem_of(lease, link) or lease.id in self._problems:
            self._look(lease, self._operations.look.device(lease))

    def _look(self, lease: Lease, link: Link | None) -> None:
        problem = self._problem_of(lease, link)
        if link is not None and not problem and lease.state is State.ACTIVE:
            unreported = self._operations.look.unreported(lease, link)
            problem = f"changed: {unreported}" if unreported else ""
        if problem == self._problems.get(lease.id, ""):
            return
        # A guest's VMM can change its tap without end, and each report is logged and
        # kept. A device that is lost or closed stays so.
        lasts = problem in ("", CLOSE) or link is None
        if not lasts and not self._told.allows(lease.id, self._clock()):
            self._worked_on.add(lease.id)
            return
        self._problems[lease.id] = problem
        if problem == CLOSE:
            self._repair([lease.id], Repairing(CLOSE))
        elif problem:
            event, _, detail = problem.partition(": ")
            self._log(WARNING, event, lease=lease.id, name=lease.name, detail=detail)
            self.report(event, lease, detail or None)
            if link is None:
                self._repair([lease.id])
            elif event == "changed":
                self._restore(lease, link)
            elif event == "renamed":
                if self.reconnect and lease.state is State.ACTIVE:
                    self._answer(lease)
            elif self.reconnect:
                self._repair([lease.id], Repairing(wiring=True))
        else:
            del self._problems[lease.id]
            if lease.state is State.ACTIVE:
                self.report("sound", lease)

    def _restore(self, lease: Lease, link: Link) -> None:
        """Put back what was changed: a foreign MAC or alias in any case.

        With another VM's MAC in the host, a bridge delivers that VM's frames to the
        host, so the configuration is not asked. Neither is it for a static entry: see
        `_look_at_entries`.
        """
        look = self._operations.look
        if (
            look.misidentified(lease, link)
            or look.lacks_entry(lease, link)
            or (self.reconnect and look.changed(lease, link))
            or (self.reconnect and look.unreported(lease, link))
        ):
            self._answer(lease)

    def _answer(self, lease: Lease) -> None:
        """Restore what another program changed, but not again and again at once."""
        now = self._clock()
        if self._pace.allows(lease.id, now):
            self._repair([lease.id], Repairing(wiring=True))
        else:
            retry = Retry(now + FIRST_RETRY, FIRST_RETRY, Repairing(wiring=True))
            self._retries.setdefault(lease.id, retry)

    def _problem_of(self, lease: Lease, link: Link | None) -> str:
        """Return what is wrong with a lease's device, as an event and its detail, or
        ""."""
        if link is None:
            return (
                "lost: another program deleted the device, or moved it to another "
                "network namespace"
            )
        if link.name != lease.name:
            return f"renamed: the device is called {_printable(link.name)} now"
        if lease.state is not State.ACTIVE:
            return ""
        wiring = lease.wiring.in_force
        if wiring.up and not link.up:
            return "down: another program took the device down"
        bridge = wiring.bridge
        place = (lease.netns.cookie, bridge or "")
        if bridge is not None and link.master != self._bridges.get(place):
            if not self._operations.look.joined(link, lease):
                return f"moved: the device is not on bridge {bridge}"
            self._bridges[place] = link.master
        look = self._operations.look
        changed = (
            look.misidentified(lease, link)
            or look.beyond_repair(lease, link)
            or look.changed(lease, link)
        )
        if changed:
            return f"changed: {_printable(str(changed))}"
        # A lease whose process has ended lasts until its tap is closed.
        ended = lease.process is not None and lease.process not in self._bound
        if (lease.on_close or ended) and not link.open:
            return CLOSE
        return ""

    def _repair(self, ids: Sequence[str], what: Repairing = PLAIN) -> None:
        """Repair these leases when it is their turn; try again if that fails."""
        waiting = self._repairing.setdefault(what, [])
        if ids and not waiting:
            self._turns.add(partial(self._repair_batch, what))
        waiting += ids

    def _repair_batch(self, what: Repairing) -> None:
        """Repair the next of the leases that wait."""
        waiting = self._repairing.pop(what)
        self._repair(waiting[len(waiting[: what.batch]) :], what)
        ids = [*dict.fromkeys(waiting[: what.batch])]

        def report(repairs: Sequence[Repair]) -> None:
            self.report_repairs(repairs, what.reason)

        try:
            self._operations.recover.some(
                ids, wiring=what.wiring, backends=what.backends, on_repaired=report
            )
        except TapsterError as error:
            self._log(WARNING, "not-repaired", leases=" ".join(ids), error=error)
            for id in ids:
                last = self._retries.get(id)
                wait = min(2 * last.wait, LAST_RETRY) if last else FIRST_RETRY
                self._retries[id] = Retry(self._clock() + wait, wait, what)
        else:
            for id in ids:
                self._retries.pop(id, None)
            if what.reason == EXIT:
                self._follow_holders(ids)
            if what.reason in (EXIT, CLOSE):
                self._look_later(ids, what)

    def _follow_holders(self, ids: Sequence[str]) -> None:
        """Watch the processes that go on with the macvtaps of ended ones."""
        with self._operations.context.gate:
            for id in ids:
                lease = self._operations.context.ledger.lease(id)
                if lease is not None and lease.state is State.ACTIVE:
                    self.bind(lease)

    def _look_later(self, ids: Sequence[str], what: Repairing) -> None:
        """Try again to end leases whose taps are open, and have no carrier.

        The kernel does not report the close of such a tap.
        """
        for id in ids:
            with suppress(TapsterError):
                lease = self._operations.look.lease(id)
                link = self._operations.look.device(lease)
                if lease.state is State.ACTIVE and link is not None and not link.open:
                    when = self._clock() + LAST_RETRY
                    self._retries[id] = Retry(when, LAST_RETRY, what)

    def report_repairs(
        self, repairs: Iterable[Repair], reason: str | None = None
    ) -> None:
        """Report repairs of leases. `reason` says why a lease was released."""
        for lease, action in repairs:
            self._metrics.add("recovered", action)
            self._log(INFO, "repaired", lease=lease.id, name=lease.name, action=action)
            if action is not Action.REWIRE:
                self.unbind(lease.id)
            elif reason in (RULES, ENTRY):
                self.report("restored", lease, reason)
            if action is Action.RELEASE:
                self.report("released", lease, reason or EXIT)
                if lease.fin_wait == 0:
                    self.report("ended", lease)
            elif action is Action.HOLD_NAME:
                if lease.fin_wait == 0:
                    self.report("ended", lease)
                else:
                    self.report("held", lease, "a placeholder holds the name")
            elif action is Action.CLOSE:
                self._problems.pop(lease.id, None)
                self.report("ended", lease)

    # Processes

    def acquired(self, lease: Lease) -> None:
        """Watch over a lease that this daemon has acquired, and report it."""
        if len(self._fresh) >= MOST_FRESH:  # no watch reports their namespace
            self._fresh.clear()
        self._fresh[lease.netns.cookie, lease.ifindex] = lease
        self.bind(lease)
        self.report("acquired", lease)

    def released(self, lease: Lease, reason: str | None) -> None:
        """Report that a lease has been released. `lease` has its former values."""
        self._fresh.pop((lease.netns.cookie, lease.ifindex), None)
        self.unbind(lease.id)
        if lease.state is State.ACTIVE:
            self.report("released", lease, reason)

    def processes_ended(self, processes: Iterable[Process]) -> None:
        """Release the leases that were bound to processes, which have ended."""
        for process in processes:
            self._repair(sorted(self._bound.pop(process, ())), Repairing(EXIT))
        self._turns.run()

    def bind(self, lease: Lease) -> None:
        """Watch the process that a lease is bound to, and no other process for this
        lease."""
        if self._process_of.get(lease.id) == lease.process:
            return
        self.unbind(lease.id)
        if lease.process is None:
            return
        self._process_of[lease.id] = lease.process
        self._bound.setdefault(lease.process, set()).add(lease.id)
        self._watch_process(lease.process)

    def unbind(self, id: str) -> None:
        """Watch no process for this lease any more."""
        process = self._process_of.pop(id, None)
        if process is not None and process in self._bound:
            self._bound[process].discard(id)
            if not self._bound[process]:
                del self._bound[process]
                self._forget_process(process)

    # Events

    def report(self, event: str, lease: Lease, detail: str | None = None) -> None:
        """Count an event, log it, and send it to the clients that watch."""
        self._metrics.add("events", event)
        self._log(
            INFO,
            event,
            lease=lease.id,
            name=lease.name,
            owner=lease.owner or None,
            caller_uid=lease.caller_uid,
            detail=detail,
        )
        reported = event_of(lease, time.time(), event, detail)
        self._on_event(reported)
        if event not in LIFE:
            self._record(reported, lease)

    def _record(self, event: Event, lease: Lease) -> None:
        """Record an event in the history. A full disk loses the event, not the
        daemon."""
        kept = HistoryEvent(
            event.time,
            event.event,
            lease.id,
            lease.name,
            lease.owner,
            lease.caller_uid,
            event.detail or "",
        )
        with suppress(LedgerError), self._operations.context.gate:
            self._operations.context.ledger.record_event(kept)


def _is_worked_on(lease: Lease) -> bool:
    return lease.manager is not None or lease.state is State.RESERVED


def _printable(name: str) -> str:
    """Return a name that another program chose, without characters that move a
    cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
