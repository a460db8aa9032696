# SPDX-License-Identifier: Apache-2.0
"""The operator's view of a fleet, from any host that reaches the store."""

import time
from collections.abc import Callable, Iterator, Mapping

from tapster.errors import ConflictError, RequestError
from tapster.fleet import keys, steps
from tapster.fleet.keys import (
    Block,
    Fleet,
    InventoryRow,
    Keys,
    Permit,
    Session,
    encode,
    value_of,
)
from tapster.fleet.registration import RELEASED, RecordState, Registration, own_vm
from tapster.fleet.store import Store
from tapster.light import Any, NamedTuple

KVM_PREFIX = "52:54:00"


class HostStatus(NamedTuple):
    """A host of the fleet."""

    name: str
    ledger: str
    """Empty after the host was evicted or has left."""
    session: Session | None
    """None: silent. That is no proof that the host is dead."""
    fenced: str
    """The boot that was declared dead, or ""."""
    by: str
    why: str


class Located(NamedTuple):
    """A MAC registration and where it is in the store."""

    key: str
    segment: str
    mac: str
    registration: Registration
    text: str
    """The registration as the store holds it."""


class Overview:
    """The fleet as the store has it. `dry_run` changes nothing."""

    def __init__(
        self,
        store: Store,
        where: Keys,
        *,
        dry_run: bool = False,
        wallclock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.where = where
        self._dry_run = dry_run
        self._wallclock = wallclock

    # Looking

    def hosts(self) -> list[HostStatus]:
        """Return every host that ever joined, by name."""
        sessions = {
            key.removeprefix(self.where.sessions): value_of(Session, key, text)
            for key, text in self.store.scan(self.where.sessions)
        }
        found = []
        for key, text in self.store.scan(self.where.permits):
            name = keys.check_name("host", key.removeprefix(self.where.permits))
            permit = value_of(Permit, key, text)
            found.append(
                HostStatus(
                    name,
                    permit.ledger,
                    sessions.get(name),
                    permit.fenced,
                    permit.by,
                    permit.why,
                )
            )
        return found

    def rows(self, host: str = "") -> Iterator[tuple[str, str, InventoryRow]]:
        """Yield each lease of the fleet, or of a host: the host, the id, the row."""
        for key, text in self.store.scan(self.where.rows(host)):
            name, _, lease = key.removeprefix(self.where.rows()).partition("/")
            yield name, lease, value_of(InventoryRow, key, text)

    def registrations(self) -> Iterator[Located]:
        """Yield every MAC registration."""
        for key, text in self.store.scan(self.where.registrations):
            segment, _, mac = key.removeprefix(self.where.registrations).partition("/")
            yield Located(key, segment, mac, value_of(Registration, key, text), text)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Yield every block that a host has."""
        for key, text in self.store.scan(self.where.blocks):
            yield key.removeprefix(self.where.blocks), value_of(Block, key, text)

    def where_is(self, wanted: str) -> list[Located]:
        """Return the registrations of a VM, or of a MAC."""
        mac = wanted.lower()
        return [
            located
            for located in self.registrations()
            if located.mac == mac or located.registration.vm == wanted
        ]

    def who(self, wanted: str) -> list[tuple[str, str, InventoryRow]]:
        """Return the leases that have a name, a MAC or a VM."""
        mac = wanted.lower()
        return [
            (host, lease, row)
            for host, lease, row in self.rows()
            if wanted in (row.name, row.vm, lease) or row.mac == mac
        ]

    # Changing

    def init(self, prefix: str, *, force: bool = False) -> Fleet:
        """Begin a fleet whose MACs begin with `prefix`, unless the fleet exists."""
        prefix = keys.check_prefix(prefix)
        if prefix == KVM_PREFIX and not force:
            raise RequestError(
                f"QEMU and libvirt draw random MACs that begin with {KVM_PREFIX}: "
                "take another prefix, such as 0a:54:00, or use --force"
            )
        text = self.store.read([self.where.fleet]).get(self.where.fleet)
        if text is not None:
            fleet = value_of(Fleet, self.where.fleet, text)
            if fleet.prefix != prefix:
                raise ConflictError(f"the fleet has the prefix {fleet.prefix} already")
            return fleet
        fleet = Fleet(prefix, self._wallclock())
        self._commit({self.where.fleet: None}, {self.where.fleet: encode(fleet)})
        return fleet

    def fence(self, host: str, *, by: str, why: str, boot: str = "") -> HostStatus:
        """Declare a host dead. From now on the store applies no request of the host.

        `boot` is the boot that has ended; by default, the boot that the session of the
        host shows. The caller must know that the host is dead, or cannot reach its
        networks: VMs of the host may now be started elsewhere.
        """
        status = self._host(host)
        if not boot:
            if status.session is None:
                raise RequestError(
                    f"host {host!r} has no session that would show its boot: give "
                    "--boot (/proc/sys/kernel/random/boot_id), or --boot unknown"
                )
            boot = status.session.boot
        at = self._wallclock()
        self._change_permit(host, {"fenced": boot, "by": by, "why": why, "at": at})
        return self._host(host)

    def lift(self, host: str) -> None:
        """Take a fence back."""
        self._host(host)
        self._change_permit(host, {"fenced": "", "by": "", "why": "", "at": 0.0})

    def evict(self, host: str) -> list[str]:
        """Give up a host that never comes back. Return what was done, in words.

        Its blocks go to others. So an evicted host that still starts VMs can choose the
        same MACs as other hosts.
        """
        self._host(host)
        # First: from then on nothing that the host has sent is applied.
        self._change_permit(host, {"ledger": "", "fenced": ""})
        done = [f"withdrew the permit of {host}"]
        for block, owner in [*self.blocks()]:
            if owner.host == host:
                done += self._delete(self.where.block(block), f"block {block}")
        for located in [*self.registrations()]:
            if located.registration.host == host:
                done += self._end(located)
        for _, lease, row in [*self.rows(host)]:
            done += self._delete(self.where.row(host, lease), f"row of {row.name}")
        return done + self._delete(self.where.session(host), "session")

    def forget(self, wanted: str) -> list[str]:
        """Delete the parked and ended registrations of a VM or a MAC.

        Return what was done.
        """
        found = self.where_is(wanted)
        if not found:
            raise RequestError(f"no registration is of a VM or a MAC {wanted!r}")
        done: list[str] = []
        for located in found:
            registration = located.registration
            if registration.state not in RELEASED:
                raise ConflictError(
                    f"VM {registration.vm} runs on host {registration.host} with MAC "
                    f"{located.mac}: only a VM that no host runs can be forgotten"
                )
            done += self._delete(
                located.key, f"registration of {located.mac} by {registration.vm}"
            )
        return done

    def _end(self, located: Located) -> list[str]:
        """End a registration of an evicted host. A VM with a name keeps its MAC."""
        registration = located.registration
        what = f"registration of {located.mac} by {registration.vm}"
        if registration.vm == own_vm(registration.lease):
            return self._delete(located.key, what)
        if registration.state is not RecordState.ACTIVE:
            return []
        parked = encode(registration._replace(state=RecordState.PARKED))
        self._commit({located.key: located.text}, {located.key: parked})
        return [f"parked the {what}"]

    def _host(self, host: str) -> HostStatus:
        for status in self.hosts():
            if status.name == host:
                return status
        raise RequestError(f"no host of the fleet is called {host!r}")

    def _change_permit(self, host: str, change: Mapping[str, Any]) -> None:
        if not self._dry_run:
            steps.run(steps.change_permit(self.where, host, change), self.store)

    def _delete(self, key: str, what: str) -> list[str]:
        values = self.store.read([key])
        if key not in values:
            return []
        self._commit({key: values[key]}, {key: None})
        return [f"deleted {what}"]

    def _commit(
        self, expected: Mapping[str, str | None], writes: Mapping[str, str | None]
    ) -> None:
        if not self._dry_run and not self.store.commit(expected, writes).done:
            changed = ", ".join(expected)
            raise ConflictError(f"{changed} changed at this moment: try again")
