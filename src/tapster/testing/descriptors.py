# SPDX-License-Identifier: Apache-2.0
"""Real descriptors for files that exist only in memory.

Each descriptor is the writing end of a pipe. The reading end stays here. It hangs up
when the last copy of the writing end is closed: by os.close, by the end of a process
that inherited the descriptor, or by a process that received it. A real tap behaves in
the same way.
"""

import os
import select
from collections.abc import Container


class Descriptors:
    """The descriptors that were handed out."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._open: dict[int, tuple[int, int]] = {}
        """The open file and the writing end, by the reading end."""

    def open(self, file: int) -> int:
        """Return a descriptor for a file; the caller closes it."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._poll.register(reading, 0)  # a hang-up is always reported
        self._open[reading] = file, writing
        return writing

    def has(self, file: int) -> bool:
        """Return whether a descriptor of this file is open."""
        return any(open_file == file for open_file, _ in self._open.values())

    def hung_up(self) -> list[int]:
        """Return the files whose last descriptor was closed since the last call."""
        if not self._open:
            return []
        return sorted(self._forget(reading) for reading, _ in self._poll.poll(0))

    def close_all_but(self, files: Container[int]) -> None:
        """Close the descriptors of all other files."""
        self.hung_up()
        for reading, (file, writing) in list(self._open.items()):
            if file not in files:
                # If only a copy is open, another file may have the number by now.
                if _is_pipe_of(writing, reading):
                    os.close(writing)
                self._forget(reading)

    def _forget(self, reading: int) -> int:
        self._poll.unregister(reading)
        os.close(reading)
        return self._open.pop(reading)[0]


def _is_pipe_of(writing: int, reading: int) -> bool:
    try:
        return os.path.sameopenfile(writing, reading)
    except OSError:
        return False
