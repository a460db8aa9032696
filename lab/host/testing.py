# SPDX-License-Identifier: Apache-2.0
"""Run tests on a host and, beside them, the tests that start hosts themselves.

A host without KVM keeps one processor busy, so the two parts run at once.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from lab import ran
from lab.host import product, snapshot
from lab.host.debian import DebianHost
from lab.host.image import Image

RAN = "/run/lab/ran.json"
SELECTED = "/run/lab/selected"
INSIDE = ("tests/host/inside", "tests/rewire", "tests/backends")
"""What runs on a host if nothing is selected."""
OUTSIDE = "tests/host/outside"
"""Tests that start hosts themselves."""
TAPS, SHORT_TAPS = 300, 30
"""Taps to make under udev, which replaced the MAC of 8 of 60 on Debian 13 before the
hands-off files were there."""


class Unplanned(Exception):
    """No report says which tests to run."""


class Plan(NamedTuple):
    """What runs where, and how often a test repeats what may or may not go wrong."""

    suite: str
    inside: list[str]
    outside: list[str]
    taps: int
    times: int
    minutes: float
    kept: list[Path]
    """Reports on which the plan builds."""

    def report(self, part: str) -> Path:
        """Return the file that tells what became of each test of a part."""
        path = Path(".ran", f"{part}-{self.suite}.json")
        while path in self.kept:
            path = path.with_name(f"again-{path.name}")
        return path


def plan(
    suite: str,
    arguments: Sequence[str],
    *,
    skipped: Path | None,
    times: int,
    minutes: float,
) -> Plan:
    """Divide tests between the parts; both parts get the other arguments of pytest.

    The tests are those among the arguments, or all. With the report of a computer that
    skipped tests, they are those that have passed nowhere since. Raises Unplanned if
    the report is not there.
    """
    tests = [word for word in arguments if word.startswith("tests/")]
    others = [word for word in arguments if word not in tests]
    if skipped:
        if not skipped.exists():
            raise Unplanned(f"{skipped} is not there: run make test first")
        tests = ran.missing(skipped)
    elif not tests:
        tests = [*INSIDE, OUTSIDE]
    outside = [test for test in tests if test.startswith(OUTSIDE)]
    inside = [test for test in tests if test not in outside]
    return Plan(
        suite,
        inside and [*inside, *others],
        outside and [*outside, *others],
        SHORT_TAPS if skipped else TAPS,
        times,
        minutes,
        ran.later(skipped) if skipped else [],
    )


def run(image: Image, plan: Plan) -> int:
    """Run both parts; show what each prints, one after the other."""
    status = 0
    with beside(plan) as outside:
        if plan.inside:
            with snapshot.resumed(image) as host:
                product.install(host)
                status = _inside(host, plan)
        if outside:
            process, output = outside
            process.wait(plan.minutes * 60)
            output.seek(0)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
            status = status or process.returncode
    return status


@contextmanager
def beside(plan: Plan) -> "Iterator[tuple[subprocess.Popen[bytes], IO[bytes]] | None]":
    """Start the tests that start hosts; end them if this part ends early."""
    if not plan.outside:
        yield None
        return
    command = [
        *(sys.executable, "-m", "pytest", "--durations=10"),
        *("-p", "lab.host.plugin", "--suite", plan.suite, "--times", str(plan.times)),
        *("-p", "lab.ran", "--ran", str(plan.report("outside")), *plan.outside),
    ]
    with (
        TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            yield process, output
        finally:
            process.terminate()


def _inside(host: DebianHost, plan: Plan) -> int:
    host.write(SELECTED, "\n".join(plan.inside))
    status = host.run(
        *("env", f"LAB_TAPS={plan.taps}"),
        *("python3", "-m", "pytest", "--durations=10"),
        *("-p", "lab.ran", "--ran", RAN, f"@{SELECTED}"),
        folder=product.THERE,
        timeout=plan.minutes * 60,
        check=False,
        on_output=show,
    ).status
    report = plan.report("inside")
    report.parent.mkdir(exist_ok=True)
    report.write_text(host.read(RAN))
    return status


def show(data: bytes) -> None:
    """Print a piece of output as it comes."""
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
