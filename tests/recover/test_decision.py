# SPDX-License-Identifier: Apache-2.0
"""What recover does with a lease: the table, and what counts as our device."""

from itertools import product
from typing import NamedTuple

import pytest

from lab.leases import LEASE
from tapster import model
from tapster.model import Link, State
from tapster.operations.decision import (
    TABLE,
    Action,
    Conditions,
    DeviceState,
    decide,
    is_ours,
    look,
)

LEDGER = "0a1b2c3d"
OTHER_LEDGER = "d3c2b1a0"

OUR_STAMP = model.stamp(LEDGER, LEASE.id)

LINK = Link(
    ifindex=LEASE.ifindex,
    name=LEASE.name,
    kind="tun",
    alias=OUR_STAMP,
    mac="fe:54:00:12:34:56",
    mtu=1500,
    up=True,
    master=0,
)


class Situation(NamedTuple):
    """A lease as recover finds it."""

    state: State
    seen: DeviceState
    facts: Conditions


WORLDS = [
    Situation(state, seen, Conditions(*facts))
    for state, seen in product(State, DeviceState)
    for facts in product([False, True], repeat=len(Conditions._fields))
]


def after(action: Action, world: Situation) -> Situation | None:
    """What an action leads to; None when the lease is over."""
    match action:
        case Action.LEAVE:
            return world
        case Action.UNDO | Action.CLOSE:
            return None
        case Action.FINISH:
            facts = world.facts._replace(backends=False, openable=False)
            return world._replace(seen=DeviceState.AT_REST, facts=facts)
        case Action.REWIRE:
            return world._replace(facts=world.facts._replace(differs=False))
        case Action.RELEASE | Action.HOLD_NAME:
            # The deadline is set now if it was not, so it lies ahead; the device,
            # or the placeholder that took its place, is down.
            facts = world.facts._replace(due=False, backends=False, openable=False)
            return Situation(State.FIN_WAIT, DeviceState.AT_REST, facts)


# The table


def test_the_table_is_total() -> None:
    assert set(TABLE) == set(product(State, DeviceState))


@pytest.mark.parametrize("world", WORLDS)
def test_after_each_action_the_same_lease_is_left_alone(world: Situation) -> None:
    left = after(decide(*world), world)
    assert left is None or decide(*left) is Action.LEAVE


def test_every_action_is_for_something() -> None:
    assert {decide(*world) for world in WORLDS} == set(Action)


def test_a_lease_that_a_living_manager_works_on_is_left_alone() -> None:
    worked_on = [world for world in WORLDS if world.facts.worked_on]
    assert {decide(*world) for world in worked_on} == {Action.LEAVE}


def test_a_lease_of_another_boot_or_a_dead_namespace_is_closed() -> None:
    over = [w for w in WORLDS if w.facts.namespace_gone and not w.facts.worked_on]
    assert {decide(*world) for world in over} == {Action.CLOSE}


@pytest.mark.parametrize("seen", DeviceState)
def test_fin_wait_ends_when_it_is_due_and_not_before(seen: DeviceState) -> None:
    assert decide(State.FIN_WAIT, seen, Conditions(due=True)) is Action.CLOSE
    assert decide(State.FIN_WAIT, seen, Conditions()) is not Action.CLOSE


@pytest.mark.parametrize("seen", DeviceState)
def test_an_acquire_that_never_ended_is_undone(seen: DeviceState) -> None:
    for due, owner_gone in product([False, True], repeat=2):
        facts = Conditions(due=due, owner_gone=owner_gone)
        assert decide(State.RESERVED, seen, facts) is Action.UNDO


@pytest.mark.parametrize("seen", DeviceState)
def test_an_active_lease_ends_with_its_process(seen: DeviceState) -> None:
    facts = Conditions(owner_gone=True)
    assert decide(State.ACTIVE, seen, facts) is Action.RELEASE


@pytest.mark.parametrize("seen", [DeviceState.NOT_AT_REST, DeviceState.AT_REST])
def test_an_active_lease_whose_device_is_there_is_left_alone(seen: DeviceState) -> None:
    assert decide(State.ACTIVE, seen, Conditions()) is Action.LEAVE


def test_a_released_device_is_brought_to_rest_and_then_left_alone() -> None:
    assert (
        decide(State.FIN_WAIT, DeviceState.NOT_AT_REST, Conditions()) is Action.FINISH
    )
    assert decide(State.FIN_WAIT, DeviceState.AT_REST, Conditions()) is Action.LEAVE


def test_a_waiting_tap_that_its_user_may_open_is_finished() -> None:
    openable = Conditions(openable=True)
    assert decide(State.FIN_WAIT, DeviceState.AT_REST, openable) is Action.FINISH
    assert decide(State.ACTIVE, DeviceState.AT_REST, openable) is Action.LEAVE


@pytest.mark.parametrize("state", [State.ACTIVE, State.FIN_WAIT])
def test_the_name_of_a_lost_device_is_held(state: State) -> None:
    assert decide(state, DeviceState.ABSENT, Conditions()) is Action.HOLD_NAME


# What is ours


@pytest.mark.parametrize("name", ["vnet0", "renamed"])
def test_a_device_with_our_stamp_is_ours_under_any_name(name: str) -> None:
    assert is_ours(LEDGER, LEASE, LINK._replace(name=name))


@pytest.mark.parametrize("alias", ["", "a note by somebody", "tapster:x"])
def test_an_unstamped_device_is_ours_if_the_name_agrees(alias: str) -> None:
    link = LINK._replace(alias=alias)
    assert is_ours(LEDGER, LEASE, link)
    assert not is_ours(LEDGER, LEASE, link._replace(name="vnet1"))


FOREIGN = [
    LINK._replace(ifindex=LEASE.ifindex + 1),
    LINK._replace(ifindex=LEASE.ifindex + 1, alias=""),
    LINK._replace(alias=model.stamp(OTHER_LEDGER, LEASE.id)),
    LINK._replace(alias=model.stamp(LEDGER, "fedcba9876543210")),
    LINK._replace(alias="", name="vnet1"),
]


@pytest.mark.parametrize("link", FOREIGN)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("master", [0, 7])
def test_a_foreign_device_counts_as_absent_I4(
    link: Link, up: bool, master: int
) -> None:
    link = link._replace(up=up, master=master)
    assert not is_ours(LEDGER, LEASE, link)
    assert look(LEDGER, LEASE, link) is DeviceState.ABSENT


def test_no_device_counts_as_absent() -> None:
    assert look(LEDGER, LEASE, None) is DeviceState.ABSENT


@pytest.mark.parametrize(
    ("up", "master", "seen"),
    [
        (True, 7, DeviceState.NOT_AT_REST),
        (True, 0, DeviceState.NOT_AT_REST),
        (False, 7, DeviceState.NOT_AT_REST),
        (False, 0, DeviceState.AT_REST),
    ],
)
def test_a_device_is_at_rest_when_it_is_down_and_on_no_bridge(
    up: bool, master: int, seen: DeviceState
) -> None:
    assert look(LEDGER, LEASE, LINK._replace(up=up, master=master)) is seen


@pytest.mark.parametrize("alias", ["", "a note by somebody"])
def test_a_device_without_a_stamp_is_not_at_rest(alias: str) -> None:
    link = LINK._replace(alias=alias, up=False, master=0)
    assert look(LEDGER, LEASE, link) is DeviceState.NOT_AT_REST
