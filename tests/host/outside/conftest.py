# SPDX-License-Identifier: Apache-2.0
"""Tests here start whole hosts, for minutes: only `make host-test` asks for that."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.kernel)
        item.add_marker(pytest.mark.timeout(3600))  # a host without KVM boots slowly
        if not config.getoption("--suite", None):
            needs = "starts whole Debian hosts: make host-test"
            item.add_marker(pytest.mark.skip(reason=needs))
