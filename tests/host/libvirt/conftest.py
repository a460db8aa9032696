# SPDX-License-Identifier: Apache-2.0
"""Tests here start hosts that start guests: only "make libvirt-test" asks for that.

So they do not count among the tests that every change must pass somewhere.
"""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect nothing here without a host; None leaves the choice to pytest."""
    asked = config.getoption("--suite", None)
    return None if asked else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            item.add_marker(pytest.mark.timeout(3600))  # TCG in TCG is slow
