# SPDX-License-Identifier: Apache-2.0
"""Wait for what a running command prints, line by line, with no thread and no sleep."""

import os
import re
import select
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

LAST = 20
"""Lines to show when the awaited line has not come."""


def readable(fd: int, deadline: float) -> bool:
    """Wait until the descriptor is readable, or the deadline has passed.

    The deadline is on the monotonic clock. A pidfd is readable when its process ended.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    left = max(0.0, deadline - time.monotonic())
    return bool(poll.poll(left * 1000))


class Lines:
    """The lines of a pipe, as they come. The caller closes the pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._fd = pipe.fileno()
        self._rest = b""

    def until(self, deadline: float) -> Iterator[str]:
        """Yield each line as it comes; stop at the deadline or at the end of the pipe.

        A deadline in the past gives the lines that are already there.
        """
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                yield line.decode(errors="replace")
            elif not self._read(deadline):
                return

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """Return the first line with the pattern. Raise TimeoutError without one."""
        deadline = time.monotonic() + timeout
        last: deque[str] = deque(maxlen=LAST)
        for line in self.until(deadline):
            if match := re.search(pattern, line):
                return match
            last.append(line)
        why = "in time" if time.monotonic() >= deadline else "before the end"
        said = "\n".join(["the last lines:", *last] if last else ["nothing was said"])
        raise TimeoutError(f"no line that looks like {pattern!r} {why}; {said}")

    def _read(self, deadline: float) -> bool:
        if not readable(self._fd, deadline):
            return False
        data = os.read(self._fd, 65536)
        self._rest += data
        return bool(data)
