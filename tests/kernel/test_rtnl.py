# SPDX-License-Identifier: Apache-2.0
"""Links as the kernel sends them, put together by hand where no kernel here can."""

import gc
import struct
from collections import Counter
from random import Random
from typing import NamedTuple

import pytest

from tapster.kernel import rtnl
from tapster.kernel.port import LinkChange

# From include/uapi/linux/if_link.h.
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO = 3, 10, 18
IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 1, 4


def attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


@pytest.mark.parametrize("length", [0, 3])
def test_a_list_of_attributes_ends_at_a_header_that_is_too_short(length: int) -> None:
    broken = struct.pack("=HH", length, 2)
    data = bytes(16) + attribute(1, b"first") + broken + attribute(3, b"")
    assert rtnl.parse_attributes(data, 16) == {1: b"first"}


class Drawn(NamedTuple):
    """What a drawn message says of a link."""

    name: str
    alias: str
    mac: str
    mtu: int
    kind: str
    owner: int | None
    delay: float
    isolated: bool


def drawn_link(random: Random) -> tuple[bytes, Drawn]:
    """Draw a link: many are as long as others, and have other attributes."""
    kind, on = (
        random.choice(("tun", "tap", "bridge")),
        random.choice((b"bridge", b"bond")),
    )
    number = random.randrange(3)
    data = [attribute(1, struct.pack("=I", number)), attribute(5, struct.pack("=I", 1))]
    port = [attribute(33, bytes([number % 2])), attribute(8, b"\1")]
    alias, name = f"alias{number}", random.choice(("vnet1", "vnet2", "longer-name"))
    mac, mtu = f"02:00:00:00:00:0{number}", 1400 + number
    info = [
        attribute(IFLA_INFO_KIND, kind.encode() + b"\0"),
        attribute(2, b"".join(random.sample(data, 2))),
        attribute(IFLA_INFO_SLAVE_KIND, on + b"\0"),
        attribute(5, b"".join(random.sample(port, 2))),
    ]
    optional = [
        attribute(20, alias.encode()),
        attribute(1, bytes.fromhex(mac.replace(":", ""))),
        attribute(4, struct.pack("=I", mtu)),
        attribute(IFLA_LINKINFO, b"".join(random.sample(info, 4))),
    ]
    there = random.sample(range(4), random.choice((3, 4, 4)))
    body = struct.pack("=BxHiII", 0, 1, 42, 0, 0)
    body += attribute(IFLA_IFNAME, name.encode() + b"\0")
    body += b"".join(optional[place] for place in there)
    info_there = 3 in there
    return body, Drawn(
        name,
        alias if 0 in there else "",
        mac if 1 in there else "",
        mtu if 2 in there else 0,
        kind if info_there else "",
        number if info_there and kind == "tun" else None,
        2 * number / 100 if info_there and kind == "bridge" else 0.0,
        info_there and on == b"bridge" and number == 1,
    )


def test_a_link_is_read_whatever_links_of_the_same_length_came_before() -> None:
    random = Random(1)
    lengths: Counter[int] = Counter()
    for _ in range(3000):
        body, wanted = drawn_link(random)
        lengths[len(body)] += 1
        link = rtnl.link_of(body)
        assert (
            Drawn(
                link.name,
                link.alias,
                link.mac,
                link.mtu,
                link.kind,
                link.tap_owner,
                link.port_delay,
                link.isolated,
            )
            == wanted
        )
    assert len(lengths) < 30


@pytest.mark.parametrize(
    ("on", "master"), [(b"bridge", 7), (b"bond", 7), (b"vrf", 0), (b"openvswitch", 0)]
)
def test_only_a_device_that_netlink_can_take_off_is_a_port(
    on: bytes, master: int
) -> None:
    """`ovs-system` has no ndo_del_slave. A VRF is a table of routes, and no bridge."""
    kinds = rtnl.attribute(rtnl.IFLA_INFO_KIND, b"tun\0")
    kinds += rtnl.attribute(rtnl.IFLA_INFO_SLAVE_KIND, on + b"\0")
    body = rtnl.ifinfo(1 << 30) + rtnl.attribute(rtnl.IFLA_IFNAME, b"vnet0\0")
    body += rtnl.attribute_u32(rtnl.IFLA_MASTER, 7)
    body += rtnl.nest(rtnl.IFLA_LINKINFO, kinds)
    link = rtnl.link_of(body)
    assert (link.name, link.kind, link.master) == ("vnet0", "tun", master)


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
