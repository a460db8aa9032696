# SPDX-License-Identifier: Apache-2.0
"""The upkeep of leases: ends leases, and repairs what other programs change.

Everything here runs in the worker's thread, unless its docstring says otherwise.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from traceback import format_exception

from tapster.daemon.bound import BoundLeases
from tapster.daemon.log import INFO, WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.daemon.repairs import FIRST_RETRY, LAST_RETRY, Repairing, Repairs
from tapster.daemon.reports import EventReports
from tapster.daemon.turns import Turns
from tapster.errors import HostError, InternalError, NoSuchLease, TapsterError
from tapster.kernel.port import ALL, REDIRECTED, WatchReport
from tapster.model import Kind, Lease, Link, Mode, Netns, Process, State, host_mac
from tapster.operations.decision import Action, Repair
from tapster.operations.failures import Failures
from tapster.operations.followed import FollowedNamespaces
from tapster.operations.operations import Operations
from tapster.operations.pace import SECONDS, Pace
from tapster.rpc.interface import Event

EXIT = "the process that the lease was bound to has ended"
CLOSE = "nobody has the device open any more"
RULES = "another program deleted rules of its filter or limits; they are back"
RETURN = (
    "another program moved the device away and back; its filter and limits are back"
)
TAKEN_OFF = (
    "its MAC in the host was changed again and again: it is off its bridge for a minute"
)
ENTRY = "another program deleted its static entry from its bridge; it is back"
RECOVERING = Repairing(wiring=True, backends=True)
"""What recover does to each lease."""
LOOK_BATCH = 32
"""Reported devices that are compared with their leases in one piece of work."""
MOST_FOREIGN_MACS = 30
"""Foreign MACs of a user's devices in a minute. A user with more gets no new device."""
MOST_FRESH = 1000
"""New leases to keep until the first look at their devices."""
SWITCH_SECONDS = 10.0
"""Seconds between two looks at the ports of Open vSwitch: each reads all rows."""
PATROL = 8
"""Devices that one patrol looks at."""


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
        self._clock = clock
        self._bound = BoundLeases(watch_process, forget_process)
        self.bind = self._bound.bind
        self.report = EventReports(operations.context, metrics, log, on_event).report
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
        self._returned: set[str] = set()
        """The leases whose devices were in another namespace. The kernel takes queues
        and programs from a device that is moved, and reports none."""
        self._taken_off: set[str] = set()
        """The leases whose devices wait off their bridges: see `_take_off`."""
        self._worked_on: set[str] = set()
        """The leases to look at again: they changed while another manager worked on
        them, which may not have seen the change, or too often to be reported."""
        self._unrecovered = False
        """Whether the latest recover did not look at every lease."""
        self._patrolled = 0
        """Where the next patrol begins in the ledger's list of leases."""
        self._switched: dict[str, str] = {}
        """How ports of Open vSwitch differ from what their leases request, by lease."""
        self._on_switch: set[str] = set()
        """The leases with such a port that patrols have met."""
        self._next_switch = clock()
        """When to look at these ports again."""
        self._pace = Pace()
        """Of putting back a foreign MAC, alias or name."""
        self._foreign_macs = Pace(MOST_FOREIGN_MACS)
        """How often devices of each user had a foreign MAC."""
        self._told = Pace()
        """Of reporting changes of a device."""
        self._turns = Turns(submit, clock)
        self._repairs = Repairs(
            operations,
            self._turns,
            log,
            clock,
            on_repaired=self.report_repairs,
            on_done=self._repaired,
        )

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
        """Bring ledger and kernel into agreement, and watch what has leases.

        What fails is tried again later.
        """
        self._unrecovered = True
        self._fresh.clear()
        self._forget_ended(self._followed.others())
        # Follow first: then changes during recover are reported.
        self._followed.follow_all(self._operations.look)
        self._worked_on.update(
            lease.id for lease in self._operations.look.leases() if _is_worked_on(lease)
        )
        failures = Failures()
        failure: TapsterError | None = None
        recover = self._operations.recover
        try:
            self._operations.context.run(
                partial(recover, on_repaired=self.report_repairs, failures=failures)
            )
        except TapsterError as error:
            failure = error
            trace = format_exception(error) if isinstance(error, InternalError) else ()
            traceback = "".join(trace) or None
            self._log(WARNING, "not-recovered", error=error, traceback=traceback)
        leases = {lease.id: lease for lease in self._operations.look.leases()}
        if failure is not None:
            for id in failures.left(failure, [*leases]):
                self._repairs.add_later(id, RECOVERING, FIRST_RETRY)
        self._problems = {id: p for id, p in self._problems.items() if id in leases}
        self._returned.clear()
        for lease in leases.values():
            if lease.state is not State.FIN_WAIT:
                self.bind(lease)
        self._unrecovered = False
        self._turns.run()

    def retry(self) -> None:
        """Repair the leases whose retry is due; look at those that were worked on."""
        if self._unrecovered:
            self.recover()
        self._look_again()
        self._repairs.retry()
        self._turns.run()

    def restrict(self) -> None:
        """Take from users the right to open waiting taps that are closed by now."""
        self.report_repairs(self._operations.recover.restrict())

    @property
    def retries(self) -> int:
        """How many leases wait for a retry, and 1 if recover does. Any thread may read
        it."""
        return len(self._repairs) + len(self._worked_on) + self._unrecovered

    # Namespaces

    def follow_new_namespaces(self) -> None:
        """Follow namespaces in which other managers have acquired leases."""
        self._forget_ended(self._followed.suspects(soon=False))
        if found := self._followed.follow_all(self._operations.look):
            self._repairs.add(self._leases_in(found))
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
            self._repairs.add(self._leases_in(ended))

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
        settings of IPv4, by sysctl(8). A bridge is renamed without a report of its
        ports.
        """
        look = self._operations.look
        # First, so that what it finds is repaired with the rest.
        if self._on_switch and self._clock() >= self._next_switch:
            self._next_switch = self._clock() + SWITCH_SECONDS
            self._look_at_switch()
        leases, after = look.page(
            after=self._patrolled, limit=PATROL, caller_uid=None, all=False
        )
        self._patrolled = after or 0
        if after is None:
            self._forget_others()
        self._bridges.clear()  # one may have been renamed
        for lease in leases:
            if lease.wiring.in_force.ovs:
                self._on_switch.add(lease.id)
            if not _is_worked_on(lease):
                # The end of a device, or of its namespace, is reported.
                self._look_now(lease, if_there=True)
        self._turns.run()

    def _forget_others(self) -> None:
        """Forget the leases that have ended: another manager may have ended them."""
        leases = {lease.id for lease in self._operations.look.leases()}
        self._problems = {id: p for id, p in self._problems.items() if id in leases}
        self._returned &= leases
        self._taken_off &= leases
        self._bound.forget_others(leases)

    def _look_at_switch(self) -> None:
        """Compare the ports of Open vSwitch: the kernel does not report its changes."""
        look = self._operations.look
        leases = {
            lease.id: lease
            for lease in look.leases(all=False)
            if lease.wiring.in_force.ovs and not _is_worked_on(lease)
        }
        self._on_switch &= leases.keys()
        try:
            found = look.some_differences(leases.values())
        except TapsterError:
            return  # an acquire, or recover, says so
        former = self._switched
        self._switched = {
            id: parts["ovs"] for id, parts in found.items() if "ovs" in parts
        }
        for id in former.keys() | self._switched.keys():
            try:
                same = look.lease(id) == leases.get(id)
            except NoSuchLease:
                same = False
            if same:
                self._look_now(leases[id], if_there=True)
            else:  # the lease has changed since the look at the switch
                self._switched.pop(id, None)

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
            self._repairs.add(attached, Repairing(RULES, wiring=True, backends=True))

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
        self._repairs.add(lost, Repairing(ENTRY, wiring=True))

    def _look_if_suspicious(self, lease: Lease, link: Link | None) -> None:
        # Tapster itself makes most changes. Their reports show no problem, so the
        # kernel need not be asked.
        if self._problem_of(lease, link) or lease.id in self._problems:
            self._look(lease, self._operations.look.device(lease))

    def _look(self, lease: Lease, link: Link | None) -> None:
        if link is not None and lease.id in self._taken_off:
            if lease.state is State.ACTIVE and lease.id in self._repairs:
                if _has_foreign_mac(lease, link):  # a repair was under way
                    self._take_off(lease)
                return
            self._taken_off.discard(lease.id)
        problem = self._problem_of(lease, link)
        if link is not None and not problem and lease.state is State.ACTIVE:
            unreported = self._operations.look.unreported(
                lease, link
            ) or self._switched.get(lease.id)
            problem = f"changed: {unreported}" if unreported else ""
        former = self._problems.get(lease.id, "")
        if problem == former:
            # It may have been changed again before it was looked at, or could not be
            # restored before, as the MTU of a macvtap above a smaller one.
            changed = link if problem.startswith("changed: ") else None
            if changed is not None and lease.id not in self._repairs:
                self._restore(lease, changed)
            return
        if link is not None and former.startswith("lost: "):
            self._returned.add(lease.id)
        # A guest's VMM can change its tap without end, and each report is logged and
        # kept. A device that is lost or closed stays so.
        lasts = problem in ("", CLOSE) or link is None
        if not lasts and not self._told.allows(lease.id, self._clock()):
            self._worked_on.add(lease.id)
            return
        self._problems[lease.id] = problem
        if problem == CLOSE:
            self._repairs.add([lease.id], Repairing(CLOSE))
        elif problem:
            event, _, detail = problem.partition(": ")
            self._log(WARNING, event, lease=lease.id, name=lease.name, detail=detail)
            self.report(event, lease, detail or None)
            if link is None:
                self._repairs.add([lease.id])
            elif event == "changed":
                self._restore(lease, link)
            elif event == "renamed":
                if self.reconnect and lease.state is State.ACTIVE:
                    self._answer(lease)
            elif self.reconnect:
                self._repairs.add([lease.id], self._reconnecting(lease))
        else:
            if lease.id in self._returned:
                self._repairs.add([lease.id], self._reconnecting(lease))
            del self._problems[lease.id]
            if lease.state is State.ACTIVE:
                self.report("sound", lease)

    def _reconnecting(self, lease: Lease) -> Repairing:
        """Return how to repair what a device is connected to."""
        if lease.id not in self._returned:
            return Repairing(wiring=True, backends=lease.id in self._switched)
        self._returned.remove(lease.id)
        return Repairing(RETURN, wiring=True, backends=True)

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
            or (self.reconnect and lease.id in self._switched)
        ):
            self._answer(lease, foreign_mac=_has_foreign_mac(lease, link))

    def _answer(self, lease: Lease, *, foreign_mac: bool = False) -> None:
        """Restore what another program changed, but not again and again at once."""
        how = self._reconnecting(lease)
        if foreign_mac:
            self._count_foreign_mac(lease)
        if foreign_mac and self._pace.is_spent(lease.id, self._clock()):
            self._taken_off.add(lease.id)
            self._repairs.add_later(lease.id, how, SECONDS)
            self._take_off(lease)
            self.report("moved", lease, TAKEN_OFF)
        elif self._pace.allows(lease.id, self._clock()):
            self._repairs.add([lease.id], how)
        else:
            self._repairs.add_later(lease.id, how, FIRST_RETRY)

    def look_before_end(self, lease: Lease) -> None:
        """Count a foreign MAC of a device whose lease is about to end.

        The device may be gone before `look_at` looks at it.
        """
        with suppress(TapsterError):
            link = self._operations.look.device(lease)
            if link is not None and _has_foreign_mac(lease, link):
                self._count_foreign_mac(lease)

    def _count_foreign_mac(self, lease: Lease) -> None:
        self._foreign_macs.allows(str(lease.caller_uid), self._clock())

    def may_acquire(self, uid: int) -> bool:
        """Return whether a user may have new devices.

        With new devices, a user whose processes change MACs could keep a bridge from
        another VM, although each device is taken off.
        """
        return not self._foreign_macs.is_spent(str(uid), self._clock())

    def is_taken_off(self, id: str) -> bool:
        """Return whether a device is off its bridge, since its MAC changes without
        end."""
        return id in self._taken_off and id in self._repairs

    def _take_off(self, lease: Lease) -> None:
        """Take a device off its bridge: its MAC changes without end.

        The process that has a tap open needs no privilege to change its MAC in the
        host. While that is another VM's, the bridge delivers that VM's frames to the
        host. To put it back each time is too slow.
        """
        try:
            self._operations.rewire.take_off(lease.id)
        except TapsterError as error:
            self._log(WARNING, "not-taken-off", lease=lease.id, error=error)

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
        ended = lease.process is not None and not self._bound.watches(lease.process)
        if (lease.on_close or ended) and not link.open:
            return CLOSE
        return ""

    def _repaired(self, ids: Sequence[str], what: Repairing) -> None:
        """Look at what a repair that was done may have left."""
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
                    self._repairs.add_later(id, what, LAST_RETRY)

    def report_repairs(
        self, repairs: Iterable[Repair], reason: str | None = None
    ) -> None:
        """Report repairs of leases. `reason` says why a lease was released."""
        for lease, action in repairs:
            self._metrics.add("recovered", action)
            self._switched.pop(lease.id, None)
            if self._problems.get(lease.id, "").startswith("changed: "):
                # With another VM's MAC it had taken that VM's entry in the bridge.
                self._repairs.hasten(ENTRY)
            self._log(INFO, "repaired", lease=lease.id, name=lease.name, action=action)
            if action is not Action.REWIRE:
                self._bound.unbind(lease.id)
            elif reason in (RULES, ENTRY, RETURN):
                self.report("restored", lease, reason)
            if action is Action.RELEASE:
                why = reason or (CLOSE if lease.process is None else EXIT)
                self.report("released", lease, why)
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
        self._bound.unbind(lease.id)
        if lease.state is State.ACTIVE:
            self.report("released", lease, reason)

    def processes_ended(self, processes: Iterable[Process]) -> None:
        """Release the leases that were bound to processes, which have ended."""
        for process in processes:
            ids = self._bound.take(process)
            for id in ids:
                with suppress(TapsterError):
                    self.look_before_end(self._operations.look.lease(id))
            self._repairs.add(ids, Repairing(EXIT))
        self._turns.run()


def _has_foreign_mac(lease: Lease, link: Link) -> bool:
    """Return whether a device gets frames for another MAC than its own."""
    if lease.kind is Kind.TAP:
        return link.master != 0 and link.mac != host_mac(lease.mac)
    return link.up and link.mac != lease.mac and lease.mode is not Mode.PASSTHRU


def _is_worked_on(lease: Lease) -> bool:
    return lease.manager is not None or lease.state is State.RESERVED


def _printable(name: str) -> str:
    """Return a name that another program chose, without characters that move a
    cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
