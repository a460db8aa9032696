# SPDX-License-Identifier: Apache-2.0
"""A table as a picture: a dot a row with its spread, or curves."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from bench.result import Row, Table, spread

mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "bench",  # the same picture is the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
)
WIDTH = 8.0
CURVES_HEIGHT = 3.2
ROW_HEIGHT = 0.32


def draw(table: Table, path: Path) -> None:
    """Draw a table into an SVG file."""
    height = CURVES_HEIGHT if table.axis else ROW_HEIGHT * len(table.rows) + 1
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    if table.axis:
        _curves(table, axes)
    else:
        _dots(table, axes)
    figure.savefig(path, metadata={"Date": None})


def _dots(table: Table, axes: Axes) -> None:
    titles = [row.title for row in table.rows]
    middles, errors = _spreads(table.rows)
    axes.errorbar(middles, titles, xerr=errors, fmt="o", capsize=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlabel(table.unit)


def _curves(table: Table, axes: Axes) -> None:
    for curve in dict.fromkeys(row.curve for row in table.rows if row.curve):
        rows = [row for row in table.rows if row.curve == curve]
        middles, errors = _spreads(rows)
        at = [row.at for row in rows]
        axes.errorbar(at, middles, yerr=errors, marker="o", capsize=3, label=curve)
    if _wide(table):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(table.axis)
    axes.set_ylabel(table.unit)
    axes.legend()


def _wide(table: Table) -> bool:
    """Return whether the points are so far apart that the axis must be logarithmic."""
    at = [row.at for row in table.rows if row.curve]
    return max(at) > 100 * min(at)


def _spreads(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """Return the medians of rows, and how far lowest and highest are from them."""
    spreads = [spread(row.rounds) for row in rows]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    return [spread.median for spread in spreads], [below, above]
