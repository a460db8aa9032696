# SPDX-License-Identifier: Apache-2.0
"""Tables as text, as JSON, and as the page docs/performance.md."""

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.draw import draw
from bench.result import Goal, Row, Spread, Table, plain, spread, table

PAGE = "performance.md"
FILES = "performance"
"""The folder of the JSON and of the pictures, beside the page."""
PICTURES = (
    "acquire-200",
    "release-200",
    "sustained",
    "growth-acquire",
    "backends-start",
    "daemon-rate",
    "drift-time",
)
"""The tables that are drawn, too. A picture says little more than its table, and each
new run adds its size to the repository: so there are eight at most in docs."""

INTRODUCTION = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
# Performance

`make bench` has written this page. [bench/README.md](../bench/README.md) says how to
read it, how to measure again, and how to add to it.

Compare within a table: there all ways took turns on one host. A figure is the median
of the rounds, with the lowest and the highest; a ratio is taken within a round. Each
section names the day of its measurement: its figures show nothing that changed later.

## Goals
"""


def text(table: Table) -> str:
    """Return a table and what became of its goals, for a terminal."""
    cells = [[row.title, *_figures(table, row)] for row in table.rows]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = [f"{table.title} ({table.unit})"]
    for title, value, ratio in cells:
        line = f"  {title:<{widths[0]}}  {value:>{widths[1]}}  {ratio:>{widths[2]}}"
        lines.append(line.rstrip())
    for goal in table.goals:
        of, to_reach, found, outcome = _outcome(table, goal)
        lines.append(f"  {of}: {to_reach}: {found}, {outcome.strip('*')}")
    return "\n".join(lines) + "\n"


def write(out: Path, name: str, tables: Sequence[Table], rounds: int) -> None:
    """Write one measurement's JSON and pictures, and the page of all measurements."""
    folder = out / FILES
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": _machine(),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "rounds": rounds,
        "tables": [plain(measured) for measured in tables],
    }
    folder.joinpath(f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    for drawn in tables:
        if drawn.key in PICTURES:
            draw(drawn, folder / f"{drawn.key}.svg")


def write_page(out: Path, names: Sequence[str]) -> None:
    """Write the page of the measurements that have been made, in this order."""
    files = [out / FILES / f"{name}.json" for name in names]
    runs = [json.loads(file.read_text()) for file in files if file.exists()]
    out.joinpath(PAGE).write_text("\n".join(_page(runs)) + "\n")


def _page(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield INTRODUCTION
    yield from _line("measurement", "row", "goal", "found", "")
    yield from _line(*["---"] * 5)
    for run in runs:
        for measured in map(table, run["tables"]):
            for goal in measured.goals:
                yield from _line(measured.title, *_outcome(measured, goal))
    for run in runs:
        for measured in map(table, run["tables"]):
            yield from _section(measured)
        yield (
            f"Measured on {run['measured']}, on {run['machine']}, "
            f"in {run['rounds']} rounds."
        )


def _section(table: Table) -> Iterator[str]:
    yield f"\n## {table.title}\n"
    if table.about:
        yield f"{table.about}\n"
    if table.key in PICTURES:
        yield f"![{table.title}]({FILES}/{table.key}.svg)\n"
    yield from _line("", table.unit, f"x {table.base}" if table.base else "", "")
    yield from _line("---", "---:", "---:", "---")
    for row in table.rows:
        yield from _line(row.title, *_figures(table, row), row.note)
    yield ""


def _line(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _figures(table: Table, row: Row) -> tuple[str, str]:
    """Return a row's value, and how many times the base it is."""
    value = _shown(spread(row.rounds))
    if not table.base:
        return value, ""
    return value, f"x {_shown(table.ratio(row.title, table.base))}"


def _outcome(table: Table, goal: Goal) -> tuple[str, str, str, str]:
    found, reached = table.reached(goal)
    bound = f"at {'least' if goal.least else 'most'} {goal.bound:g}"
    to_reach = f"{bound} x {goal.to}" if goal.to else f"{bound} {table.unit}"
    return goal.of, to_reach, _shown(found), "reached" if reached else "**behind**"


def _shown(values: Spread) -> str:
    median, low, high = map(_number, values)
    return median if low == high else f"{median} ({low} to {high})"


def _number(value: float) -> str:
    """Return a number with three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machine() -> str:
    with open("/proc/cpuinfo") as file:
        model = next(line for line in file if line.startswith("model name"))
    cpus = f"{os.cpu_count()} x {model.partition(':')[2].strip()}"
    return f"{cpus}, Linux {platform.release()}, Python {platform.python_version()}"
