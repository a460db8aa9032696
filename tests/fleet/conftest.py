# SPDX-License-Identifier: Apache-2.0
"""Two hosts on a kernel in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.hosts import Pair, pair_of_hosts


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_of_hosts(tmp_path) as pair:
        yield pair
