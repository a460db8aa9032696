# SPDX-License-Identifier: Apache-2.0
"""What is measured: one file a measurement.

Each has `measure`, which yields tables.
"""

from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """How to measure."""

    rounds: int
    program: Path
    """The compiled floor."""
    small: bool = False
    """As little as can be: to see that the harness works."""

    def size(self, full: int, small: int) -> int:
        return small if self.small else full
