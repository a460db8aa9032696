# SPDX-License-Identifier: Apache-2.0
"""Each test here has namespaces, a bridge and a tapsterd of its own."""

from collections.abc import Iterator

import pytest

from lab.daemon import ALICE, BOB, Daemon
from tapster import Client


@pytest.fixture
def daemon(world: None) -> Iterator[Daemon]:
    with Daemon() as daemon:
        daemon.start()
        yield daemon


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
