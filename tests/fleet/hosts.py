# SPDX-License-Identifier: Apache-2.0
"""Hosts of a fleet: real ledgers and Hosts on a kernel in memory, and their store."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import tapster
from lab import library
from tapster import Lease, Tap
from tapster.fleet import keys
from tapster.fleet.fleet import Overview
from tapster.fleet.keys import Keys
from tapster.fleet.member import Member
from tapster.fleet.memory import MemoryStore
from tapster.fleet.registration import Registration
from tapster.fleet.settings import Settings
from tapster.fleet.store import Committed, FleetUnavailable, FleetUnclear, Store
from tapster.model import Vm
from tapster.testing import FakeSystem

MAC = "52:54:00:aa:bb:cc"
X = Vm("X")


class Away(MemoryStore):
    """A store in memory that can be away, and can lose answers."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.loses = False
        """A commit is applied, and its answer lost."""
        self.calls = 0

    def _begin(self) -> None:
        self.calls += 1
        if self.away:
            raise FleetUnavailable("the store is away")

    def read(self, keys: Sequence[str]) -> Mapping[str, str]:
        self._begin()
        return super().read(keys)

    def scan(self, prefix: str) -> Iterator[tuple[str, str]]:
        self._begin()
        return super().scan(prefix)

    def commit(
        self,
        expected: Mapping[str, str | None],
        writes: Mapping[str, str | None],
        *,
        session: int = 0,
    ) -> Committed:
        self._begin()
        answer = super().commit(expected, writes, session=session)
        if self.loses:
            raise FleetUnclear("the answer is lost")
        return answer


class FleetHost:
    """One host, with a bridge br0."""

    def __init__(
        self,
        name: str,
        store: Store,
        folder: Path,
        endpoints: Sequence[str] = ("http://127.0.0.1:1",),
    ) -> None:
        self.settings = Settings(name, tuple(endpoints))
        self.config = folder / f"{name}.toml"
        self.configure()
        self.ledger = folder / f"{name}.db"
        self.system = FakeSystem()
        self.system.stranger().add_bridge("br0")
        self.system.stranger().add_bridge("br1")
        self.host = tapster.Host(
            self.ledger, system=self.system, reaper=library.no_reaper
        )
        self.boot = f"boot-{name}"
        self.late = 0.0
        self.store = store
        self.member = self.start()

    def configure(self, more: str = "") -> None:
        urls = json.dumps(self.settings.endpoints)
        self.config.write_text(
            f'[fleet]\nname = "{self.settings.name}"\nendpoints = {urls}\n{more}\n'
        )

    def start(self) -> Member:
        """A member as a new process would have it."""
        self.member = Member(
            self.settings,
            self.host.operations.context.ledger,
            self.store,
            boot=self.boot,
            wallclock=lambda: time.time() + self.late,
        )
        return self.member

    def add(
        self,
        mac: str | None = None,
        vm: Vm | None = None,
        bridge: str = "br0",
        *,
        standby: bool = False,
    ) -> Lease:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TAPSTER_CONFIG", str(self.config))
            if isinstance(self.store, MemoryStore):  # the real one is configured
                opened = "tapster.fleet.member.open_store"
                patch.setattr(opened, lambda *_, **__: self.store)
            return library.acquire(
                self.host, Tap(bridge=bridge, mac=mac, vm=vm, standby=standby)
            )

    def epoch(self, lease: Lease) -> str:
        entry = self.member.book.of_lease(lease.id)
        assert entry is not None
        return str(entry.record.epoch)


class Pair(ExitStack):
    """Two hosts and their store."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.store = Away()
        self.fleet = Overview(self.store, Keys())
        self.fleet.init("0a:54:00")
        self.a = FleetHost("a", self.store, folder)
        self.b = FleetHost("b", self.store, folder)
        for host in (self.a, self.b):
            self.callback(host.host.close)
            host.member.join()

    def registration(
        self, mac: str = MAC, segment: str = "default"
    ) -> Registration | None:
        key = Keys().registration(segment, mac)
        return keys.registration_of(key, self.store.values.get(key))

    def holder(self) -> str:
        """Who has MAC, in short: VM, host and state."""
        found = self.registration()
        return f"{found.vm} {found.host} {found.state}" if found else "-"


@contextmanager
def pair_of_hosts(folder: Path) -> Iterator[Pair]:
    with Pair(folder) as pair:
        yield pair
