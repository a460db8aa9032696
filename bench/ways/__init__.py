# SPDX-License-Identifier: Apache-2.0
"""The ways to give a VM its device and to take it away, one in each file."""

from typing import Protocol


class Way(Protocol):
    """One way, on one bridge. It remembers what it has started, oldest first."""

    title: str
    note: str
    """What it does of Tapster's work, and what not."""

    def start(self) -> float:
        """Start a device, on the bridge and up; the seconds that it took."""

    def stop(self) -> float:
        """Stop the oldest device; the seconds until that returned."""

    def tidy(self) -> None:
        """Delete what `stop` has left."""
