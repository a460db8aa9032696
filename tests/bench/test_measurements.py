# SPDX-License-Identifier: Apache-2.0
"""The harness works: every measurement runs, and what it writes is whole."""

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.__main__ import MEASUREMENTS
from bench.report import PICTURES
from bench.result import table

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ROUNDS = 2


def bench(out: Path, *words: str) -> str:
    command = [sys.executable, "-m", "bench", "--small", "--rounds", str(ROUNDS)]
    done = subprocess.run(
        [*command, "--out", str(out), *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_prints_and_writes_what_it_found(
    name: str, tmp_path: Path
) -> None:
    printed = bench(tmp_path, name)
    written = json.loads((tmp_path / "performance" / f"{name}.json").read_text())
    page = (tmp_path / "performance.md").read_text()
    assert written["tables"]
    for one in map(table, written["tables"]):
        titles = [row.title for row in one.rows]
        assert len(set(titles)) == len(titles)
        assert all(isfinite(value) for row in one.rows for value in row.rounds)
        assert len({len(row.rounds) for row in one.rows}) == 1
        for goal in one.goals:
            one.reached(goal)  # it names rows that there are
        assert one.title in printed
        assert one.title in page
        picture = tmp_path / "performance" / f"{one.key}.svg"
        assert picture.exists() == (one.key in PICTURES)
        assert (f"performance/{picture.name}" in page) == (one.key in PICTURES)
        if picture.exists():
            assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_a_measurement_that_is_unknown_is_refused() -> None:
    command = [sys.executable, "-m", "bench", "nothing"]
    done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT)
    assert done.returncode == 2
    assert b"there is no measurement 'nothing'" in done.stderr
