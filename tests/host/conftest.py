# SPDX-License-Identifier: Apache-2.0
"""Some tests run only when they are asked for, on a host: "make package-test" builds a
package for them, and "make libvirt-test" starts hosts that start guests.

So they do not count among the tests that every change must pass somewhere.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
ON_REQUEST = {HERE / "libvirt", HERE / "packages"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests that nobody asked for; None leaves the choice to pytest."""
    on_request = not ON_REQUEST.isdisjoint((collection_path, *collection_path.parents))
    return True if on_request and not config.getoption("--suite", None) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not ON_REQUEST.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.kernel)
            item.add_marker(pytest.mark.timeout(3600))  # TCG is slow
