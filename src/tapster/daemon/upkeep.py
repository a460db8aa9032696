# SPDX-License-Identifier: Apache-2.0
"""What becomes of leases while nobody asks: FIN WAITs end, owners end, others act.

Everything here runs in the worker's thread, but for what says otherwise.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from tapster.daemon.log import INFO, WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.errors import HostError, TapsterError
from tapster.kernel import rtnl
from tapster.kernel.port import HERE
from tapster.kernel.watch import Changes
from tapster.model import Lease, Link, Netns, Process, State
from tapster.operations.decision import Action, Repair
from tapster.operations.operations import Operations
from tapster.operations.reap import REAP_BATCH
from tapster.rpc.interface import Event

EXIT = "the process that the lease was bound to has ended"
CLOSE = "nobody has the device open any more"
PATIENCE = 60.0
"""Seconds after which a namespace is looked for again that nobody could tell of."""


class Upkeep:
    """Ends what is to end, mends what others break, and says so."""

    def __init__(
        self,
        operations: Operations,
        metrics: Metrics,
        log: Log,
        *,
        tell: Callable[[Event], None],
        watch: Callable[[Process], None],
    ) -> None:
        """`tell` is told every event; `watch` is asked to call `ended` at a process's
        end. Both are called in the worker's thread."""
        self.reconnect = False
        """Whether a device that others took off its bridge is put back."""
        self.deadline: float | None = None
        """When the next FIN WAIT ends, on `CLOCK_BOOTTIME`: for any thread to read."""
        self._operations = operations
        self._metrics = metrics
        self._log = log
        self._tell = tell
        self._watch = watch
        self._bound: dict[Process, set[str]] = {}
        self._holder: dict[str, Process] = {}
        own = operations.context.namespace.netns
        self._followed = {own.cookie: (own, HERE)}
        """The namespaces in which we have devices, and what Watch calls them."""
        self._untold: dict[int, float] = {}
        """Namespaces of which nothing could be told, and when to ask again."""
        self._bridges: dict[tuple[int, str], int] = {}
        """The ifindex of each bridge of a namespace by its name, as it was last."""
        self._strange: dict[str, str] = {}
        """What is not as it should be, by lease: said once."""

    def reap(self) -> None:
        """End what is due, one batch: others wait."""
        self._operations.reap(limit=REAP_BATCH, on_reaped=self.reaped)

    def reaped(self, leases: Sequence[Lease]) -> None:
        self._metrics.add("reaped", by=len(leases))
        for lease in leases:
            self._strange.pop(lease.id, None)
            self.say("ended", lease)

    def look_ahead(self) -> None:
        """Find out when there is something to reap."""
        self.deadline = self._operations.reap.next_deadline()

    def recover(self) -> None:
        """Bring all into agreement, and watch what is to be watched."""
        for cookie, (netns, _) in list(self._followed.items()):
            self._forget_if_gone(cookie, netns)
        self._follow_all()  # before recover looks, so that nothing is missed between
        try:
            self._operations.recover(on_repaired=self.repairs)
        except TapsterError as error:
            self._log(WARNING, "not-recovered", error=error)
        leases = {lease.id: lease for lease in self._operations.look.leases()}
        self._strange = {id: one for id, one in self._strange.items() if id in leases}
        for lease in leases.values():
            if lease.state is not State.FIN_WAIT:
                self.hold(lease)

    def look_around(self) -> None:
        """See what others have leased in namespaces that are not followed yet."""
        for netns in self._follow_all():
            self._mend(self._leases_in(netns))

    # What others do

    def ended(self, over: Process) -> None:
        """A process has ended: so do the leases bound to it."""
        self._mend(sorted(self._bound.pop(over, ())), EXIT)

    def changed(self, changes: Changes) -> None:
        """Look at our devices among those that changed, as they were seen last."""
        for cookie, (netns, number) in list(self._followed.items()):
            said = changes.links.get(number, {})
            for lease in self._operations.look.at(netns, said):
                if lease.manager is not None or lease.state is State.RESERVED:
                    continue
                last = said[lease.ifindex]
                link = None if last is None else rtnl.link_of(last)
                try:
                    self._look_if_strange(lease, link)
                except TapsterError as error:
                    self._log(WARNING, "not-looked-at", lease=lease.id, error=error)
            if number in changes.over:
                self._forget_if_gone(cookie, netns)

    def follow(self, netns: Netns) -> bool:
        """See to it that Watch tells what happens in a namespace.

        True if it was not followed before, or is gone: look at what is leased there.
        """
        now = time.monotonic()
        if netns.cookie in self._followed or self._untold.get(netns.cookie, 0) > now:
            return False
        try:
            number = self._operations.look.number(netns)
        except HostError as error:
            self._untold[netns.cookie] = now + PATIENCE
            self._log(WARNING, "not-watched", netns=netns.path, error=error)
            return False
        self._untold.pop(netns.cookie, None)
        if number is not None:
            self._followed[netns.cookie] = netns, number
        return True

    def _follow_all(self) -> list[Netns]:
        """Follow every namespace that has leases; those of which `follow` is True."""
        return [
            netns for netns in self._operations.look.namespaces() if self.follow(netns)
        ]

    def _forget_if_gone(self, cookie: int, netns: Netns) -> None:
        """A namespace of its number has ended: it may be one that had it before."""
        told = True
        try:
            if self._operations.look.number(netns) is not None:
                return
        except HostError as error:
            self._log(WARNING, "not-told", netns=netns.path, error=error)
            told = False
        # What cannot be told or ended now `look_around` comes back to.
        del self._followed[cookie]
        for place in [one for one in self._bridges if one[0] == cookie]:
            del self._bridges[place]
        if told:
            self._mend(self._leases_in(netns))

    def _leases_in(self, netns: Netns) -> list[str]:
        where = (netns.boot, netns.cookie)
        return [
            lease.id
            for lease in self._operations.look.leases()
            if (lease.netns.boot, lease.netns.cookie) == where
        ]

    def _look_if_strange(self, lease: Lease, link: Link | None) -> None:
        # Most changes are our own, and it costs the kernel nothing to see so.
        if self._what_is_strange(lease, link) or lease.id in self._strange:
            self._look(lease, self._operations.look.device(lease))

    def _look(self, lease: Lease, link: Link | None) -> None:
        strange = self._what_is_strange(lease, link)
        if strange == self._strange.get(lease.id, ""):
            return
        self._strange[lease.id] = strange
        if strange == CLOSE:
            self._mend([lease.id], CLOSE)
        elif strange:
            event, _, detail = strange.partition(": ")
            self._log(WARNING, event, lease=lease.id, name=lease.name, detail=detail)
            self.say(event, lease, detail or None)
            if link is None:
                self._mend([lease.id])
            elif event != "renamed" and self.reconnect:
                self._mend([lease.id], wiring=True)
        else:
            del self._strange[lease.id]
            if lease.state is State.ACTIVE:
                self.say("sound", lease)

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
        place = (lease.netns.cookie, bridge or "")
        if bridge is not None and link.master != self._bridges.get(place):
            if not self._operations.look.joined(link, lease):
                return f"moved: it is not on bridge {bridge}"
            self._bridges[place] = link.master
        if lease.on_close and not link.carrier:
            return CLOSE
        return ""

    def _mend(
        self, ids: Sequence[str], reason: str | None = None, *, wiring: bool = False
    ) -> None:
        def told(repairs: Sequence[Repair]) -> None:
            self.repairs(repairs, reason)

        try:
            self._operations.recover.some(ids, wiring=wiring, on_repaired=told)
        except TapsterError as error:
            self._log(WARNING, "not-mended", leases=" ".join(ids), error=error)

    def repairs(self, repairs: Iterable[Repair], reason: str | None = None) -> None:
        for lease, action in repairs:
            self._metrics.add("recovered", action)
            self._log(INFO, "mended", lease=lease.id, name=lease.name, action=action)
            if action is not Action.REWIRE:
                self.let_go(lease.id)
            if action is Action.RELEASE:
                self.say("released", lease, reason or EXIT)
            elif action is Action.HOLD_NAME:
                self.say("replanted", lease, "a placeholder holds the name")
            elif action is Action.CLOSE:
                self._strange.pop(lease.id, None)
                self.say("ended", lease)

    def hold(self, lease: Lease) -> None:
        """Watch the process with which a lease ends."""
        if lease.process is None:
            return
        self.let_go(lease.id)
        self._holder[lease.id] = lease.process
        self._bound.setdefault(lease.process, set()).add(lease.id)
        self._watch(lease.process)

    def let_go(self, id: str) -> None:
        holder = self._holder.pop(id, None)
        if holder is not None and holder in self._bound:
            self._bound[holder].discard(id)
            if not self._bound[holder]:
                del self._bound[holder]

    def say(self, event: str, lease: Lease, detail: str | None = None) -> None:
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
        said = Event(
            round(time.time(), 3),
            event,
            lease.id,
            lease.name,
            lease.owner,
            lease.caller_uid,
            detail,
        )
        self._tell(said)
