# SPDX-License-Identifier: Apache-2.0
"""The check that each test ran on at least one computer."""

import json
import os
import re
from pathlib import Path

import pytest

from lab import ran

pytest_plugins = ("pytester",)


def report(path: Path, **outcomes: str) -> str:
    path.write_text(json.dumps({"where": "a computer", "tests": outcomes}))
    return str(path)


def test_a_test_that_one_computer_skips_must_pass_on_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = report(tmp_path / "here", a="passed", b="skipped", c="skipped", d="failed")
    there = report(tmp_path / "there", b="passed", c="skipped")
    assert ran.skipped(Path(here)) == ["b", "c"]
    assert ran.main([here, there]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "a computer: 1 passed, 1 failed, 2 skipped"
    assert printed[2:] == ["passed nowhere: c", "passed nowhere: d"]
    assert (
        ran.main([here, report(tmp_path / "more", b="passed", c="passed", d="passed")])
        == 0
    )


def test_a_second_run_has_only_what_the_first_left(tmp_path: Path) -> None:
    report(tmp_path / "before.json", c="passed")
    here = Path(report(tmp_path / "here.json", a="skipped", b="skipped", c="skipped"))
    first = Path(report(tmp_path / "inside-13.json", a="passed", b="failed"))
    for number, path in enumerate((tmp_path / "before.json", here, first)):
        os.utime(path, ns=(number, number))
    assert ran.later(here) == [first]
    assert ran.missing(here) == ["b", "c"]
    report(tmp_path / "again-inside-13.json", b="passed", c="passed")
    assert ran.missing(here) == []


def test_figures_of_a_test_are_recorded_and_shown(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.makepyfile(
        test_it="def test_it(record_property): record_property('taps', '0 of 300')"
    )
    pytester.runpytest_inprocess("-p", "lab.ran", "--ran", "ran.json")
    capsys.readouterr()
    assert ran.main(["ran.json"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r": 1 passed in \d+ s\n  taps: 0 of 300\n\Z", shown), shown


def test_the_plugin_records_what_became_of_each_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        def test_passes(): pass
        def test_fails(): assert False
        def test_skips(): pytest.skip("no kernel")
        @pytest.mark.xfail(strict=True)
        def test_known(): assert False
        @pytest.fixture
        def bad():
            yield
            raise ValueError
        def test_teardown(bad): pass
        """
    )
    pytester.runpytest_inprocess("-p", "lab.ran", "--ran", "ran.json")
    found = ran.outcomes(pytester.path / "ran.json")
    assert {name.partition("::")[2]: outcome for name, outcome in found.items()} == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_known": "passed",
        "test_teardown": "failed",
    }
