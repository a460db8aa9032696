# SPDX-License-Identifier: Apache-2.0
"""Look: read leases, their devices and their history. Changes nothing."""

from tapster.backends import bridge
from tapster.errors import HostError, NoSuchLease, RequestError
from tapster.light import Collection, Iterable, Iterator, Sequence, suppress
from tapster.model import (
    EventQuery,
    HistoryEntry,
    HistoryEvent,
    HistoryQuery,
    Lease,
    Life,
    Link,
    Netns,
    State,
    by_namespace,
    check_query,
)
from tapster.operations import decision
from tapster.operations.context import Context
from tapster.operations.decision import Unrestored
from tapster.operations.devices import RENAMED, TAP, Devices, Differences
from tapster.operations.failures import Failures

CLOCK_SLACK = 1.0
"""Seconds by which a time may seem to be in the future: it was read from a clock before
the clock was read here."""


class Look:
    """What can be read."""

    def __init__(self, context: Context, devices: Devices) -> None:
        self.context = context
        self.devices = devices

    # Leases

    def leases(self, *, all: bool = True) -> list[Lease]:
        """Return every lease, oldest first; without those in FIN WAIT if not `all`."""
        with self.context.gate:
            return self.context.ledger.leases(all=all)

    def lease(self, id: str) -> Lease:
        """Return the lease with this id. Raises NoSuchLease."""
        with self.context.gate:
            if lease := self.context.ledger.lease(id):
                return lease
        raise NoSuchLease(f"no lease has the id {id!r}", reference=id)

    def find(
        self,
        name_or_id: str,
        owner: str | None = None,
        *,
        caller_uid: int | None = None,
    ) -> Lease:
        """Return the lease with this id, or with this name here, or else anywhere.

        Only of this owner, and of this user id, if given. "Here" is the namespace in
        which devices are made. Raises NoSuchLease, which tells nothing of the leases
        of other users.
        """
        context = self.context
        with context.gate:
            lease = context.ledger.lease(name_or_id)
            named = [lease] if lease else context.ledger.named(name_or_id)
        if caller_uid is not None:
            named = [lease for lease in named if lease.caller_uid == caller_uid]
        named.sort(key=lambda lease: not context.is_here(lease.netns))
        owned = [lease for lease in named if owner in (None, lease.owner)]
        here = [lease for lease in owned if context.is_here(lease.netns)]
        leases = here or owned
        if not leases:
            text = f"no lease has the name or id {name_or_id!r}"
            if named:
                text = (
                    f"{name_or_id!r} belongs to owner {named[0].owner!r}, "
                    f"not to {owner!r}"
                    if named[0].owner
                    else f"{name_or_id!r} has no owner, so it does not belong to "
                    f"{owner!r}"
                )
            raise NoSuchLease(text, reference=name_or_id)
        if len(leases) > 1:
            ids = ", ".join(lease.id for lease in leases)
            raise NoSuchLease(
                f"{name_or_id!r} is leased in several namespaces; use an id: {ids}",
                reference=name_or_id,
            )
        return leases[0]

    def has_ended(self, id: str) -> bool:
        """Return whether the history has a lease with this id."""
        with self.context.gate:
            return self.context.ledger.ended(id)

    def at(self, netns: Netns, ifindexes: Iterable[int]) -> list[Lease]:
        """Return the leases of a namespace that have one of these ifindexes."""
        with self.context.gate:
            return self.context.ledger.at(netns, ifindexes)

    def redirected(self, netns: Netns) -> list[Lease]:
        """Return the leases of a namespace that take the place of another device."""
        with self.context.gate:
            return self.context.ledger.redirected(netns)

    def count(self, caller_uid: int | None = None) -> dict[State, int]:
        """Return how many leases are in each state: those of a user id, or all."""
        with self.context.gate:
            return self.context.ledger.count(caller_uid)

    def count_labels(self) -> dict[tuple[str, str], int]:
        """Return how many active leases have each label."""
        with self.context.gate:
            return self.context.ledger.count_labels()

    def history(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Return the leases that fit a query, active ones too, the latest first.

        Raises RequestError for a query that nothing could fit.
        """
        check_query(query)
        if query.mac is not None:
            query = query._replace(mac=query.mac.lower())
        now = self.context.system.wallclock()
        for moment in (query.at, query.since):
            if moment is not None and moment > now + CLOCK_SLACK:
                raise RequestError(
                    f"the time asked for is {moment - now:.0f} s in the future: "
                    "the history cannot know it"
                )
        with self.context.gate:
            return self.context.ledger.entries(query)

    def events(self, query: EventQuery) -> list[HistoryEvent]:
        """Return the events that fit a query, the earliest first."""
        check_query(query)
        with self.context.gate:
            return self.context.ledger.events(query)

    def event_numbers(self, query: EventQuery) -> list[int]:
        """Return the numbers of the events that fit a query, the earliest first."""
        check_query(query)
        with self.context.gate:
            return self.context.ledger.event_numbers(query)

    def numbered_events(self, numbers: Sequence[int]) -> list[HistoryEvent]:
        """Return the events with these numbers, as far as they are remembered."""
        with self.context.gate:
            return self.context.ledger.numbered_events(numbers)

    def asked(self, id: str) -> str | None:
        """Return what was asked for a lease through the daemon; None if it is not
        recorded."""
        with self.context.gate:
            return self.context.ledger.asked(id)

    def page(
        self, *, after: int, limit: int, caller_uid: int | None, all: bool
    ) -> tuple[list[Lease], int | None]:
        """Return at most `limit` leases, oldest first, and where the next page begins.

        `after` is 0 for the first page. Only those of the user `caller_uid`, if given.
        """
        with self.context.gate:
            return self.context.ledger.page(
                after=after, limit=limit, caller_uid=caller_uid, all=all
            )

    # Devices

    def device(self, lease: Lease) -> Link | None:
        """Return the lease's device as the kernel shows it now; None if it is gone."""
        context = self.context
        with context.gate, context.opened(lease.netns) as namespace:
            link = namespace.link(lease.ifindex) if namespace else None
            if link and decision.is_ours(context.ledger.id, lease, link):
                return link
            return None

    def differences(self, lease: Lease) -> dict[str, str]:
        """Return how an active lease's device is not connected as requested, by
        backend.

        Only the backends that the ledger or the request names are asked. Under
        "process", say if it cannot be told whether the lease has ended; under
        "device", what recover does not always restore. Raises
        ServiceUnavailable if a backend cannot tell.
        """
        return self._differences([lease], every=False).get(lease.id, {})

    def some_differences(self, leases: Iterable[Lease]) -> Differences:
        """As `differences`, of several leases: each backend is asked once."""
        return self._differences(leases, every=False)

    def all_differences(self, leases: Iterable[Lease]) -> Differences:
        """Return how active leases' devices are not connected as requested.

        Every backend is asked. Raises ServiceUnavailable if one cannot tell.
        """
        return self._differences(leases, every=True)

    def _differences(self, leases: Iterable[Lease], *, every: bool) -> Differences:
        differences: Differences = {}
        failures = Failures()
        for netns, here in by_namespace(leases).items():
            with self.context.gate, self.context.opened(netns) as namespace:
                links = self.devices.links(namespace, here)
                differences |= self.devices.differences(
                    namespace, here, links, failures, [] if every else None
                )
            for differing in differences.values():
                for part in (RENAMED, TAP):
                    differing.pop(part, None)  # `beyond_repair` says it
            lost = [lease for lease in here if lease.ifindex not in links]
            for id, ((there, moved), *_) in self.devices.moved(lost).items():
                where = there.path or f"that processes are in ({there.cookie})"
                text = f"it is called {moved.name} in the network namespace {where}"
                differences.setdefault(id, {})["device"] = text
            for lease in here:
                link = links.get(lease.ifindex)
                if unknown := self.undetermined(lease, link):
                    differences.setdefault(lease.id, {})["process"] = unknown
                if link and (changed := self.beyond_repair(lease, link)):
                    differences.setdefault(lease.id, {})["device"] = str(changed)
        failures.raise_any()
        return {id: differing for id, differing in differences.items() if differing}

    def beyond_repair(self, lease: Lease, link: Link) -> Unrestored | None:
        """Say what of an active lease's device was changed and may not be restored."""
        ledger = self.context.ledger.id
        if lease.state is not State.ACTIVE or not decision.is_ours(ledger, lease, link):
            return None
        return decision.beyond_repair(lease, link)

    def misidentified(self, lease: Lease, link: Link) -> str | None:
        """Say how the MAC or the stamp of a lease's device was changed."""
        return bridge.misidentified(lease, self.devices.stamp(lease), link)

    def changed(self, lease: Lease, link: Link) -> str | None:
        """Say what else of a lease's device was changed, and can be restored."""
        return bridge.changed(lease, link)

    def unreported(self, lease: Lease, link: Link) -> str | None:
        """Say what of a port was changed that no report of its device shows."""
        context = self.context
        with context.gate, context.opened(lease.netns) as namespace:
            if namespace is None:
                return None
            said = bridge.unreported(lease, link, namespace)
            # If the port has left its bridge since the look at the link, the bridge
            # has no entry of the port, and that is no difference.
            same = said is None or namespace.link(link.ifindex) == link
            return said if same else None

    def lacks_entry(self, lease: Lease, link: Link) -> bool:
        """Return whether a bridge has lost the static, sticky entry of a port."""
        context = self.context
        with context.gate, context.opened(lease.netns) as namespace:
            return (
                namespace is not None
                and bridge.lacks_entry(lease, link, namespace)
                and namespace.link(link.ifindex) == link
            )

    def undetermined(self, lease: Lease, link: Link | None) -> str | None:
        """Say that nothing tells whether a lease has ended; None if something does.

        `link` is the lease's device. An open tap is in use, whatever its process does.
        """
        process = lease.process
        if process is None or lease.state is not State.ACTIVE or (link and link.open):
            return None
        if self.context.system.life(process) is not Life.CANNOT_TELL:
            return None
        return f"whether its process {process.pid} lives cannot be told from here"

    def differing(self, leases: Iterable[Lease]) -> frozenset[str]:
        """Return the ids of active leases whose devices are not as requested.

        The devices alone are looked at, not the backends: gone, renamed, down, off
        the bridge. A lease whose namespace cannot be found from here is not in it.
        """
        active = [lease for lease in leases if lease.state is State.ACTIVE]
        found: set[str] = set()
        for netns, here in by_namespace(active).items():
            with suppress(HostError):
                found.update(self._differing(netns, here))
        return frozenset(found)

    def _differing(self, netns: Netns, leases: Sequence[Lease]) -> Iterator[str]:
        ledger = self.context.ledger.id
        with self.context.gate, self.context.opened(netns) as namespace:
            links = (
                {link.ifindex: link for link in namespace.links()} if namespace else {}
            )
            for lease in leases:
                link = links.get(lease.ifindex)
                if (
                    namespace is None
                    or link is None
                    or not decision.is_ours(ledger, lease, link)
                    or decision.beyond_repair(lease, link)
                    or bridge.differs(
                        lease, self.devices.stamp(lease), link, namespace, links
                    )
                    or self.undetermined(lease, link)
                ):
                    yield lease.id

    def joined(self, link: Link, lease: Lease) -> bool:
        """Return whether a device is on the Linux bridge that its lease requests."""
        with self.context.gate, self.context.opened(lease.netns) as namespace:
            if namespace is None or not link.master:
                return False
            return link.master == namespace.ifindex(lease.wiring.bridge or "")

    # Namespaces

    def namespaces(self) -> list[Netns]:
        """Return the network namespaces in which there are leases."""
        with self.context.gate:
            return self.context.ledger.namespaces()

    def ended_namespaces(self, netnses: Collection[Netns]) -> set[Netns]:
        """Return those of these namespaces that have ended for certain."""
        with self.context.gate:
            return self.context.system.ended_namespaces(netnses)

    def number(self, netns: Netns) -> int | None:
        """Return the number by which the own namespace knows another; None if that is
        gone.

        As `Namespace.number`.
        """
        with self.context.gate, self.context.opened(netns) as namespace:
            if namespace is None:
                return None
            return self.context.namespace.number(namespace)
