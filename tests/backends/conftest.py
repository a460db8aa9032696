# SPDX-License-Identifier: Apache-2.0
"""As for the other kernel tests: each in a network and a mount namespace of its own."""

from pathlib import Path

import pytest

from tests.backends.machines import pair
from tests.backends.switch import switch
from tests.kernel.conftest import host, ledger, world

__all__ = ["host", "ledger", "pair", "switch", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)
