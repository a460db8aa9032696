# SPDX-License-Identifier: Apache-2.0
"""A waiting device that a program has opened is not deleted under the program."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fake_and_real import ContractLab
from lab.library import no_reaper
from tapster import ConflictError, Host, Tap
from tapster.testing import Stranger


@pytest.fixture
def host(lab: ContractLab, others: Stranger, tmp_path: Path) -> Iterator[Host]:
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    with Host(tmp_path / "ledger.db", system=lab.system, reaper=no_reaper) as host:
        yield host


def test_a_tap_opened_while_it_waits_stays_until_it_is_closed(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    lease = host.acquire(Tap(bridge="br0", vnet_hdr=False))
    lease.close()
    host.release(lease.id)
    opened = others.open_tap(lease.name)
    with pytest.raises(ConflictError, match=f"{lease.name}.*a process opened it"):
        host.reap(now=True)
    assert lab.show()[lease.name].ifindex == lease.ifindex
    others.close(opened)
    assert host.reap(now=True) == 1
    assert lease.name not in lab.show()


def test_a_tap_that_was_open_at_its_release_is_deleted_after_fin_wait(
    lab: ContractLab, host: Host
) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    host.release(lease.id)
    assert host.reap(now=True) == 1
    assert lease.name not in lab.show()
    lease.close()


def test_an_opened_device_hinders_no_other(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    first, second = (host.acquire(Tap(vnet_hdr=False)) for _ in range(2))
    for lease in (first, second):
        lease.close()
        host.release(lease.id)
    opened = others.open_tap(first.name)
    with pytest.raises(ConflictError):
        host.reap(now=True)
    assert first.name in lab.show()
    assert second.name not in lab.show()
    others.close(opened)
