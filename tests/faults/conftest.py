# SPDX-License-Identifier: Apache-2.0
"""As for the other kernel tests: each in a network and a mount namespace of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster.kernel.libc  # noqa: F401 - no import is to be among what is refused
from lab import shell
from tests.faults.sweep import FaultLab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(autouse=True)
def own_world(world: None) -> None:
    """Run every test of this folder in namespaces of its own."""


@pytest.fixture
def here(ledger: Path) -> Iterator[FaultLab]:
    """A lab in the namespace of the test."""
    with FaultLab(ledger) as lab:
        yield lab


@pytest.fixture
def blue(ledger: Path) -> Iterator[FaultLab]:
    """A lab in a namespace called blue."""
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add br0 address 02:00:00:00:00:02 type bridge")
    shell.sh("ip -n blue link set br0 mtu 1400")
    with FaultLab(ledger, "blue") as lab:
        yield lab


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> FaultLab:
    """The one of the two that a parameter names."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, FaultLab)
    return found
