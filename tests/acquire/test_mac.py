# SPDX-License-Identifier: Apache-2.0
"""No two active devices on one segment have the same MAC."""

import pytest

from tapster import Host, Lease, MacTaken, Macvtap, RequestError, Tap
from tapster.model import Spec

MAC = "52:54:00:00:00:42"


@pytest.fixture
def host(contract_host: Host) -> Host:
    return contract_host


def acquire(host: Host, spec: Spec) -> Lease:
    """Acquire, for a VM that is not started."""
    with host.acquire(spec) as device:
        return device.lease


@pytest.mark.parametrize(
    "spec",
    [Tap(bridge="br0", mac=MAC), Tap(bridge="br0", mac=MAC.upper(), learning=False)],
)
def test_a_mac_in_use_on_the_bridge_is_refused_with_its_owner(
    host: Host, spec: Spec
) -> None:
    first = acquire(host, Tap(bridge="br0", mac=MAC, owner="web"))
    with pytest.raises(MacTaken, match=f"{first.id}.*'web'"):
        host.acquire(spec)
    assert [lease.id for lease in host.leases()] == [first.id]


def test_a_mac_in_use_by_a_lease_without_an_owner_says_so(host: Host) -> None:
    acquire(host, Tap(bridge="br0", mac=MAC))
    with pytest.raises(MacTaken, match=r"\(vnet0\), without an owner; give"):
        host.acquire(Tap(bridge="br0", mac=MAC))


def test_two_nics_of_one_request_never_share_a_mac(host: Host) -> None:
    with pytest.raises(RequestError, match=f"the MAC {MAC}"):
        host.acquire_all([Tap(bridge="br0", mac=MAC), Tap(mac=MAC)])
    assert host.leases() == []


def test_a_mac_is_free_again_after_its_release(host: Host) -> None:
    first = acquire(host, Tap(bridge="br0", mac=MAC))
    host.release(first.id)
    acquire(host, Tap(bridge="br0", mac=MAC))


def test_another_segment_may_have_the_same_mac(host: Host) -> None:
    acquire(host, Tap(bridge="br0", mac=MAC))
    acquire(host, Macvtap(lower="low", mac=MAC))
    acquire(host, Tap(mac=MAC))


def test_a_device_on_standby_may_have_the_mac_until_it_is_taken(host: Host) -> None:
    first = acquire(host, Tap(bridge="br0", mac=MAC))
    standby = acquire(host, Tap(bridge="br0", mac=MAC, standby=True))
    with pytest.raises(MacTaken):
        host.set(standby.id, standby=False)
    host.release(first.id)
    host.set(standby.id, standby=False)


def test_changing_the_bridge_is_refused_where_the_mac_is_in_use(host: Host) -> None:
    acquire(host, Tap(bridge="br0", mac=MAC))
    elsewhere = acquire(host, Tap(mac=MAC))
    with pytest.raises(MacTaken):
        host.set(elsewhere.id, bridge="br0")
    assert host.differences(elsewhere) == {}
