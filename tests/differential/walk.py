# SPDX-License-Identifier: Apache-2.0
"""A random walk: each step is done to the Hosts and to the model, and then compared."""

import random
from collections.abc import Callable
from pathlib import Path

import tapster
from lab.fake_and_real import ContractLab
from lab.library import no_reaper
from tapster import Host, Naming, State, Tap
from tests.differential.model import CAPACITY, Model, Modelled, Refused

BRIDGES = "br0", "br1"
OWNERS = "", "red", "blue"
KEYS = "a", "b", "c", "d"
NAMES = "vnet0", "vnet1", "v3", "box", "ci0-a", "abcdefghijklmn4"
"""Names that strangers like."""
MOST = 24
"""Leases at a time: then the walk releases."""
FOREIGN = 6
"""Foreign devices at a time."""


class Walk:
    """Two Hosts on one ledger, strangers beside them, and the model of all."""

    def __init__(self, lab: ContractLab, ledger: Path, seed: int) -> None:
        self._lab = lab
        self._ledger = ledger
        self._others = lab.others()
        for bridge in BRIDGES:
            self._others.add_bridge(bridge)
        self._chance = random.Random(seed)
        self._hosts = [self._open(), self._open()]
        self._model = Model()
        self._ids: list[str] = []
        self.done: dict[str, int] = {}
        """How often each step was taken."""

    def _open(self) -> Host:
        return Host(self._ledger, system=self._lab.system, reaper=no_reaper)

    def close(self) -> None:
        for host in self._hosts:
            host.close()

    def step(self) -> None:
        """Take one step, and compare the ledger with the model."""
        steps: dict[Callable[[], None], int] = {
            self.acquire: 6 if len(self._model.leases) < MOST else 0,
            self.release: 4,
            self.reap: 1,
            self.recover: 1,
            self.move: 2,
            self.reopen_host: 1,
            self.add_foreign: 2 if len(self._model.foreign) < FOREIGN else 0,
            self.delete_foreign: 2,
            self.delete_of_ours: 1,
            self.disturb: 1,
        }
        (step,) = self._chance.choices([*steps], [*steps.values()])
        step()
        self.done[step.__name__] = self.done.get(step.__name__, 0) + 1
        self.compare_ledger()

    def _host(self) -> Host:
        return self._chance.choice(self._hosts)

    def _pick(self, wanted: Callable[[Modelled], bool]) -> str | None:
        """Return the id of a random lease of the wanted kind, if there is one."""
        ids = [id for id, lease in self._model.leases.items() if wanted(lease)]
        return self._chance.choice(ids) if ids else None

    # What Tapster does

    def acquire(self) -> None:
        chance = self._chance
        specs: list[Tap] = []
        names: list[str | None] = []
        counted: dict[str, str] = {}
        refusal = None
        before = dict(self._model.counters)
        for _ in range(chance.choice([1, 1, 1, 2])):
            spec = self._spec()
            specs.append(spec)
            try:
                name = self._predict(spec, {name for name in names if name})
            except Refused as error:
                refusal = str(error)
                break
            names.append(name)
            if spec.naming is Naming.NEXT and name:
                self._model.count(spec.name, name)
                counted[spec.name] = name
        try:
            opened = self._host().acquire_all(specs)
        except (tapster.NameTaken, tapster.NamesExhausted) as error:
            # Nothing of a request that fails is kept, not even in a counter.
            self._model.counters = before
            allowed = {refusal} if refusal else set()
            if self._may_be_taken(specs):
                allowed.add("NameTaken")
            if type(error).__name__ not in allowed:
                raise
            return
        assert refusal is None, (specs, names, refusal)
        for device, spec, name in zip(opened, specs, names, strict=True):
            assert name in (None, device.name), (spec, name, device.name)
            if spec.naming is Naming.STABLE:
                self._remember(spec, device.name)
            self._model.leases[device.id] = Modelled(
                device.name, spec.owner, spec.bridge or "", spec.fin_wait
            )
            device.close()

    def _spec(self) -> Tap:
        chance = self._chance
        spec = Tap(
            bridge=chance.choice(BRIDGES),
            owner=chance.choice(OWNERS),
            fin_wait=chance.choice([0.0, 3600.0, 3600.0]),
            name=chance.choice([*CAPACITY, "vnet1", "box", "ci3-a"]),
        )
        if "%d" not in spec.name:
            return spec
        naming = chance.choice([Naming.LOWEST, *Naming])
        key = chance.choice(KEYS) if naming is Naming.STABLE else None
        return spec._replace(naming=naming, key=key)

    def _predict(self, spec: Tap, more: set[str]) -> str | None:
        """Return the name that a request should get; None if any may be right."""
        model = self._model
        if "%d" not in spec.name:
            return model.fixed(spec.name, more)
        if spec.naming is Naming.LOWEST:
            return model.lowest(spec.name, more)
        if spec.naming is Naming.NEXT:
            return model.next(spec.name, more)
        known = model.stable.get((spec.name, spec.key or ""))
        return None if known is None else model.fixed(known, more)

    def _may_be_taken(self, specs: list[Tap]) -> bool:
        """Return whether a new key may have met a name in use: only its hash tells."""
        return any(
            spec.naming is Naming.STABLE
            and (spec.name, spec.key) not in self._model.stable
            for spec in specs
        )

    def _remember(self, spec: Tap, name: str) -> None:
        place = spec.name, spec.key or ""
        known = self._model.stable.setdefault(place, name)
        assert known == name, f"key {place} had {known}, and now has {name}"
        given = [other for other in self._model.stable if other[0] == spec.name]
        names = {self._model.stable[other] for other in given}
        assert len(names) == len(given), "two keys have one name"

    def release(self) -> None:
        id = self._pick(lambda lease: lease.active)
        if id is not None:
            self._host().release(id)
            self._model.release(id)

    def reap(self) -> None:
        assert self._host().reap() == 0, "no FIN WAIT is over"
        if self._chance.random() < 0.5:
            assert self._host().reap(now=True) == self._model.reap()

    def recover(self) -> None:
        host = self._host()
        repaired = {repair.lease.id for repair in host.recover()}
        assert repaired == self._model.recover()
        again = host.recover()
        assert again == [], "a second recover finds nothing to do"
        self.compare_kernel()

    def move(self) -> None:
        id = self._pick(lambda lease: lease.active and lease.device and lease.sound)
        if id is not None:
            bridge = self._chance.choice(BRIDGES)
            self._host().set(id, bridge=bridge)
            self._model.leases[id].bridge = bridge

    def reopen_host(self) -> None:
        place = self._chance.randrange(len(self._hosts))
        self._hosts[place].close()
        self._hosts[place] = self._open()

    # What others do

    def add_foreign(self) -> None:
        name = self._chance.choice(NAMES)
        present = name in self._lab.show()
        try:
            self._others.add_tap(name)
        except OSError:
            assert present, f"{name} is free"
        else:
            assert not present, f"{name} was given to a stranger"
            self._model.foreign.add(name)

    def delete_foreign(self) -> None:
        if self._model.foreign:
            name = self._chance.choice(sorted(self._model.foreign))
            self._others.delete_by_name(name)
            self._model.foreign.remove(name)

    def delete_of_ours(self) -> None:
        id = self._pick(lambda lease: lease.device)
        if id is not None:
            self._others.delete_by_name(self._model.leases[id].name)
            self._model.leases[id].device = False

    def disturb(self) -> None:
        """Take a device of ours off its bridge, or down."""
        id = self._pick(lambda lease: lease.active and lease.device and lease.sound)
        if id is not None:
            name = self._model.leases[id].name
            if self._chance.random() < 0.5:
                self._others.set_by_name(name, master="")
            else:
                self._others.set_by_name(name, up=False)
            self._model.leases[id].sound = False

    # Comparing

    def compare_ledger(self) -> None:
        """Compare what a Host lists with the model."""
        listed = {
            lease.id: (lease.name, lease.owner, lease.state is State.ACTIVE)
            for lease in self._host().leases()
        }
        assert listed == {
            id: (lease.name, lease.owner, lease.active)
            for id, lease in self._model.leases.items()
        }

    def compare_kernel(self) -> None:
        """Compare the devices that the kernel shows with the model."""
        shown = {
            name: (device.master, device.up)
            for name, device in self._lab.show().items()
            if name not in (*BRIDGES, "lo")
        }
        expected = dict.fromkeys(self._model.foreign, ("", False))
        for lease in self._model.leases.values():
            if lease.active and lease.device and lease.sound:
                expected[lease.name] = lease.bridge, True
            elif lease.device and not lease.active:
                expected[lease.name] = "", False
        disturbed = {
            lease.name
            for lease in self._model.leases.values()
            if lease.active and lease.device and not lease.sound
        }
        assert {n: s for n, s in shown.items() if n not in disturbed} == expected
        assert disturbed <= shown.keys()
