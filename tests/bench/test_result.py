# SPDX-License-Identifier: Apache-2.0
"""What is made of what was measured."""

import json
from functools import partial

import pytest

from bench.__main__ import DOCS
from bench.report import PICTURES, text
from bench.result import Goal, Row, Spread, Table, best, interleave, plain, table

NOISY = Table(
    "key",
    "title",
    "ms",
    [Row("floor", [1.0, 10.0, 1.0]), Row("ours", [2.0, 20.0, 3.0], "note")],
    base="floor",
    goals=[Goal("ours", 2.0, to="floor"), Goal("ours", 2.5)],
)


def test_a_ratio_is_taken_within_a_round() -> None:
    assert NOISY.ratio("ours", "floor") == Spread(2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("goal", "found", "reached"),
    [
        (Goal("ours", 2.0, to="floor"), 2.0, True),
        (Goal("ours", 1.9, to="floor"), 2.0, False),
        (Goal("ours", 2.0, to="floor", least=True), 2.0, True),
        (Goal("ours", 2.1, to="floor", least=True), 2.0, False),
        (Goal("ours", 3.0), 3.0, True),
        (Goal("ours", 2.9), 3.0, False),
    ],
)
def test_a_goal_is_reached_by_the_median(
    goal: Goal, found: float, reached: bool
) -> None:
    spread, is_reached = NOISY.reached(goal)
    assert (spread.median, is_reached) == (found, reached)


def test_a_goal_that_is_missed_is_called_so() -> None:
    assert "at most 2.5 ms: 3 (2 to 20), behind" in text(NOISY)
    assert "at most 2 x floor: 2 (2 to 3), reached" in text(NOISY)


def test_the_best_has_the_lowest_median_or_the_highest() -> None:
    assert best(NOISY.rows) == "floor"
    assert best(NOISY.rows, most=True) == "ours"


def test_every_round_measures_every_way_and_another_begins() -> None:
    calls: list[str] = []
    interleave({one: partial(calls.append, one) for one in "abc"}, 3)
    assert "".join(calls) == "abcbcacab"


def test_a_table_comes_back_from_json_as_it_was() -> None:
    assert table(json.loads(json.dumps(plain(NOISY)))) == NOISY


def test_pictures_in_the_docs_stay_few_and_small() -> None:
    pictures = [path for kind in ("svg", "png") for path in DOCS.rglob(f"*.{kind}")]
    assert {picture.stem for picture in pictures} == {"demo", *PICTURES}
    assert len(pictures) <= 8
    assert [one.name for one in pictures if one.stat().st_size > 30_000] == []
