# SPDX-License-Identifier: Apache-2.0
"""`python -m soak`: a storm in namespaces of its own. Ctrl-C ends it early.

The exit status is 1 if a device was wrongly changed or is left, or if a report was
lost. Needs root.
"""

import argparse
import subprocess
import sys
from random import SystemRandom

from lab.namespaces import namespaces
from soak.part import BROKEN


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 32))
    parser.add_argument(
        "--broken",
        choices=BROKEN,
        default="",
        help="; ".join(f"{name}: {what}" for name, what in BROKEN.items()),
    )
    options = parser.parse_args()
    print(f"soak: seed {options.seed}, {options.minutes:g} minutes", flush=True)
    first = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    storm = [sys.executable, "-m", "soak.storm"]
    words = [str(options.seed), str(options.minutes * 60), options.broken]
    # In a session of its own: a terminal's Ctrl-C is for this process alone, which then
    # ends the storm in good order, and at the second one in bad.
    with (
        namespaces(),
        subprocess.Popen(
            [*first, *storm, *words], stdin=subprocess.PIPE, start_new_session=True
        ) as running,
    ):
        try:
            return running.wait()
        except KeyboardInterrupt:
            print("soak: ending early", flush=True)
            assert running.stdin
            running.stdin.close()
            return running.wait()
        finally:
            running.kill()


if __name__ == "__main__":
    sys.exit(main())
