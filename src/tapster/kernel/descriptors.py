# SPDX-License-Identifier: Apache-2.0
"""Opens descriptors for a block, and closes them if the block fails."""

import os

from tapster.light import Iterable


class closing_on_error:
    """Lend a list for descriptors. Close the descriptors in it if the block fails."""

    # A class, because a generator takes as long as to open a descriptor.

    def __enter__(self) -> list[int]:
        self._fds: list[int] = []
        return self._fds

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            close_all(self._fds)


def close_all(fds: Iterable[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)
