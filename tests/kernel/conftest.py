# SPDX-License-Identifier: Apache-2.0
"""Each test here has a network and a mount namespace of its own, with a bridge."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.private import namespaces
from tapster import Host
from tests.kernel import tools


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    with namespaces():
        tools.sh("ip link set lo up")
        tools.sh("ip link add br0 address 02:00:00:00:00:01 type bridge")
        tools.sh("ip link set br0 up mtu 1400")
        yield


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def host(ledger: Path) -> Iterator[Host]:
    """A Host that reaps only when told to."""
    with Host(ledger, reaper=tools.no_reaper) as host:
        yield host
