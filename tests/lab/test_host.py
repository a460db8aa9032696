# SPDX-License-Identifier: Apache-2.0
"""The parts of the host lab that need no host."""

import json
import os
from pathlib import Path

import pytest

from lab.host import archive, cache, testing


def plan(*arguments: str, skipped: Path | None = None) -> testing.HostTests:
    return testing.plan("13", arguments, skipped=skipped, times=2, minutes=1)


def test_all_tests_run_if_none_is_selected() -> None:
    whole = plan("-x")
    assert whole.parts == {
        "inside": ["tests/host/inside", "-x"],
        "isolated": ["tests/rewire", "tests/backends", "-x"],
        "outside": ["tests/host/outside", "-x"],
    }
    assert whole.taps == testing.TAPS


@pytest.mark.parametrize(
    ("test", "part"),
    [
        ("tests/rewire", "isolated"),
        ("tests/host/inside/test_units.py", "inside"),
        ("tests/host/outside", "outside"),
    ],
)
def test_only_the_part_that_has_the_selected_tests_runs(test: str, part: str) -> None:
    assert plan(test, "-x").parts == {part: [test, "-x"]}


def test_the_short_form_is_what_another_computer_skipped(tmp_path: Path) -> None:
    report = tmp_path / "here.json"
    outcomes = {
        "tests/rewire/test_it.py::test_a": "skipped",
        "tests/rewire/test_it.py::test_b": "passed",
        "tests/host/outside/test_it.py::test_c": "skipped",
    }
    report.write_text(json.dumps({"where": "here", "tests": outcomes}))
    short = plan(skipped=report)
    assert short.parts == {
        "isolated": ["tests/rewire/test_it.py::test_a"],
        "outside": ["tests/host/outside/test_it.py::test_c"],
    }
    assert short.taps == testing.SHORT_TAPS


def test_a_computer_that_skipped_nothing_leaves_nothing_to_run(tmp_path: Path) -> None:
    report = tmp_path / "here.json"
    outcomes = {"tests/rewire/test_it.py::test_a": "passed"}
    report.write_text(json.dumps({"where": "here", "tests": outcomes}))
    assert plan(skipped=report).parts == {}
    with pytest.raises(testing.Unplanned, match="run make test first"):
        plan(skipped=tmp_path / "nowhere.json")


def test_a_second_run_keeps_the_reports_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ran").mkdir()
    for number, name in enumerate(("outside-13", "here", "inside-13")):
        path = tmp_path / ".ran" / f"{name}.json"
        path.write_text(json.dumps({"where": "here", "tests": {}}))
        os.utime(path, ns=(number, number))
    second = plan(skipped=Path(".ran/here.json"))
    assert second.report("inside") == Path(".ran/again-inside-13.json")
    assert second.report("outside") == Path(".ran/outside-13.json")


def test_what_a_killed_maker_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    left = cache.folder() / "making-image-123"
    left.mkdir()
    made = cache.made("image", "1", lambda new: (new / "disk").touch())
    assert [file.name for file in made.iterdir()] == ["disk"]
    assert not left.exists()


def test_an_archive_that_cannot_be_reached_is_named_without_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(archive, "address", lambda: "http://archive.invalid/debian")
    with pytest.raises(archive.Unreachable) as caught:
        archive.check("trixie")
    assert "apt cannot fetch Debian's release trixie" in str(caught.value)
    assert "://" not in str(caught.value)
