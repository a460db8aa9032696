# SPDX-License-Identifier: Apache-2.0
"""Macvtaps: made exclusively, on a lower device that they share, or do not."""

import os
from errno import EADDRINUSE, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT

import pytest

from tapster.kernel.port import Kernel, LinkChange
from tapster.model import MAX_QUEUES, Mode
from tapster.testing import Stranger
from tests.contract.labs import Lab
from tests.contract.makers import OURS, macvtap, refused, tap
from tests.kernel.tools import close

MAC = "52:54:00:00:00:01"


@pytest.fixture(autouse=True)
def low(others: Stranger) -> None:
    others.add_veth("low", "far")


@pytest.mark.parametrize("mode", [*Mode])
def test_each_mode_is_as_it_was_asked_for(
    lab: Lab, kernel: Kernel, others: Stranger, mode: Mode
) -> None:
    others.set_by_name("low", mtu=1400)
    macvtap(kernel, "vnet0", OURS, "low", mode)
    shown = lab.show()["vnet0"]
    assert (shown.ifindex, shown.kind, shown.mode) == (OURS, "macvtap", mode)
    assert (shown.lower, shown.mtu, shown.up) == ("low", 1400, False)


def test_its_mac_and_mtu_are_the_given_ones(kernel: Kernel) -> None:
    macvtap(kernel, "vnet0", OURS, "low", mac=MAC, mtu=1000)
    link = kernel.link(OURS)
    assert link
    assert (link.mac, link.mtu) == (MAC, 1000)


def test_a_name_altname_or_ifindex_that_is_taken_exists_S8(
    lab: Lab, kernel: Kernel, others: Stranger
) -> None:
    others.add_tap("vnet0")
    others.add_altname("vnet0", "vnet1")
    before = lab.show()
    for name in ("vnet0", "vnet1"):
        with refused(EEXIST):
            macvtap(kernel, name, OURS, "low")
    with refused(EEXIST):
        macvtap(kernel, "vnet2", kernel.ifindex("vnet0"), "low")
    assert lab.show() == before


def test_a_lower_device_that_cannot_be_one_is_refused(
    lab: Lab, kernel: Kernel, others: Stranger
) -> None:
    others.add_bridge("br0")
    others.set_by_name("far", master="br0")
    before = lab.show()
    with refused(EBUSY):
        macvtap(kernel, "vnet0", OURS, "far")
    with refused(EINVAL):
        macvtap(kernel, "vnet0", OURS, "lo")
    with refused(ENODEV):
        kernel.create_macvtap(
            "vnet0", OURS, lower=OURS, mode=Mode.VEPA, mac=None, mtu=None, queues=1
        )
    assert lab.show() == before


@pytest.mark.parametrize("mtu", [67, 1501, 65536])
def test_an_mtu_that_the_lower_device_cannot_carry_is_invalid(
    kernel: Kernel, mtu: int
) -> None:
    with refused(EINVAL):
        macvtap(kernel, "vnet0", OURS, "low", mtu=mtu)
    assert kernel.link(OURS) is None


def test_a_lower_mtu_below_its_own_pulls_it_down(
    kernel: Kernel, others: Stranger
) -> None:
    macvtap(kernel, "vnet0", OURS, "low")
    macvtap(kernel, "vnet1", OURS + 1, "low", mtu=1000)
    others.set_by_name("low", mtu=1200)
    links = [kernel.link(OURS), kernel.link(OURS + 1)]
    assert [link and link.mtu for link in links] == [1200, 1000]
    with refused(EINVAL):
        kernel.set_links([LinkChange(OURS, mtu=1500)])


def test_passthru_has_its_lower_device_and_the_mac_of_it_alone(
    kernel: Kernel,
) -> None:
    macvtap(kernel, "vnet0", OURS, "low", Mode.PASSTHRU, mac=MAC)
    link, low = kernel.link(OURS), kernel.link(kernel.ifindex("low"))
    assert link
    assert low
    assert link.mac == low.mac != MAC
    for mode in Mode:
        with refused(EINVAL):
            macvtap(kernel, "vnet1", OURS + 1, "low", mode)
    kernel.delete_links([OURS])
    macvtap(kernel, "vnet1", OURS + 1, "low")
    with refused(EINVAL):
        macvtap(kernel, "vnet0", OURS, "low", Mode.PASSTHRU)


def test_a_mac_given_to_passthru_is_its_lower_devices_until_it_goes(
    kernel: Kernel,
) -> None:
    def low_mac() -> str:
        link = kernel.link(kernel.ifindex("low"))
        assert link
        return link.mac

    before = low_mac()
    macvtap(kernel, "vnet0", OURS, "low", Mode.PASSTHRU)
    kernel.set_links([LinkChange(OURS, mac=MAC, up=True)])
    assert low_mac() == MAC
    kernel.delete_links([OURS])
    assert low_mac() == before


def test_a_mac_is_in_use_while_a_macvtap_beside_is_up_with_it(kernel: Kernel) -> None:
    for number in range(2):
        macvtap(kernel, f"vnet{number}", OURS + number, "low", mac=MAC)
    kernel.set_links([LinkChange(OURS, up=True)])
    with refused(EADDRINUSE):
        kernel.set_links([LinkChange(OURS + 1, up=True)])
    link = kernel.link(OURS + 1)
    assert link
    assert not link.up
    kernel.set_links([LinkChange(OURS, up=False)])
    kernel.set_links([LinkChange(OURS + 1, up=True)])
    with refused(EADDRINUSE):
        kernel.set_links([LinkChange(OURS, up=True)])
    kernel.delete_links([OURS + 1])
    kernel.set_links([LinkChange(OURS, up=True)])


def test_the_mac_of_the_lower_device_is_in_use(kernel: Kernel) -> None:
    macvtap(kernel, "vnet0", OURS, "low")
    low = kernel.link(kernel.ifindex("low"))
    assert low
    with refused(EADDRINUSE):
        kernel.set_links([LinkChange(OURS, mac=low.mac)])


def test_a_macvtap_on_a_macvtap_is_one_beside_it(lab: Lab, kernel: Kernel) -> None:
    macvtap(kernel, "vnet0", OURS, "low")
    macvtap(kernel, "vnet1", OURS + 1, "vnet0")
    assert lab.show()["vnet1"].lower == "low"
    kernel.delete_links([OURS])
    assert kernel.link(OURS + 1)


def test_it_goes_with_its_lower_device(kernel: Kernel, others: Stranger) -> None:
    macvtap(kernel, "vnet0", OURS, "low")
    fds = kernel.open_macvtap(OURS, queues=1, vnet_hdr=True)
    others.delete_by_name("low")
    assert [link.name for link in kernel.links()] == ["lo"], "the peer, too"
    close(fds)


def test_it_is_opened_once_for_each_queue_and_stays_when_closed(
    kernel: Kernel,
) -> None:
    macvtap(kernel, "vnet0", OURS, "low")
    fds = kernel.open_macvtap(OURS, queues=3, vnet_hdr=True)
    assert len(set(fds)) == 3
    assert not any(os.get_inheritable(fd) for fd in fds)
    close(fds)
    assert kernel.ifindex("vnet0") == OURS
    close(kernel.open_macvtap(OURS, queues=1, vnet_hdr=False))


def test_it_is_opened_at_most_256_times(kernel: Kernel) -> None:
    macvtap(kernel, "vnet0", OURS, "low")
    fds = kernel.open_macvtap(OURS, queues=MAX_QUEUES, vnet_hdr=True)
    with refused(EBUSY):
        kernel.open_macvtap(OURS, queues=1, vnet_hdr=True)
    close(fds)
    close(kernel.open_macvtap(OURS, queues=1, vnet_hdr=True))


def test_what_is_no_macvtap_cannot_be_opened_as_one(kernel: Kernel) -> None:
    os.close(tap(kernel, "vnet0", OURS))
    for ifindex in (OURS, OURS + 1, kernel.ifindex("low")):
        with refused(ENOENT):
            kernel.open_macvtap(ifindex, queues=1, vnet_hdr=True)


def test_it_cannot_be_a_port_of_a_bridge(
    lab: Lab, kernel: Kernel, others: Stranger
) -> None:
    others.add_bridge("br0")
    macvtap(kernel, "vnet0", OURS, "low")
    for ifindex in (OURS, kernel.ifindex("low")):
        with refused(EBUSY):
            kernel.set_links([LinkChange(ifindex, master=kernel.ifindex("br0"))])
    assert {shown.master for shown in lab.show().values()} == {""}
