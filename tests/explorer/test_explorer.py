# SPDX-License-Identifier: Apache-2.0
"""Every schedule within the small bound; and that the explorer is a judge."""

from collections.abc import Iterator

import pytest

from explorer import Explorer, Scenario, replay
from explorer.faults import known_faults
from explorer.ops import (
    TAP,
    administrator,
    foreign,
    late_cleanup,
    manager,
    recover,
)
from explorer.scenarios import full, small
from explorer.script import Script
from explorer.state_space import State

KNOWN = {scenario.name: scenario for scenario in known_faults()}
SMALL = {scenario.name: scenario for scenario in small()}

TINY = {
    "a foreign program": Scenario("", (manager("A"), foreign())),
    "a late cleanup": Scenario("", (manager("A"), late_cleanup("A", "delete"))),
    "a crash": Scenario("", (manager("A"), Script("R", (recover(after=1),))), 1),
    "an administrator": Scenario("", (manager("A"), administrator("delete", "vnet0"))),
    "two of these": Scenario(
        "", (manager("A"), foreign(), late_cleanup("A", "delete"))
    ),
    "recover at any time": Scenario("", (manager("A"), Script("R", (recover(),)))),
    "a broken one": KNOWN["Tapster without the lease recorded first"],
    "another": KNOWN["kernel chooses the name"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_tapster_keeps_its_promises_in_every_schedule(name: str) -> None:
    with Explorer(SMALL[name]) as explorer:
        result = explorer.explore()
        assert not result.broken, explorer.shortest().counterexample
        assert result.schedules > 1
        assert not explorer.idle()


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_fault_is_found(name: str) -> None:
    with Explorer(KNOWN[name]) as explorer:
        assert explorer.shortest().counterexample


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_a_bad_schedule_can_be_replayed(name: str) -> None:
    with Explorer(KNOWN[name]) as explorer:
        found = explorer.shortest().counterexample
    assert found
    again = replay(KNOWN[name], found.schedule)
    assert again == found
    assert again.lines[-1] == f"=> {found.broken}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_merging_loses_no_schedule_and_no_violation(name: str) -> None:
    with Explorer(TINY[name]) as explorer:
        merged = explorer.explore()
        walked = explorer.explore(merge=False)
    assert merged.schedules == walked.schedules
    assert merged.broken == walked.broken
    assert merged.states < walked.states


@pytest.mark.slow
def test_a_restored_state_is_as_good_as_a_new_start() -> None:
    """Each schedule from an empty world of its own ends as it did in the search."""
    scenario = TINY["a foreign program"]
    with Explorer(scenario) as explorer:
        schedules = list(every(explorer, explorer.state_space.start(), ()))
        searched = [explorer.explain(schedule) for schedule in schedules]
        assert len(schedules) == explorer.explore().schedules
    assert [replay(scenario, schedule) for schedule in schedules] == searched


def every(
    explorer: Explorer, state: State, before: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Every schedule from a state on."""
    successors = list(explorer.successors(state))
    for successor in successors:
        yield from every(explorer, successor.state, (*before, successor.token))
    if not successors:
        yield before


def test_no_shorter_schedule_is_bad() -> None:
    scenario = KNOWN["counter: looks, then makes"]
    with Explorer(scenario) as explorer:
        found = explorer.shortest().counterexample
    assert found
    assert not replay(scenario, found.schedule[:-1]).broken


def test_a_scenario_in_which_nothing_is_acquired_shows() -> None:
    scenario = Scenario("", (manager("A", TAP._replace(name="lo")),))
    with Explorer(scenario) as explorer:
        assert not explorer.explore().broken
        assert explorer.idle() == {"A"}


def test_a_schedule_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no successor after 0 steps"):
        replay(Scenario("", (manager("A"), late_cleanup("A"))), ("stranger",))


def test_the_full_bound_has_the_small_one_in_it() -> None:
    assert {scenario.name for scenario in full()} > set(SMALL)
