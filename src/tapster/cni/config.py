# SPDX-License-Identifier: Apache-2.0
"""The configuration of a network, and the device that it asks for. Pure."""

from collections.abc import Mapping

from tapster.cni.protocol import (
    Attachment,
    CniCall,
    CniFailure,
    Code,
    is_identifier,
    wrong_identifier,
    wrong_part,
)
from tapster.light import Any, NamedTuple
from tapster.model import DEFAULT_TEMPLATE, Macvtap, Mode, Rate, Spec, Tap

NETWORK, CONTAINER, IFNAME = "cni-network", "cni-container", "cni-ifname"
"""The labels of a lease that say which attachment it is for."""
REDIRECTED = "tap%d"
"""The name of a tap that takes the place of another interface."""
POD_FIN_WAIT = 0.0
"""In a pod's namespace no other program is late with a cleanup by name."""
HERE = ""
"""The namespace that the plugin, or the daemon, runs in: see `Macvtap.lower_netns`."""

KEYS: dict[str, type | tuple[type, ...]] = {
    "bridge": str,
    "link": str,
    "redirect": bool,
    "linkInContainer": bool,
    "mode": str,
    "mtu": int,
    "mac": str,
    "queues": int,
    "uid": int,
    "gid": int,
    "vlan": int,
    "filter": bool,
    "inbound": dict,
    "outbound": dict,
    "finWait": (int, float),
    "device": str,
    "ledger": str,
    "socket": str,
    "dataDir": str,
}
"""The plugin's own keys, with the types of their values."""
COMMON: dict[str, type | tuple[type, ...]] = {
    "cniVersion": str,
    "name": str,
    "type": str,
    "ipam": dict,
    "dns": dict,
    "args": dict,
    "capabilities": dict,
    "runtimeConfig": dict,
    "prevResult": dict,
}
"""The keys of every plugin. Keys with a '/' are reserved for the specification."""
VALID = "cni.dev/valid-attachments"
WIRING_KEYS = ("vlan", "filter", "outbound")
"""The keys that need a bridge."""
TAP_KEYS = (*WIRING_KEYS, "bridge", "redirect", "uid", "gid", "inbound")
"""The keys that do not go with a macvtap."""


class Network(NamedTuple):
    """A checked configuration."""

    version: str
    name: str
    keys: Mapping[str, Any]
    """The plugin's own keys."""
    runtime: Mapping[str, Any]
    """`runtimeConfig`."""
    ipam: str | None
    """The type of the IPAM plugin."""
    dns: Mapping[str, Any] | None
    previous: Mapping[str, Any] | None
    """`prevResult`."""
    valid: tuple[Attachment, ...] | None
    """The attachments that exist; None outside GC."""

    @property
    def redirects(self) -> bool:
        """Whether the tap takes the place of the pod's interface."""
        return bool(self.keys.get("redirect"))

    @property
    def in_pod(self) -> bool:
        """Whether the device is in the namespace of the pod."""
        return "bridge" not in self.keys


def read_network(
    call: CniCall, configuration: Mapping[str, Any], version: str
) -> Network:
    """Check a configuration. Raises CniFailure.

    DEL and GC accept keys and values that ADD refuses: the configuration may have
    changed since, and what it made has to go.
    """
    name = configuration.get("name")
    if not isinstance(name, str) or not is_identifier(name):
        raise CniFailure(Code.CONFIGURATION, wrong_identifier("name", name))
    ending = call.command in ("DEL", "GC")
    if not ending:
        _check_keys(configuration)
    previous = configuration.get("prevResult")
    ipam = configuration.get("ipam") or {}
    plugin = ipam.get("type") if isinstance(ipam, dict) else None
    if ipam and (not isinstance(plugin, str) or not plugin or "/" in plugin):
        if not ending:
            raise CniFailure(
                Code.CONFIGURATION,
                f"ipam.type is {plugin!r}, not the name of a plugin such as host-local",
            )
        plugin = None
    runtime = configuration.get("runtimeConfig")
    network = Network(
        version=version,
        name=name,
        keys={
            key: configuration[key]
            for key in KEYS
            if key in configuration and _is(KEYS[key], configuration[key])
        },
        runtime=runtime if isinstance(runtime, dict) else {},
        ipam=plugin,
        dns=configuration.get("dns"),
        previous=previous if isinstance(previous, dict) else None,
        valid=_valid(configuration) if call.command == "GC" else None,
    )
    if not ending:
        _check_combination(network)
        _check_previous(network.previous or {})
    return network


def _check_keys(configuration: Mapping[str, Any]) -> None:
    for key, value in configuration.items():
        kind = KEYS.get(key) or COMMON.get(key)
        if kind is None:
            if "/" not in key:
                raise CniFailure(
                    Code.FIELD,
                    f"unsupported field {key!r} with the value {value!r}",
                    f"fields of tapster-cni are {', '.join(KEYS)}",
                )
        elif not _is(kind, value):
            raise CniFailure(
                Code.CONFIGURATION, f"{key} must be {_described(kind)}, not {value!r}"
            )


def _is(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, bool) == (kind is bool) and isinstance(value, kind)


def _described(kind: type | tuple[type, ...]) -> str:
    if isinstance(kind, tuple):
        return "a number"
    words = {str: "text", bool: "true or false", int: "a whole number"}
    return words.get(kind, "an object")


def _check_combination(network: Network) -> None:
    keys = network.keys
    if "link" in keys:
        for key in TAP_KEYS:
            if key in keys:
                raise CniFailure(
                    Code.CONFIGURATION, f"{key} does not go with the key link"
                )
        return
    if network.redirects and "bridge" in keys:
        raise CniFailure(Code.CONFIGURATION, "bridge does not go with the key redirect")
    for key in ("mode", "linkInContainer"):
        if key in keys:
            raise CniFailure(Code.CONFIGURATION, f"{key} needs the key link")
    for key in WIRING_KEYS:
        if key in keys and "bridge" not in keys:
            raise CniFailure(Code.CONFIGURATION, f"{key} needs the key bridge")


def _check_previous(previous: Mapping[str, Any]) -> None:
    if problem := wrong_part(previous):
        raise CniFailure(Code.CONFIGURATION, f"prevResult.{problem}")


def _valid(configuration: Mapping[str, Any]) -> tuple[Attachment, ...]:
    listed = configuration.get(VALID)
    if not isinstance(listed, list):
        # An absent list must not read as "no attachment is valid".
        raise CniFailure(
            Code.CONFIGURATION, f"GC needs {VALID}, a list of attachments: {listed!r}"
        )
    valid = []
    for item in listed:
        container = item.get("containerID") if isinstance(item, dict) else None
        ifname = item.get("ifname") if isinstance(item, dict) else None
        if not isinstance(container, str) or not isinstance(ifname, str):
            raise CniFailure(
                Code.CONFIGURATION,
                f"{VALID} has {item!r}, not an object with containerID and ifname",
            )
        valid.append(Attachment(container, ifname))
    return tuple(valid)


def labels(network: Network, attachment: Attachment) -> tuple[tuple[str, str], ...]:
    """Return the labels by which the lease of an attachment is found."""
    return (
        (NETWORK, network.name),
        (CONTAINER, attachment.container),
        (IFNAME, attachment.ifname),
    )


def attachment_of(
    network: Network, given: tuple[tuple[str, str], ...]
) -> Attachment | None:
    """Return the attachment that a lease's labels name; None if of another network."""
    found = dict(given)
    if found.get(NETWORK) != network.name or not {CONTAINER, IFNAME} <= found.keys():
        return None
    return Attachment(found[CONTAINER], found[IFNAME])


def spec_of(network: Network, call: CniCall) -> Spec:
    """Return the request for the device of an attachment. Raises CniFailure."""
    keys = network.keys
    common: dict[str, Any] = {
        "owner": call.container,
        "labels": labels(network, call.attachment),
        "mac": _mac(network, call),
        "mtu": keys.get("mtu"),
        "queues": keys.get("queues", 1),
    }
    if network.in_pod:
        # An interface that is redirected has its name.
        default = REDIRECTED if network.redirects else call.ifname
        common["name"] = keys.get("device", default)
        common["fin_wait"] = POD_FIN_WAIT
    else:
        common["name"] = keys.get("device", DEFAULT_TEMPLATE)
    if "finWait" in keys:
        common["fin_wait"] = float(keys["finWait"])
    inbound, outbound = _rates(network)
    if "link" not in keys:
        return Tap(
            bridge=keys.get("bridge"),
            redirect=call.ifname if network.redirects else None,
            uid=keys.get("uid"),
            gid=keys.get("gid"),
            vlan=keys.get("vlan"),
            filter=keys.get("filter", False),
            inbound=inbound,
            outbound=outbound,
            **common,
        )
    if inbound or outbound:
        raise CniFailure(
            Code.CONFIGURATION, "runtimeConfig.bandwidth does not go with the key link"
        )
    mode = keys.get("mode", Mode.BRIDGE)
    if mode not in [str(known) for known in Mode]:
        raise CniFailure(
            Code.CONFIGURATION, f"mode {mode!r} is not one of {', '.join(Mode)}"
        )
    return Macvtap(
        keys["link"],
        mode=Mode(mode),
        lower_netns=None if keys.get("linkInContainer") else HERE,
        **common,
    )


def _mac(network: Network, call: CniCall) -> str | None:
    mac = network.runtime.get("mac") or dict(call.arguments).get("MAC")
    if mac is not None and not isinstance(mac, str):
        raise CniFailure(Code.CONFIGURATION, f"runtimeConfig.mac must be text: {mac!r}")
    return mac or network.keys.get("mac")


def _rates(network: Network) -> tuple[Rate | None, Rate | None]:
    """Return the rates for both directions. What the runtime asks for comes first."""
    bandwidth = network.runtime.get("bandwidth") or {}
    if not isinstance(bandwidth, dict):
        raise CniFailure(
            Code.CONFIGURATION,
            f"runtimeConfig.bandwidth must be an object, not {bandwidth!r}",
        )
    inbound = _runtime_rate(bandwidth, "ingress") or _rate(network, "inbound")
    outbound = _runtime_rate(bandwidth, "egress") or _rate(network, "outbound")
    return inbound, outbound


def _runtime_rate(bandwidth: Mapping[str, Any], direction: str) -> Rate | None:
    """Return a rate that is given in bits: a second, and at once."""
    rate = bandwidth.get(f"{direction}Rate", 0)
    burst = bandwidth.get(f"{direction}Burst", 0)
    for key, value in (("Rate", rate), ("Burst", burst)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise CniFailure(
                Code.CONFIGURATION,
                f"runtimeConfig.bandwidth.{direction}{key} must be a number of bits, "
                f"not {value!r}",
            )
    if not rate:
        return None
    # The kernel's rates know no endless burst: 2^31 bits is how libcni writes it.
    limited = 0 < burst < (1 << 31) - 1
    return Rate(-(-rate // 8000), burst=-(-burst // 8192) if limited else None)


def _rate(network: Network, key: str) -> Rate | None:
    given = network.keys.get(key)
    if given is None:
        return None
    unknown = given.keys() - set(Rate._fields)
    good = all(type(value) is int for value in given.values())
    if unknown or not good or "average" not in given:
        raise CniFailure(
            Code.CONFIGURATION,
            f"{key} must be an object with average and, if wanted, peak and burst, "
            f"not {given!r}",
        )
    return Rate(**given)
