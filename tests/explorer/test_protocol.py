# SPDX-License-Identifier: Apache-2.0
"""The protocol between processes keeps its promises, and needs each of its rules."""

import pytest

from explorer.protocol import SCENARIOS, VARIANTS, ProtocolScenario, Rules, explore


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            scenario,
            id=scenario.name,
            marks=[pytest.mark.slow] if scenario.most.freezes else [],
        )
        for scenario in SCENARIOS
    ],
)
def test_every_interleaving_keeps_the_promises(scenario: ProtocolScenario) -> None:
    found = explore(scenario)
    assert not found.broken, found.steps
    assert found.states > 3


@pytest.mark.parametrize(
    ("name", "rules", "number"),
    [
        pytest.param(
            *variant,
            marks=[pytest.mark.slow] if SCENARIOS[variant[2]].most.freezes else [],
        )
        for variant in VARIANTS
    ],
)
def test_each_rule_is_needed(name: str, rules: Rules, number: int) -> None:
    assert explore(SCENARIOS[number], rules).broken, name


def test_every_rule_is_tried() -> None:
    changed = {
        field
        for _, rules, _ in VARIANTS
        for field, value in rules._asdict().items()
        if not value
    }
    assert changed == set(Rules._fields)
