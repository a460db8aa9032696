# SPDX-License-Identifier: Apache-2.0
"""How long a call takes."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that a call took, and what it returned."""
    before = time.perf_counter()
    result = call()
    return time.perf_counter() - before, result
