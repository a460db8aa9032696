# SPDX-License-Identifier: Apache-2.0
"""`python -m lab.host`: a shell, a command or tests on a whole Debian host."""

import argparse
import signal
import sys
import time
from pathlib import Path

from lab.host import archive, image, product, snapshot, testing


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C ends it
    started = time.monotonic()
    try:
        plan = _plan(options) if options.verb == "test" else None
        if plan and not plan.parts:
            print("no test is missing")
            return 0
        built = image.build(options.suite)
    except (archive.Unreachable, testing.Unplanned) as error:
        print(f"lab.host: {error}", file=sys.stderr)
        return 1
    if plan:
        return testing.run(built, plan)
    console = "mon:stdio" if options.verb == "shell" else ""
    with snapshot.resumed(built, console=console) as host:
        product.install(host)
        took = time.monotonic() - started
        print(f"Debian {options.suite} runs, after {took:.0f} s", flush=True)
        if options.verb == "shell":
            print('Press Enter for a shell; "poweroff" or Ctrl-A X ends the host.')
            return host.wait()
        return host.run(
            *options.command,
            folder=product.THERE,
            timeout=options.minutes * 60,
            check=False,
            on_output=testing.show,
        ).status


def _plan(options: argparse.Namespace) -> testing.HostTests:
    return testing.plan(
        options.suite,
        options.arguments,
        skipped=options.skipped,
        times=options.times,
        minutes=options.minutes,
        ran_file=options.ran,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.host", description=__doc__)
    parser.add_argument("--suite", choices=image.CODENAMES, default="13")
    parser.add_argument("--minutes", type=float, default=60.0, help="the time limit")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("shell", help="a root shell on the console")
    run = verbs.add_parser("run", help="run a command in the tree")
    run.add_argument("command", nargs="+")
    test = verbs.add_parser("test", help="run tests; .ran tells what became of each")
    test.add_argument("--times", type=int, default=1, help="power cuts and reboots")
    test.add_argument(
        "--skipped",
        type=Path,
        metavar="FILE",
        help="run what another computer skipped, and what failed if this is run again",
    )
    test.add_argument(
        "--ran", type=Path, metavar="FILE", help="write there what became of each test"
    )
    test.add_argument("arguments", nargs="*", help="arguments of pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
