# SPDX-License-Identifier: Apache-2.0
"""What becomes of leases while nobody asks: FIN WAITs end, owners end, others act.

Everything here runs in the worker's thread, but for what says otherwise.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from tapster.daemon.log import INFO, WARNING, Log
from tapster.daemon.metrics import Metrics
from tapster.errors import ConflictError, HostError
from tapster.host import Host
from tapster.interface import Event
from tapster.kernel.port import HERE
from tapster.kernel.watch import Changes
from tapster.lifecycle import Action, Mended
from tapster.mending import REAP_BATCH
from tapster.model import Lease, Link, Netns, Process, State

EXIT = "the process that the lease was bound to has ended"
CLOSE = "nobody has the device open any more"


class Upkeep:
    """Ends what is to end, mends what others break, and says so."""

    def __init__(
        self,
        host: Host,
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
        self._host = host
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

    def reap(self) -> None:
        """End what is due, one batch: others wait."""
        self._host.reap(limit=REAP_BATCH, told=self.reaped)

    def reaped(self, leases: Sequence[Lease]) -> None:
        self._metrics.add("reaped", by=len(leases))
        for lease in leases:
            self._strange.pop(lease.id, None)
            self.say("ended", lease)

    def look_ahead(self) -> None:
        """Find out when there is something to reap."""
        self.deadline = self._host.next_deadline()

    def recover(self) -> None:
        """Bring all into agreement, and watch what is to be watched."""
        try:
            self.mended(self._host.recover())
        except (HostError, ConflictError) as error:
            self._log(WARNING, "not-recovered", error=error)
        for lease in self._host.leases():
            self.follow(lease.netns)
            if lease.state is not State.FIN_WAIT:
                self.hold(lease)

    # What others do

    def ended(self, over: Process) -> None:
        """A process has ended: so do the leases bound to it."""
        self.mended(self._host.mend(sorted(self._bound.pop(over, ()))), EXIT)

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

    def follow(self, netns: Netns) -> None:
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
        self.mended(self._host.mend(leases))

    def _look(self, lease: Lease, link: Link | None) -> None:
        strange = self._what_is_strange(lease, link)
        if strange == self._strange.get(lease.id, ""):
            return
        self._strange[lease.id] = strange
        if strange == CLOSE:
            self.mended(self._host.mend([lease.id]), CLOSE)
        elif strange:
            event, _, detail = strange.partition(": ")
            self._log(WARNING, event, lease=lease.id, name=lease.name, detail=detail)
            self.say(event, lease, detail or None)
            if link is None:
                self.mended(self._host.mend([lease.id]))
            elif event != "renamed" and self.reconnect:
                self.mended(self._host.mend([lease.id], wiring=True))
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
        place = (lease.netns, bridge or "")
        if bridge is not None and link.master != self._bridges.get(place):
            if not self._host.joined(link, lease):
                return f"moved: it is not on bridge {bridge}"
            self._bridges[place] = link.master
        if lease.on_close and not link.carrier:
            return CLOSE
        return ""

    def mended(self, mended: Iterable[Mended], reason: str | None = None) -> None:
        for lease, action in mended:
            self._metrics.add("recovered", action)
            self._log(INFO, "mended", lease=lease.id, name=lease.name, action=action)
            if action is not Action.REWIRE:
                self.let_go(lease.id)
            if action is Action.RELEASE:
                self.say("released", lease, reason or EXIT)
            elif action is Action.REPLANT:
                self.say("replanted", lease, "a placeholder holds the name")
            elif action is Action.CLOSE:
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
