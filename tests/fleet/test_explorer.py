# SPDX-License-Identifier: Apache-2.0
"""Every order of events within the small bound; and that the search is a judge."""

import pytest

from explorer.fleet.scenarios import SCENARIOS
from explorer.fleet.variants import VARIANTS, Variant, applied
from explorer.fleet.world import FleetScenario, explore

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_store_is_right_in_every_order_of_events(scenario: FleetScenario) -> None:
    found = explore(scenario)
    assert not found.broken, "\n".join([found.broken, *found.steps])
    assert found.states > 100


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_wrong_version_of_the_rules_is_found(variant: Variant) -> None:
    with applied(variant):
        found = explore(BY_NAME[variant.scenario])
    assert found.broken
    assert found.steps
