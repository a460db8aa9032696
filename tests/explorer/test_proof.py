# SPDX-License-Identifier: Apache-2.0
"""The page about what is proved shows what the explorer prints."""

import re
from pathlib import Path

import pytest

from explorer import Explorer
from explorer.faults import known_faults

PAGE = Path(__file__).parents[2] / "docs" / "proof.md"
SHOWN = dict(
    re.findall(r"<!-- ([^\n]+) -->\n```\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
)
KNOWN = {scenario.name: scenario for scenario in known_faults()}


def test_the_page_shows_schedules() -> None:
    assert len(SHOWN) == 2


@pytest.mark.parametrize("name", SHOWN)
def test_a_schedule_on_the_page_is_what_the_explorer_finds(name: str) -> None:
    with Explorer(KNOWN[name]) as explorer:
        found = explorer.shortest().counterexample
    assert found
    assert SHOWN[name].splitlines() == list(found.lines)
