# SPDX-License-Identifier: Apache-2.0
"""A host in a fleet: joining, pushing the state of its ledger, leaving."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from tapster.errors import ConflictError, RequestError
from tapster.fleet import keys, registration, steps
from tapster.fleet.book import UNASKED, Book, BookEntry
from tapster.fleet.keys import Block, Fleet, Keys, Session, encode
from tapster.fleet.registration import RELEASED, PushAction, Standing
from tapster.fleet.settings import CACHE, Settings
from tapster.fleet.steps import Me, Outcome, Push, Steps
from tapster.fleet.store import FleetDamaged, FleetUnavailable, Store
from tapster.ledger import Ledger
from tapster.light import NamedTuple, TypeVar

SESSION_SECONDS = 180
"""How long a host counts as present after its last sync."""
LOW = 64
"""Free MACs below which a host takes another block."""
BATCH = 1000
"""Records that are pushed before their outcomes are recorded."""
DRAWS = 64

T = TypeVar("T")


class Synced(NamedTuple):
    """What a sync did."""

    pushed: int = 0
    problems: tuple[BookEntry, ...] = ()
    """Records that conflict with another host or VM."""
    block: str = ""
    """The block that was taken."""


def open_store(settings: Settings) -> Store:
    """Return the store of a fleet. Nothing is sent before the first call."""
    from tapster.fleet.etcd import Certificates, Etcd, Login, parse_endpoint

    login = None
    if settings.user is not None and settings.password_file is not None:
        login = Login(settings.user, _reader(settings.password_file))
    return Etcd(
        [parse_endpoint(url) for url in settings.endpoints],
        login=login,
        certificates=Certificates(settings.ca, settings.cert, settings.key),
        cache=f"{CACHE}-{settings.name}"
        if os.path.isdir(os.path.dirname(CACHE))
        else None,
    )


def _reader(path: str) -> Callable[[], str]:
    def read() -> str:
        try:
            with open(path) as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            raise FleetUnavailable(f"fleet.password_file {path}: {problem}") from error

    return read


def boot_id() -> str:
    """Return the id of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class Member:
    """This host in its fleet. May be used by one thread at a time."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        store: Store,
        *,
        boot: str | None = None,
        wallclock: Callable[[], float] = time.time,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.settings = settings
        self.store = store
        self.book = Book(ledger)
        self.where = Keys(settings.prefix)
        self.me = Me(settings.name, ledger.id, boot or boot_id())
        self._ledger = ledger
        self._wallclock = wallclock
        self._randomness = randomness
        self._session = 0
        self._session_value = ""

    def close(self) -> None:
        """Close the store and the ledger."""
        self.store.close()
        self._ledger.close()

    def _run(self, asking: Steps[T]) -> T:
        return steps.run(asking, self.store, self.book.sending)

    # Joining and leaving

    def join(self) -> Synced:
        """Enter the fleet: get a permit, take a block, push the running leases."""
        self._fleet()
        self._run(steps.enter(self.where, self.me, joins=True))
        self.book.open(self.settings.segments)
        for block in self._own_blocks():
            self.book.set_block(block)
        return self.sync(everything=True)

    def check_joined(self) -> None:
        """Raise RequestError unless this host has joined."""
        if not self._ledger.in_fleet():
            raise RequestError(
                f"host {self.me.host!r} is not in the fleet: tapster fleet join"
            )

    def leave(self) -> None:
        """Leave the fleet: give up registrations and blocks. No lease may be left."""
        self.check_joined()
        if running := self.book.running():
            raise ConflictError(
                f"{len(running)} leases are not released: release them, then leave"
            )
        self.sync()
        for entry in self.book.entries():
            if entry.record.state in RELEASED:
                self._run(
                    steps.sweep(
                        self.where, self.me, entry.record.segment, entry.record.mac
                    )
                )
        # From here on no request of this host can be applied.
        self._run(steps.change_permit(self.where, self.me.host, {"ledger": ""}))
        for block in self.book.blocks():
            self._give_back(block)
        self.store.commit({}, {self.where.session(self.me.host): None})
        self.book.remove()

    def _give_back(self, block: str) -> None:
        key = self.where.block(block)
        values = self.store.read([key])
        owner = keys.block_value_of(key, values.get(key))
        if owner is not None and owner[:2] == (self.me.host, self.me.ledger):
            self.store.commit({key: values[key]}, {key: None})

    # Syncing

    def sync(self, *, everything: bool = False) -> Synced:
        """Push the changed records of the ledger, and renew the session of this host.

        With `everything`, push unchanged records too.
        """
        self.check_joined()
        self._run(steps.enter(self.where, self.me))
        self._keep_session()
        self.book.open(self.settings.segments)
        if everything:
            self._check_blocks()
            self.book.all_dirty()
        block = self._keep_blocks()
        pushed = 0
        problems: list[BookEntry] = []
        entries = self.book.dirty()
        for first in range(0, len(entries), BATCH):
            done = self._push(entries[first : first + BATCH])
            pushed += sum(
                outcome.action is not PushAction.REPORT for _, outcome in done
            )
        problems = [e for e in self.book.dirty() if e.problem]
        self._sweep(everything=everything)
        return Synced(pushed, tuple(problems), block)

    def superseded(self) -> list[BookEntry]:
        """Return the running leases of VMs that another host has taken over."""
        found = []
        for entry in self.book.entries("WHERE fleet_record.state = 'active'"):
            key = self.where.registration(entry.record.segment, entry.record.mac)
            text = self.store.read([key]).get(key)
            try:
                held = keys.registration_of(key, text)
            except FleetDamaged:
                continue  # nothing tells that another host has taken it over
            standing = registration.stand(self.me.host, entry.record, held, lost=False)
            if standing is Standing.NEWER:
                found.append(entry)
        return found

    def _push(self, entries: list[BookEntry]) -> list[tuple[BookEntry, Outcome]]:
        pushes = [Push(entry.record, entry.row) for entry in entries]
        try:
            outcomes = self._run(
                steps.push_all(self.where, self.me, pushes, self.book.running())
            )
            done = [*zip(entries, outcomes, strict=True)]
        except FleetDamaged:
            done = [*self._push_singly(entries)]
        self.book.record_outcomes(done, self._wallclock())
        return done

    def _push_singly(
        self, entries: list[BookEntry]
    ) -> Iterator[tuple[BookEntry, Outcome]]:
        """Push records one after the other: a damaged value of the store hinders the
        records that need it, and no others."""
        for entry in entries:
            pending = Push(entry.record, entry.row)
            running = self.book.running()
            try:
                pushed = self._run(steps.push(self.where, self.me, pending, running))
            except FleetDamaged as error:
                self.book.note([entry.record.lease], f"{UNASKED}{error}")
            else:
                yield entry, pushed

    def _sweep(self, *, everything: bool) -> None:
        """Delete registrations of VMs that are gone, after their MACs have rested."""
        for entry in self.book.rested(self._wallclock()):
            record = entry.record
            with suppress(FleetDamaged):  # doctor reports it; the record stays
                self._run(steps.sweep(self.where, self.me, record.segment, record.mac))
                self.book.forget(entry)
        if everything:
            for entry in self.book.parked():
                key = self.where.registration(entry.record.segment, entry.record.mac)
                if key not in self.store.read([key]):  # it was forgotten
                    self.book.forget(entry)

    def _keep_session(self) -> None:
        key = self.where.session(self.me.host)
        known = self._session and self.store.keep_session(self._session)
        # Another process of this host may have put its own session there, and ended.
        if known and self.store.read([key]).get(key) == self._session_value:
            return
        if not known:
            self._session = self.store.open_session(SESSION_SECONDS)
        value = Session(self.me.boot, self.me.ledger, self._wallclock())
        self._session_value = encode(value)
        self.store.commit({}, {key: self._session_value}, session=self._session)

    # Blocks

    def _fleet(self) -> Fleet:
        text = self.store.read([self.where.fleet]).get(self.where.fleet)
        if text is None:
            raise RequestError(
                f"the store has no fleet under {self.where.root}: tapster fleet init"
            )
        return keys.value_of(Fleet, self.where.fleet, text)

    def _keep_blocks(self) -> str:
        """Take another block if few MACs are left; the block, or ""."""
        if self.book.free_macs(self._wallclock()) >= LOW:
            return ""
        block = self._run(
            steps.take_block(
                self.where,
                self.me,
                self._candidates(self._fleet().prefix),
                self._wallclock(),
            )
        )
        if block is None:
            raise FleetUnavailable("every block of the fleet's MAC prefix is taken")
        self.book.set_block(block)
        return block

    def _candidates(self, prefix: str) -> Iterator[str]:
        """Blocks in a random order; all of them, if the first ones are taken."""
        mine = self.book.blocks()
        for _ in range(DRAWS):
            block = f"{prefix}:{self._randomness(2).hex(':')}"
            if block not in mine:
                yield block
        taken = {
            key.removeprefix(self.where.blocks)
            for key, _ in self.store.scan(self.where.blocks)
        }
        for number in range(1 << 16):
            block = f"{prefix}:{number.to_bytes(2, 'big').hex(':')}"
            if block not in taken and block not in mine:
                yield block

    def _own_blocks(self) -> Iterator[str]:
        for key, text in self.store.scan(self.where.blocks):
            owner = keys.value_of(Block, key, text)
            if owner[:2] == (self.me.host, self.me.ledger):
                yield key.removeprefix(self.where.blocks)

    def _check_blocks(self) -> None:
        """Compare the blocks of the store, which may be older, with the ledger's."""
        mine = self.book.blocks()
        for block in {*mine, *self._own_blocks()}:
            known = self._run(
                steps.take_block(self.where, self.me, [block], self._wallclock())
            )
            if block not in mine or (known is not None) != mine[block]:
                self.book.set_block(block, lost=known is None)
            if known is not None:
                self.book.skip(block, self._registered(block), self._wallclock())

    def _registered(self, block: str) -> set[str]:
        """Return the MACs of a block that are registered in segments of this host."""
        return {
            key.rpartition("/")[2]
            for segment in {"default", *self.settings.segments.values()}
            for key, _ in self.store.scan(self.where.registration(segment, block))
        }
