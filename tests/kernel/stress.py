# SPDX-License-Identifier: Apache-2.0
"""One process of a storm: adds and removes a device again and again, by the command.

Run as `python -m tests.kernel.stress ROUNDS`. After each add it looks, in sysfs,
that the device is there, stamped and on the bridge; then it removes it. Ends with
an exit code other than 0 at the first thing that is wrong.
"""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

from tapster import cli


def tapster(*arguments: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        status = cli.main(arguments)
    assert status == 0, (arguments, status)
    return said.getvalue().strip()


def main(rounds: int) -> None:
    for _ in range(rounds):
        name = tapster("add", "--bridge", "br0", "--fin-wait", "2")
        device = Path("/sys/class/net") / name
        assert (device / "ifalias").read_text().startswith("tapster:"), name
        assert (device / "master").resolve().name == "br0", name
        tapster("rm", name)


if __name__ == "__main__":
    main(int(sys.argv[1]))
