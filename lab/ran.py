# SPDX-License-Identifier: Apache-2.0
"""Which tests ran where: a plugin of pytest, and a check over several computers.

No computer can run all tests. `pytest -p lab.ran --ran FILE` writes what became of each
test, and the figures that it gave to `record_property`. `python -m lab.ran FILE...`
fails if a test that one of these files names passed in none of them.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ran", type=Path, help="write what became of each test here")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--ran")
    if path and not hasattr(config, "workerinput"):  # the others are pytest-xdist's
        hosts = config.getoption("--suite", None)  # of lab.host.plugin
        there = f", with hosts of Debian {hosts}" if hosts else ""
        config.pluginmanager.register(Recorder(path, where() + there))


class Recorder:
    """Keeps the outcome of each test, and writes all of them at the end."""

    def __init__(self, path: Path, where: str) -> None:
        self._path = path
        self._where = where
        self._started = time.monotonic()
        self._outcomes: dict[str, str] = {}
        self._figures: dict[str, dict[str, object]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self._outcomes.get(report.nodeid)
        if report.failed or before == "failed":
            outcome = "failed"
        elif report.skipped and not hasattr(report, "wasxfail"):
            outcome = "skipped"
        elif report.when == "call" or hasattr(report, "wasxfail"):
            outcome = "passed"
        else:
            return
        self._outcomes[report.nodeid] = outcome
        if report.user_properties:  # what the test gave to `record_property`
            self._figures[report.nodeid] = dict(report.user_properties)

    def pytest_sessionfinish(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "where": self._where,
            "seconds": round(time.monotonic() - self._started),
            "tests": self._outcomes,
            "figures": self._figures,
        }
        self._path.write_text(json.dumps(report, indent=1) + "\n")


def where() -> str:
    """Return what tells computers apart: distribution, kernel, systemd, Python."""
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    systemd = "no systemd"
    if os.path.exists("/run/systemd/system"):
        command = ("systemctl", "--version")
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        systemd = re.sub(r"(?s)(systemd) .*?\(([\d.]+).*", r"\1 \2", shown.stdout)
    kernel, python = platform.release(), platform.python_version()
    return f"{system}, Linux {kernel}, {systemd}, Python {python}"


def outcomes(path: Path) -> dict[str, str]:
    """Read what became of each test in one run."""
    tests: dict[str, str] = json.loads(path.read_text())["tests"]
    return tests


def skipped(path: Path) -> list[str]:
    """Return the tests that one run skipped."""
    return [test for test, outcome in outcomes(path).items() if outcome == "skipped"]


def later(path: Path) -> list[Path]:
    """Return the reports beside one that were written after it."""
    since = path.stat().st_mtime_ns
    beside = sorted(path.parent.glob("*.json"))
    return [other for other in beside if other.stat().st_mtime_ns > since]


def missing(path: Path) -> list[str]:
    """Return the tests that one run skipped and that passed in no later run."""
    left = set(ran_nowhere(outcomes(report) for report in (path, *later(path))))
    return [test for test in skipped(path) if test in left]


def ran_nowhere(runs: Iterable[dict[str, str]]) -> list[str]:
    """Return the tests that passed in none of these runs."""
    every: set[str] = set()
    passed: set[str] = set()
    for run in runs:
        every.update(run)
        passed.update(test for test, outcome in run.items() if outcome == "passed")
    return sorted(every - passed)


def main(arguments: list[str]) -> int:
    """Print what ran where; return 1 if a test passed nowhere."""
    reports: dict[str, Any] = {
        path: json.loads(Path(path).read_text()) for path in arguments
    }
    for report in reports.values():
        results = list(report["tests"].values())
        counts = ", ".join(
            f"{results.count(outcome)} {outcome}"
            for outcome in ("passed", "failed", "skipped")
            if outcome in results
        )
        seconds = f" in {report['seconds']} s" if "seconds" in report else ""
        print(f"{report['where']}: {counts}{seconds}")
        for figures in report.get("figures", {}).values():
            for name, value in figures.items():
                print(f"  {name}: {value}")
    missing = ran_nowhere(report["tests"] for report in reports.values())
    for test in missing:
        print(f"passed nowhere: {test}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
