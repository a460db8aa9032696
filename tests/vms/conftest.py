# SPDX-License-Identifier: Apache-2.0
"""A lab for each test: its own namespaces, bridge, DHCP server and ledger."""

from collections.abc import Iterator

import pytest

from lab.vm_network import VmNetwork, open_lab


@pytest.fixture
def lab() -> Iterator[VmNetwork]:
    with open_lab() as lab:
        yield lab
