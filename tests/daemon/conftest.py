# SPDX-License-Identifier: Apache-2.0
"""Each test here has namespaces, a bridge and a tapsterd of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tapster import Client
from tests.daemon.daemons import ALICE, BOB, Daemon
from tests.kernel.conftest import world

__all__ = ["world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def daemon(world: None) -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def alice(daemon: Daemon) -> Iterator[Client]:
    """She may have four taps on br0."""
    with daemon.connect(ALICE) as remote:
        yield remote


@pytest.fixture
def bob(daemon: Daemon) -> Iterator[Client]:
    with daemon.connect(BOB) as remote:
        yield remote


@pytest.fixture
def root(daemon: Daemon) -> Iterator[Client]:
    with daemon.connect() as remote:
        yield remote
