# SPDX-License-Identifier: Apache-2.0
"""Reap, on the fake kernel and on the real one."""

import pytest

from lab.fake_and_real import ContractLab
from lab.library import acquire
from tapster import Host, Tap
from tapster.testing import Stranger


@pytest.fixture
def host(lab_host: Host) -> Host:
    return lab_host


def test_reap_deletes_many_in_batches_and_nothing_else(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    others.add_tap("bystander")
    before = set(lab.show())
    # More than one batch, which has 64.
    kept, *gone = [acquire(host, Tap(bridge="br0")) for _ in range(70)]
    for lease in gone:
        host.release(lease.id)
    assert host.reap(now=True) == 69
    assert set(lab.show()) == before | {kept.name}
