# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.host`: a shell, a command or tests on a whole Debian host."""

import argparse
import sys
import time
from pathlib import Path

from lab import ran
from lab.host import image, product, snapshot
from lab.host.debian import DebianHost

RAN = "/run/lab/ran.json"
OUTSIDE = "tests/host/outside/"
"""Tests that start hosts themselves; they do not run on one."""
TESTS = ("tests/host/inside", "tests/rewire", "tests/backends")
"""What runs on a host if nothing is selected."""
TAPS, SHORT_TAPS = 300, 60
"""Taps to make under udev, which replaced the MAC of 8 of 60 on Debian 13 before the
hands-off files were there."""


def main() -> int:
    options = _parser().parse_args()
    started = time.monotonic()
    with snapshot.resumed(
        image.build(options.suite),
        console="mon:stdio" if options.verb == "shell" else "",
    ) as host:
        product.install(host)
        took = time.monotonic() - started
        print(f"Debian {options.suite} runs, after {took:.0f} s", flush=True)
        if options.verb == "shell":
            print('Press Enter for a shell; "poweroff" or Ctrl-A X ends the host.')
            return host.wait()
        if options.verb == "run":
            return _run(host, options.command, options.minutes)
        return _test(host, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.host", description=__doc__)
    parser.add_argument("--suite", choices=image.CODENAMES, default="13")
    parser.add_argument("--minutes", type=float, default=60.0, help="the time limit")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("shell", help="a root shell on the console")
    run = verbs.add_parser("run", help="run a command in the tree")
    run.add_argument("command", nargs="+")
    test = verbs.add_parser("test", help="run tests")
    test.add_argument("--ran", type=Path, help="write here what became of each test")
    test.add_argument(
        "--skipped",
        type=Path,
        metavar="FILE",
        help="run what another computer skipped, by its --ran",
    )
    test.add_argument("arguments", nargs="*", help="arguments of pytest")
    return parser


def _test(host: DebianHost, options: argparse.Namespace) -> int:
    selected = options.arguments or list(TESTS)
    if options.skipped:
        selected = [
            test
            for test in ran.skipped(options.skipped)
            if not test.startswith(OUTSIDE)
        ]
    host.write("/run/lab/selected", "\n".join(selected))
    command = [
        *("env", f"LAB_TAPS={SHORT_TAPS if options.skipped else TAPS}"),
        *("python3", "-m", "pytest", "--durations=10"),
        *("-p", "lab.ran", "--ran", RAN, "@/run/lab/selected"),
    ]
    status = _run(host, command, options.minutes)
    if options.ran:
        options.ran.parent.mkdir(exist_ok=True)
        options.ran.write_text(host.read(RAN))
    return status


def _run(host: DebianHost, command: list[str], minutes: float) -> int:
    def show(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()

    return host.run(
        *command,
        folder=product.THERE,
        timeout=minutes * 60,
        check=False,
        on_output=show,
    ).status


if __name__ == "__main__":
    sys.exit(main())
