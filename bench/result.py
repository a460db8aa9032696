# SPDX-License-Identifier: Apache-2.0
"""The results of a measurement: values by round, and ratios within a round.

A host's noise comes and goes. So every round measures every way, one after the other; a
ratio is taken within a round, and what counts is the median of these. The lowest and
the highest are shown beside it.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Found = TypeVar("Found")


class Spread(NamedTuple):
    """The median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """The values of one way, one for each round."""

    title: str
    rounds: Sequence[float]
    note: str = ""
    """Which parts of Tapster's work the way does, and which it does not."""
    curve: str = ""
    """The curve that it is a point of, at `at`, if the table is one of curves."""
    at: float = 0


class Goal(NamedTuple):
    """The goal for a row: a bound on its ratio to another row, or on its own value."""

    of: str
    bound: float
    to: str = ""
    least: bool = False
    """The bound is a minimum, not a maximum."""


class Table(NamedTuple):
    """The values of every way, in one run."""

    key: str
    title: str
    unit: str
    rows: Sequence[Row]
    base: str = ""
    """The row that the others are shown as multiples of."""
    goals: Sequence[Goal] = ()
    axis: str = ""
    """What `Row.at` counts, if the rows are points of curves."""
    about: str = ""

    def row(self, title: str) -> Row:
        return next(row for row in self.rows if row.title == title)

    def ratio(self, of: str, to: str) -> Spread:
        """Return how many times `to` the row `of` is, within a round."""
        pairs = zip(self.row(of).rounds, self.row(to).rounds, strict=True)
        return spread([one / other for one, other in pairs])

    def reached(self, goal: Goal) -> tuple[Spread, bool]:
        """Return whether a goal was reached, in words."""
        if goal.to:
            found = self.ratio(goal.of, goal.to)
        else:
            found = spread(self.row(goal.of).rounds)
        if goal.least:
            return found, found.median >= goal.bound
        return found, found.median <= goal.bound


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def best(rows: Sequence[Row], *, most: bool = False) -> str:
    """Return the title of the row with the lowest median, or the highest if `most`."""
    pick = max if most else min
    return pick(rows, key=lambda row: statistics.median(row.rounds)).title


def interleave(
    ways: Mapping[str, Callable[[], Found]], rounds: int
) -> dict[str, list[Found]]:
    """Return what each way finds in each round; another one begins each round."""
    found: dict[str, list[Found]] = {title: [] for title in ways}
    order = [*ways]
    for _ in range(rounds):
        for title in order:
            found[title].append(ways[title]())
        order.append(order.pop(0))
    return found


def table(plain: Mapping[str, Any]) -> Table:
    """Return a table, from what `plain` made of it."""
    rows = [Row(**row) for row in plain["rows"]]
    goals = [Goal(**goal) for goal in plain["goals"]]
    return Table(**{**plain, "rows": rows, "goals": goals})


def plain(table: Table) -> dict[str, Any]:
    """Return a table as JSON can hold it."""
    return {
        **table._asdict(),
        "rows": [row._asdict() for row in table.rows],
        "goals": [goal._asdict() for goal in table.goals],
    }
