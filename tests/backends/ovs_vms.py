# SPDX-License-Identifier: Apache-2.0
"""VMs on Open vSwitch: their leases, their ports and their frames."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from lab import iproute, library
from lab.guests import next_frame
from lab.openvswitch import OpenVswitch, ports, row, rows
from tapster import Host, Lease, OpenDevice, Tap
from tapster.model import Rate

FULL = Tap(
    ovs="ovs0",
    vlan=5,
    trunks=(6, 7),
    external_ids=(("iface-id", "nic-1"),),
    inbound=Rate(1000, burst=100),
    outbound=Rate(500),
)


PLAIN = Tap(ovs="ovs0")


def acquire(host: Host, spec: Tap = FULL, **wanted: Any) -> Lease:
    """Acquire a port for a VM that is not started."""
    lease = library.acquire(host, spec._replace(**wanted))
    return lease


def stamp(name: str = "vnet0") -> str:
    return str(iproute.links()[name]["ifalias"])


def shown(name: str = "vnet0") -> dict[str, Any]:
    """A port as far as it is configured, wherever its rows are."""
    port, interface = row("Port", name), row("Interface", name)
    limits = {one["_uuid"]: one for one in [*rows("QoS"), *rows("Queue")]}
    qos = limits.get(str(port["qos"]), {"queues": {}})
    return {
        "bridges": [one for one in ("ovs0", "ovs1") if name in ports(one)],
        "interfaces": port["interfaces"] == interface["_uuid"],
        **{key: port[key] for key in ("tag", "trunks", "vlan_mode", "other_config")},
        "ids": (port["external_ids"], interface["external_ids"]),
        "policing": (
            interface["ingress_policing_rate"],
            interface["ingress_policing_burst"],
        ),
        "qos": {key: one for key, one in qos.items() if key not in ("_uuid", "queues")},
        "queues": {
            number: limits[uuid]["other_config"]
            for number, uuid in qos["queues"].items()
        },
        "works": interface["ofport"],
    }


PAYLOAD = b"what the machines say to each other"
TAG = bytes.fromhex("81000005")


def frame(source: OpenDevice, to: OpenDevice, tag: bytes = b"") -> bytes:
    macs = bytes.fromhex(f"{to.mac}{source.mac}".replace(":", ""))
    return macs + tag + bytes.fromhex("88b5") + PAYLOAD


VNET_HDR = bytes(10)


def send(source: OpenDevice, to: OpenDevice, tag: bytes = b"") -> None:
    os.write(source.fds[0], VNET_HDR + frame(source, to, tag))


def received(lease: OpenDevice) -> bytes:
    """Return the next of these frames that a VM receives."""
    return next_frame(lease.fds, lambda data: data.endswith(PAYLOAD))[len(VNET_HDR) :]


@pytest.fixture
def pair(host: Host, switch: OpenVswitch) -> Iterator[tuple[OpenDevice, OpenDevice]]:
    """Two VMs: one sees VLAN 5 untagged, the other sees it tagged."""
    leases = host.acquire_all([Tap(ovs="ovs0", vlan=5), Tap(ovs="ovs0", trunks=(5,))])
    yield leases[0], leases[1]
    for lease in leases:
        lease.close()
