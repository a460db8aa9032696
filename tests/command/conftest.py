# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.openvswitch import switch
from lab.reapers import kill_reapers

__all__ = ["switch"]


@pytest.fixture
def own_ledger(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands use a ledger of the test; its reapers have ended afterwards."""
    monkeypatch.setenv("TAPSTER_LEDGER", str(ledger))
    yield
    kill_reapers(ledger)
