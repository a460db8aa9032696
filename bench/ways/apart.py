# SPDX-License-Identifier: Apache-2.0
"""Tapster of any tree, in a process of its own: this tree beside an earlier one.

The process runs the tree's own `bench.ways.tapster`, which knows the tree's library.
"""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from bench.ways.tapster import Library
library = Library(Path(sys.argv[1]), sys.argv[2])
for order in sys.stdin:
    print(getattr(library, order.strip())() or 0.0, flush=True)
"""


class Apart:
    """A Library that lives in another process, which measures its calls itself."""

    note = "the same library in a process of its own, so that trees can be compared"

    def __init__(self, title: str, tree: Path, ledger: Path, bridge: str) -> None:
        self.title = title
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ledger), bridge],
            cwd=tree,
            env={"PYTHONPATH": f"{tree}:{tree / 'src'}", "PATH": "/usr/sbin:/usr/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._process.communicate()

    def start(self) -> float:
        return self._order("start")

    def stop(self) -> float:
        return self._order("stop")

    def tidy(self) -> None:
        self._order("tidy")

    def _order(self, verb: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{verb}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())
