# SPDX-License-Identifier: Apache-2.0
"""Links as the kernel sends them, put together by hand where no kernel here can."""

import struct

import pytest

from tapster.kernel import rtnl

# From include/uapi/linux/if_link.h.
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO = 3, 10, 18
IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 1, 4


def attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


@pytest.mark.parametrize(
    ("switch", "master"), [(b"bridge", 7), (b"openvswitch", 0), (b"bond", 7)]
)
def test_what_open_vswitch_has_in_the_kernel_is_on_no_bridge(
    switch: bytes, master: int
) -> None:
    """It cannot be taken off by netlink: `ovs-system` has no ndo_del_slave."""
    info = attribute(IFLA_INFO_KIND, b"tun\0")
    info += attribute(IFLA_INFO_SLAVE_KIND, switch + b"\0")
    body = struct.pack("=BxHiII", 0, 1, 42, 0, 0)
    body += attribute(IFLA_IFNAME, b"vnet0\0")
    body += attribute(IFLA_MASTER, struct.pack("=I", 7))
    body += attribute(IFLA_LINKINFO, info)
    link = rtnl.link_of(body)
    assert (link.ifindex, link.name, link.kind) == (42, "vnet0", "tun")
    assert link.master == master
