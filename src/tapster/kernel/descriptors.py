# SPDX-License-Identifier: Apache-2.0
"""Opens descriptors for a block, and closes them if the block fails."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def closing_on_error() -> Iterator[list[int]]:
    """Lend a list for descriptors. Close the descriptors in it if the block fails."""
    fds: list[int] = []
    try:
        yield fds
    except BaseException:
        close_all(fds)
        raise


def close_all(fds: Iterable[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)
