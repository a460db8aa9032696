# SPDX-License-Identifier: Apache-2.0
"""What a lease wants of Open vSwitch, and what is read of what is there."""

from typing import Any

import pytest

from lab.leases import LEASE
from tapster import Lease, RequestError, Wiring
from tapster.backends import ovsport
from tapster.backends.ovsdb import Uuid
from tapster.backends.ovsport import Port
from tapster.model import Rate

STAMP = "tapster:1234:5678"


def lease(**wiring: Any) -> Lease:
    return LEASE._replace(
        id="5678",
        mac="52:54:00:00:00:01",
        wiring=Wiring(ovs="ovs0", **wiring),
        backends=("ovs",),
    )


def wanted(**wiring: Any) -> Port:
    return ovsport.wanted(lease(**wiring), STAMP)


@pytest.mark.parametrize(
    ("rate", "queue", "police"),
    [
        (Rate(1), ("8000", None), (8, 525)),
        (Rate(1000), ("8000000", None), (8000, 8192)),
        (Rate(1000, burst=1), ("8000000", "8192"), (8000, 9)),
        (Rate(1000, peak=9000, burst=500), ("8000000", "4096000"), (8000, 4096)),
    ],
)
def test_rates_are_converted_to_the_units_of_open_vswitch(
    rate: Rate, queue: tuple[str, str | None], police: object
) -> None:
    """KB/s and KiB of ours; bit/s and bits of a queue, kbit/s and kbit of policing."""
    port = wanted(inbound=rate, outbound=rate)
    assert (port.inbound["min-rate"], port.inbound.get("burst")) == queue
    assert port.inbound["max-rate"] == port.inbound["min-rate"]
    assert port.outbound == police


@pytest.mark.parametrize(
    ("rate", "most"),
    [
        (Rate(4294968), "4294967 KB/s"),
        (Rate(4294967, burst=524288), "524287 KiB"),
        (Rate(1, burst=262), "261 KiB"),
    ],
)
def test_a_rate_that_open_vswitch_cannot_count_is_refused(
    rate: Rate, most: str
) -> None:
    for wiring in (Wiring(inbound=rate), Wiring(outbound=rate)):
        with pytest.raises(RequestError, match=f"can be {most} at most"):
            ovsport.check(wiring)


def test_the_owners_key_is_not_for_requests() -> None:
    with pytest.raises(RequestError, match="reserved for Tapster"):
        ovsport.check(Wiring(ovs="ovs0", external_ids=(("tapster", "x"),)))


def test_a_request_may_say_otherwise_which_mac_is_attached() -> None:
    ids = wanted(external_ids=(("attached-mac", "52:54:00:00:00:02"),)).external_ids
    assert ids == {"attached-mac": "52:54:00:00:00:02", "tapster": STAMP}


def tables(stamp: str = STAMP) -> dict[str, list[dict[str, Any]]]:
    """A port of lease 5678 with all there can be, as the database has it."""
    ids = {"tapster": stamp}
    return {
        "Bridge": [
            {"_uuid": Uuid("b0"), "name": "ovs0", "ports": Uuid("p0")},
            {"_uuid": Uuid("b1"), "name": "ovs1", "ports": frozenset()},
        ],
        "Port": [
            {
                "_uuid": Uuid("p0"),
                "name": "vnet0",
                "interfaces": Uuid("i0"),
                "tag": 5,
                "trunks": frozenset([6, 7]),
                "vlan_mode": "native-untagged",
                "protected": False,
                "qos": Uuid("q0"),
                "external_ids": {**ids, "tapster-keys": "iface-id=vm-id"},
                "other_config": {"transient": "true", "priority-tags": "always"},
            }
        ],
        "Interface": [
            {
                "_uuid": Uuid("i0"),
                "name": "vnet0",
                "type": "",
                "mtu_request": frozenset(),
                "ingress_policing_rate": 8,
                "ingress_policing_burst": 525,
                "external_ids": {
                    **ids,
                    "attached-mac": "52:54:00:00:00:01",
                    "iface-id": "nic-1",
                    "vm-id": "vm-1",
                    "ovn-installed": "true",
                },
            }
        ],
        "QoS": [
            {
                "_uuid": Uuid("q0"),
                "type": "linux-htb",
                "queues": {0: Uuid("u0")},
                "other_config": {"max-rate": "8000"},
                "external_ids": ids,
            }
        ],
        "Queue": [
            {
                "_uuid": Uuid("u0"),
                "other_config": {"min-rate": "8000", "max-rate": "8000"},
                "external_ids": ids,
            }
        ],
    }


FULL = wanted(
    vlan=5,
    trunks=(7, 6),
    external_ids=(("iface-id", "nic-1"), ("vm-id", "vm-1")),
    inbound=Rate(1),
    outbound=Rate(1),
)


def test_a_written_port_reads_back_as_wanted() -> None:
    assert ovsport.present(tables(), "1234") == {"5678": [FULL]}
    assert ovsport.differences([FULL], FULL) == ""


@pytest.mark.parametrize("stamp", ["", "tapster:1235:5678", "tapster:1234"])
def test_rows_of_another_ledger_are_not_found(stamp: str) -> None:
    assert ovsport.present(tables(stamp), "1234") == {}


MORE = "Open vSwitch has more than its port"


def test_limits_that_the_port_does_not_use_are_noticed() -> None:
    rows = tables()
    rows["Port"][0]["qos"] = frozenset()
    (found,) = ovsport.present(rows, "1234").values()
    assert ovsport.differences(found, FULL) == MORE


def test_differences_name_the_present_and_the_wanted_value() -> None:
    rows = tables()
    rows["Port"][0]["tag"] = frozenset()
    rows["QoS"][0]["type"] = "linux-noop"
    rows["Interface"][0]["type"] = "internal"
    rows["Bridge"][1]["ports"] = frozenset([Uuid("p0"), Uuid("p1")])
    (found,) = ovsport.present(rows, "1234").values()
    assert ovsport.differences(found, FULL) == (
        "bridge is ovs0,ovs1, not ovs0; tag is none, not 5; "
        "type is internal, not none; "
        "inbound is max-rate=8000,type=linux-noop, not max-rate=8000,min-rate=8000"
    )
    assert ovsport.differences([], FULL) == "Open vSwitch has no port for it"
