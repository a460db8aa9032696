# SPDX-License-Identifier: Apache-2.0
"""What a Host does when a backend, or its service, is not there."""

from collections.abc import Callable, Iterator, Sequence
from errno import EOPNOTSUPP
from pathlib import Path

import pytest

from lab import library
from lab.library import no_reaper
from tapster import Action, Host, Lease, Repair, State, Tap, Wiring
from tapster.backends.backend import Leftover, Observation
from tapster.errors import KernelError, ServiceUnavailable
from tapster.kernel.port import Namespace
from tapster.testing import FakeSystem


class Switch:
    """A backend that has one thing for each lease with `ovs`, and can be away."""

    name = "switch"

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.away = False
        self.last: Callable[[str], object] = lambda name: None
        """What it does to a device before it lets it go."""

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        self._ask()

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        self._ask()
        self.there.add(lease.id)

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        return frozenset()

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        self._ask()
        self.last(lease.name)
        self.there.discard(lease.id)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        if any(self.concerns(lease.wiring) for lease in leases):
            self._ask()
        unwanted = [lease.id for lease in leases if not self.concerns(lease.wiring)]
        return Observation(
            dict.fromkeys(self.there.intersection(unwanted), "it is there")
        )

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        self._ask()
        self.there.discard(leftover.lease)

    def _ask(self) -> None:
        if self.away:
            raise ServiceUnavailable("nobody is there")


@pytest.fixture
def system() -> FakeSystem:
    return FakeSystem()


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def host(system: FakeSystem, switch: Switch, ledger: Path) -> Iterator[Host]:
    system.stranger().add_bridge("br0")
    system.stranger().add_bridge("switch0")
    with Host(
        ledger, system=system, reaper=no_reaper, backends=lambda *_: [switch]
    ) as host:
        yield host


def acquire(host: Host, spec: Tap) -> Lease:
    return library.acquire(host, spec)


def test_a_backend_that_fails_for_one_lease_hinders_no_other(
    host: Host, system: FakeSystem, switch: Switch
) -> None:
    acquire(host, Tap(ovs="switch0"))
    lease = acquire(host, Tap(bridge="br0"))
    system.stranger().set_by_name(lease.name, up=False)
    switch.away = True
    with pytest.raises(ServiceUnavailable):
        host.recover()
    assert host.differences(lease) == {}


@pytest.fixture
def released(host: Host, switch: Switch) -> tuple[Lease, list[Lease]]:
    """One that cannot be ended, for its backend is away, and others that can."""
    stuck = acquire(host, Tap(ovs="switch0"))
    free = [acquire(host, Tap(bridge="br0")) for _ in range(3)]
    switch.away = True
    for lease in (stuck, *free):
        host.release(lease.id)
    return stuck, free


def test_a_lease_that_cannot_be_reaped_hinders_no_other_and_is_reported(
    host: Host, released: tuple[Lease, list[Lease]]
) -> None:
    stuck, free = released
    told: list[str] = []
    with pytest.raises(ServiceUnavailable):
        host.operations.reap(
            now=True, on_reaped=lambda over: told.extend(lease.id for lease in over)
        )
    assert sorted(told) == sorted(lease.id for lease in free)
    assert [lease.id for lease in host.leases()] == [stuck.id]


def test_a_lease_that_recover_cannot_end_hinders_no_other_and_is_reported(
    host: Host, system: FakeSystem, released: tuple[Lease, list[Lease]]
) -> None:
    stuck, free = released
    system.advance(stuck.fin_wait)
    told: list[Repair] = []
    with pytest.raises(ServiceUnavailable):
        host.operations.recover(on_repaired=told.extend)
    assert told == [Repair(lease, Action.CLOSE) for lease, _ in told]
    assert {lease.id for lease, _ in told} == {lease.id for lease in free}
    assert [lease.id for lease in host.leases()] == [stuck.id]


def test_a_lease_of_an_earlier_boot_waits_until_its_backends_are_back(
    host: Host, system: FakeSystem, switch: Switch, ledger: Path
) -> None:
    lease = acquire(host, Tap(ovs="switch0"))
    host.close()
    system.reboot()
    switch.away = True
    woken: list[str] = []
    with Host(
        ledger, system=system, reaper=woken.append, backends=lambda *_: [switch]
    ) as after:
        with pytest.raises(ServiceUnavailable):
            after.settle()
        assert woken, "nobody would try again"
        assert [one.state for one in after.leases()] == [State.FIN_WAIT]
        switch.away = False
        system.advance(lease.fin_wait)
        assert after.reap() == 1
    assert switch.there == set()


def test_a_port_of_open_vswitch_in_the_kernel_goes_down_where_it_is(
    host: Host, system: FakeSystem
) -> None:
    """The kernel refuses to take it off: it goes when Open vSwitch lets it go."""
    lease = acquire(host, Tap(ovs="switch0"))

    def refuse(step: str) -> None:
        if step.startswith("set ") and "master=0" in step:
            raise KernelError(EOPNOTSUPP, "set link")

    system.step = refuse
    host.release(lease.id)
    system.step = lambda _: None
    link = host.device(lease)
    assert link is not None
    assert not link.up


def test_a_device_stays_down_after_its_backend_let_it_go(
    host: Host, system: FakeSystem, switch: Switch
) -> None:
    """Open vSwitch puts back the flags of before, and may know old ones."""
    lease = acquire(host, Tap(ovs="switch0"))
    switch.last = lambda name: system.stranger().set_by_name(name, up=True)
    host.release(lease.id)
    link = host.device(lease)
    assert link is not None
    assert not link.up
    assert host.recover() == []


def test_recover_removes_what_a_backend_has_without_a_record_in_the_ledger(
    host: Host, switch: Switch
) -> None:
    """As when somebody brings back an old copy of a backend's database."""
    lease = acquire(host, Tap(bridge="br0"))
    switch.there.add(lease.id)
    look = host.operations.look
    assert look.all_differences([lease]) == {lease.id: {"switch": "it is there"}}
    assert [one.action for one in host.recover()] == [Action.REWIRE]
    assert switch.there == set()
    assert host.recover() == []
