# SPDX-License-Identifier: Apache-2.0
"""The measurements, one in each file. Each has `measure`, which yields tables."""

from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """How to measure."""

    rounds: int
    program: Path
    """The compiled floor."""
    small: bool = False
    """Measure as little as possible, to test the harness."""
    previous: Path | None = None
    """The tree of an earlier commit, to be measured beside this one."""

    def size(self, full: int, small: int) -> int:
        return small if self.small else full
