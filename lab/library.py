# SPDX-License-Identifier: Apache-2.0
"""Use the library in a test: start no reaper, close what a lease opened."""

import os
from collections.abc import Iterable


def no_reaper(_: str) -> None:
    """For a Host: start none."""


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
