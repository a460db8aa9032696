# SPDX-License-Identifier: Apache-2.0
"""A ledger for a test, and other processes that use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tapster.ledger import Ledger
from tapster.model import Tap
from tests.ledger.making import Clock, end, hold, release


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "ledger").mkdir(mode=0o700)
    return tmp_path / "ledger" / "ledger.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(path, clock)
    yield ledger
    ledger.close()


@pytest.fixture
def whole(path: Path) -> bytes:
    """The bytes of a closed ledger with leases and history."""
    ledger = Ledger(path, Clock())
    leases = hold(ledger, *[Tap(owner="somebody")] * 40)
    end(ledger, *leases[:10])
    release(ledger, *leases[10:20])
    ledger.close()
    return path.read_bytes()
