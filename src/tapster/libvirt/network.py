# SPDX-License-Identifier: Apache-2.0
"""What a network of libvirt is on: a bridge, a switch, or another device. Pure."""

from tapster.errors import RequestError
from tapster.libvirt.spans import spans

OWN = ("", "bridge", "nat", "open", "route")
"""The forward modes of a network on a bridge; "" is a network that forwards nothing."""
DIRECT = {"vepa": "vepa", "private": "private", "passthrough": "passthru"}
"""The forward modes of a network of macvtaps, and the modes of these."""
PORT = ("bandwidth", "port", "portgroup", "vlan")
"""Settings that a network has for all its ports, and that Tapster does not read."""


def place(xml: bytes) -> dict[str, str]:
    """Return the attributes of a NIC on a network. Raise RequestError."""
    elements = {span.path[1:]: span for span in spans(xml)}
    name = elements[("name",)].text.strip() if ("name",) in elements else "?"

    def attribute(attribute: str, *path: str) -> str:
        span = elements.get(path)
        return span.attributes.get(attribute, "") if span else ""

    for element in PORT:
        if (element,) in elements:
            raise RequestError(
                f"network {name!r} sets <{element}>: give the interface its own"
            )
    mode = attribute("mode", "forward")
    if ("forward",) in elements and not mode:
        mode = "nat"  # libvirt's own default
    bridge = attribute("name", "bridge")
    switch = attribute("type", "virtualport")
    if mode in OWN and bridge and switch in ("", "openvswitch"):
        return {"ovs" if switch else "bridge": bridge}
    lower = attribute("dev", "forward") or attribute("dev", "forward", "interface")
    if lower and not switch and (mode in DIRECT or mode == "bridge"):
        return {"link": lower, "mode": DIRECT.get(mode, mode)}
    raise RequestError(
        f"network {name!r} is on no bridge and no device of this host that Tapster "
        f"could use (forward mode {mode or 'none'!r})"
    )
