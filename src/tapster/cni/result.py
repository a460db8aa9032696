# SPDX-License-Identifier: Apache-2.0
"""Results of ADD, in each version of the specification. Pure."""

from collections.abc import Mapping, Sequence

from tapster.cni.config import Network
from tapster.cni.protocol import CniCall
from tapster.light import Any
from tapster.model import Kind, Lease, host_mac

WITH_MTU = "1.1.0"
"""The first version in which an interface has its MTU."""
WITH_IP_VERSION = "0.4.0"
"""The last version in which an address says its IP version."""


def of_add(
    network: Network, call: CniCall, lease: Lease, ipam: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the result: what plugins before this one made, the device, addresses."""
    previous = network.previous or {}
    interfaces = [*previous.get("interfaces", ())]
    guest = len(interfaces)
    interfaces.append(_device(network, call, lease))
    if lease.kind is Kind.TAP:
        # The address is the guest's, so it belongs to neither end of the tap in the
        # host. The container's id stands for the hypervisor in `sandbox`.
        guest += 1
        sandbox = call.container
        interfaces.append({"name": lease.name, "mac": lease.mac, "sandbox": sandbox})
    ips = [
        *(_moved(network, call, ip, guest) for ip in previous.get("ips", ())),
        *(
            _address(network.version, {**address, "interface": guest})
            for address in (ipam or {}).get("ips", ())
        ),
    ]
    result = {
        **previous,
        "cniVersion": network.version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": [*previous.get("routes", ()), *(ipam or {}).get("routes", ())],
        "dns": (ipam or {}).get("dns") or previous.get("dns") or network.dns or {},
    }
    return {key: value for key, value in result.items() if value != []}


def _moved(
    network: Network, call: CniCall, ip: Mapping[str, Any], guest: int
) -> Mapping[str, Any]:
    """Give the guest an address of the interface whose place its tap takes."""
    interfaces = (network.previous or {}).get("interfaces", ())
    number = ip.get("interface")
    if not network.redirects or not isinstance(number, int):
        return ip
    if 0 <= number < len(interfaces):
        interface = interfaces[number]
        if interface.get("name") == call.ifname and interface.get("sandbox"):
            return {**ip, "interface": guest}
    return ip


def _device(network: Network, call: CniCall, lease: Lease) -> dict[str, Any]:
    mac = host_mac(lease.mac) if lease.kind is Kind.TAP else lease.mac
    device: dict[str, Any] = {"name": lease.name, "mac": mac}
    if network.version >= WITH_MTU and lease.wiring.mtu is not None:
        device["mtu"] = lease.wiring.mtu
    if network.in_pod:
        device["sandbox"] = call.netns
    return device


def _address(version: str, address: dict[str, Any]) -> dict[str, Any]:
    if version > WITH_IP_VERSION:
        address.pop("version", None)
    else:
        address["version"] = "6" if ":" in address.get("address", "") else "4"
    return address


def addresses(ipam: Mapping[str, Any] | None, network: Network) -> tuple[str, ...]:
    """Return the addresses that the guest has, without the lengths of prefixes."""
    sources: Sequence[Mapping[str, Any]] = (ipam or {}, network.previous or {})
    given = [ip["address"] for source in sources for ip in source.get("ips", ())]
    return tuple(dict.fromkeys(address.partition("/")[0] for address in given))


def lists(previous: Mapping[str, Any], network: Network, lease: Lease) -> bool:
    """Say whether a result has the device of a lease."""
    return any(
        interface.get("name") == lease.name
        and bool(interface.get("sandbox")) == network.in_pod
        for interface in previous.get("interfaces", ())
    )
