# SPDX-License-Identifier: Apache-2.0
"""Run tests on hosts, and beside them the tests that start hosts themselves.

A host without KVM keeps one processor busy, so the parts run at once.
"""

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from lab import ran
from lab.host import product, snapshot
from lab.host.debian import DebianHost
from lab.host.image import Image

RAN = "/run/lab/ran.json"
SELECTED = "/run/lab/selected"
OUTSIDE = "tests/host/outside"
DEFAULT = ("tests/host/inside", OUTSIDE, "tests/rewire", "tests/backends")
"""What runs if nothing is selected."""
TAPS, SHORT_TAPS = 300, 30
"""Taps to make under udev, which replaced the MAC of 8 of 60 on Debian 13 before the
hands-off files were there."""


class Unplanned(Exception):
    """No report says which tests to run."""


class HostTests(NamedTuple):
    """What runs where, and how often a test repeats what may or may not go wrong."""

    suite: str
    parts: dict[str, list[str]]
    """The arguments of pytest, by part: "inside" changes its host, "isolated" works in
    namespaces on another host, "outside" starts hosts itself."""
    taps: int
    times: int
    minutes: float
    kept: list[Path]
    """Reports on which the plan builds."""
    ran: Path | None
    """Where the only part reports, if not below .ran."""

    def report(self, part: str) -> Path:
        """Return the file that tells what became of each test of a part."""
        path = self.ran or Path(".ran", f"{part}-{self.suite}.json")
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
    ran_file: Path | None = None,
) -> HostTests:
    """Divide tests into parts; each part gets the other arguments of pytest.

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
        tests = [*DEFAULT]
    return HostTests(
        suite,
        {
            part: [*chosen, *others]
            for part, chosen in itertools.groupby(sorted(tests, key=_part), _part)
        },
        SHORT_TAPS if skipped else TAPS,
        times,
        minutes,
        ran.later(skipped) if skipped else [],
        ran_file,
    )


def _part(test: str) -> str:
    """Return the part to which a test belongs."""
    if test.startswith(OUTSIDE):
        return "outside"
    return "inside" if test.startswith("tests/host") else "isolated"


def run(image: Image, plan: HostTests) -> int:
    """Run all parts; show what each prints, one after the other."""
    here = next((part for part in plan.parts if part != "outside"), None)
    status = 0
    with ExitStack() as stack:
        others = [
            stack.enter_context(_beside(_command(plan, part)))
            for part in plan.parts
            if part != here
        ]
        if here:
            with snapshot.resumed(image) as host:
                product.install(host)
                status = _on_host(host, plan, here)
        for process, output in others:
            process.wait(plan.minutes * 60)
            output.seek(0)
            show(output.read())
            status = status or process.returncode
    return status


def _command(plan: HostTests, part: str) -> list[str]:
    """Return a command that runs one part."""
    arguments, report = plan.parts[part], str(plan.report(part))
    if part != "outside":
        command = [sys.executable, "-m", "lab.host", "--suite", plan.suite]
        return [*command, "test", "--ran", report, "--", *arguments]
    return [
        *(sys.executable, "-m", "pytest", "--durations=10"),
        *("-p", "lab.host.plugin", "--suite", plan.suite, "--times", str(plan.times)),
        *("-p", "lab.ran", "--ran", report, *arguments),
    ]


@contextmanager
def _beside(
    command: Sequence[str],
) -> "Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]":
    """Start a command; if this part ends early, interrupt it, so that its hosts end."""
    with (
        TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            yield process, output
        finally:
            process.send_signal(signal.SIGINT)


def _on_host(host: DebianHost, plan: HostTests, part: str) -> int:
    host.write(SELECTED, "\n".join(plan.parts[part]))
    status = host.run(
        *("env", f"LAB_TAPS={plan.taps}"),
        *("python3", "-m", "pytest", "--durations=10"),
        *("-p", "lab.ran", "--ran", RAN, f"@{SELECTED}"),
        folder=product.THERE,
        timeout=plan.minutes * 60,
        check=False,
        on_output=show,
    ).status
    report = plan.report(part)
    report.parent.mkdir(exist_ok=True)
    report.write_text(host.read(RAN))
    return status


def show(data: bytes) -> None:
    """Print a piece of output as it comes."""
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
