# SPDX-License-Identifier: Apache-2.0
"""Each test here has a host, a pod and a ledger of its own."""

from pathlib import Path

import pytest

from tests.cni.plugin import Plugin, pod


@pytest.fixture
def plugin(world: None, tmp_path: Path) -> Plugin:
    pod()
    return Plugin(tmp_path)
