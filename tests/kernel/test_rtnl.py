# SPDX-License-Identifier: Apache-2.0
"""Links as the kernel sends them, put together by hand where no kernel here can."""

import gc
import struct
from random import Random

import pytest

from tapster.kernel import rtnl
from tapster.kernel.port import LinkChange

# From include/uapi/linux/if_link.h.
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO = 3, 10, 18
IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 1, 4


def attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


@pytest.mark.parametrize(
    ("switch", "master"), [(b"bridge", 7), (b"openvswitch", 0), (b"bond", 7)]
)
def test_a_port_of_open_vswitch_in_the_kernel_is_on_no_linux_bridge(
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


def walked(data: bytes, offset: int, wanted: frozenset[int] | None) -> dict[int, bytes]:
    """Parse attributes one after the other, with no memory of earlier lists."""
    found = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        if wanted is None or kind & 0x3FFF in wanted:
            found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


@pytest.mark.parametrize("wanted", [None, frozenset({1, 3})])
@pytest.mark.parametrize("offset", [0, 16])
def test_attributes_are_found_whatever_lists_of_the_same_length_came_before(
    offset: int, wanted: frozenset[int] | None
) -> None:
    random = Random(1)
    lengths = [[4, 4, 8, 4], [4, 8, 4, 4], [8, 4, 4, 4], [4, 4, 4, 4, 0], [24, 0]]
    for _ in range(3000):
        first = attribute(1, bytes(4))  # most lists begin alike
        parts = [first] + [
            attribute(random.choice((1, 2, 3, 1 << 15 | 3)), random.randbytes(length))
            for length in random.choice(lengths)
        ]
        data = bytes(offset) + b"".join(parts)
        if random.random() < 0.2:  # a header that says anything
            at = random.randrange(offset, len(data) - 4, 4)
            header = struct.pack("=HH", random.choice((0, 3, 9, 100)), 3)
            data = data[:at] + header + data[at + 4 :]
        expected = walked(data, offset, wanted)
        assert rtnl.parse_attributes(data, offset, wanted) == expected


@pytest.mark.kernel
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("left", range(4))
def test_sequence_numbers_begin_again_after_32_bits(left: int) -> None:
    opened = rtnl.Rtnl(sequence=(1 << 32) - 1 - left)
    bridge = opened.find("br0")
    for mtu in (1300, 1301):
        assert {link.name for link in opened.dump()} == {"lo", "br0"}
        changes = [LinkChange(bridge, mtu=mtu), LinkChange(bridge, up=False)]
        requests = [rtnl.set_messages(change)[0] for change in changes]
        assert opened.execute(requests) == [None, None]
        link = opened.get(bridge)
        assert link
        assert (link.mtu, link.up) == (mtu, False)
    opened.close()


@pytest.mark.kernel
@pytest.mark.usefixtures("world")
def test_asking_for_an_absent_link_leaves_no_garbage() -> None:
    """Each acquire asks for a name that no link has. What is in a cycle, such as an
    exception and a frame that holds it, is freed in pauses of 20 ms."""
    opened = rtnl.Rtnl()
    gc.collect()
    gc.disable()
    try:
        assert opened.find("nothing") == 0
        assert gc.collect() == 0
    finally:
        gc.enable()
        opened.close()
