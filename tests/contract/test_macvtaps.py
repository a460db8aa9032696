# SPDX-License-Identifier: Apache-2.0
"""Macvtaps: made exclusively, on a lower device that they share, or do not."""

import os
from errno import EADDRINUSE, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT

import pytest

from lab.fake_and_real import ContractLab
from lab.library import close
from tapster.kernel.port import LinkChange, Namespace, NewMacvtap
from tapster.model import MAX_QUEUES, Mode
from tapster.testing import Stranger
from tests.contract.makers import OURS, macvtap, refused, tap

MAC = "52:54:00:00:00:01"


@pytest.fixture(autouse=True)
def low(others: Stranger) -> None:
    others.add_veth("low", "far")


@pytest.mark.parametrize("mode", [*Mode])
def test_each_mode_is_as_it_was_asked_for(
    lab: ContractLab, namespace: Namespace, others: Stranger, mode: Mode
) -> None:
    others.set_by_name("low", mtu=1400)
    macvtap(namespace, "vnet0", OURS, "low", mode)
    shown = lab.show()["vnet0"]
    assert (shown.ifindex, shown.kind, shown.mode) == (OURS, "macvtap", mode)
    assert (shown.lower, shown.mtu, shown.up) == ("low", 1400, False)


def test_a_macvtap_has_the_given_mac_and_mtu(namespace: Namespace) -> None:
    macvtap(namespace, "vnet0", OURS, "low", mac=MAC, mtu=1000)
    link = namespace.link(OURS)
    assert link
    assert (link.mac, link.mtu) == (MAC, 1000)


def test_the_mode_may_be_changed_but_not_to_or_from_passthru(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_veth("low2", "far2")
    macvtap(namespace, "vnet0", OURS, "low", Mode.PRIVATE)
    macvtap(namespace, "vnet1", OURS + 1, "low2", Mode.PASSTHRU)
    for mode in (Mode.BRIDGE, Mode.VEPA, Mode.PRIVATE):
        namespace.set_links([LinkChange(OURS, mode=mode)])
        assert lab.show()["vnet0"].mode == mode
        link = namespace.link(OURS)
        assert link
        assert (link.mode, link.lower) == (mode, namespace.ifindex("low"))
        with refused(EINVAL):
            namespace.set_links([LinkChange(OURS + 1, mode=mode)])
    with refused(EINVAL):
        namespace.set_links([LinkChange(OURS, mode=Mode.PASSTHRU)])


def test_a_name_altname_or_ifindex_that_is_taken_exists(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("vnet0")
    others.add_altname("vnet0", "vnet1")
    before = lab.show()
    for name in ("vnet0", "vnet1"):
        with refused(EEXIST):
            macvtap(namespace, name, OURS, "low")
    with refused(EEXIST):
        macvtap(namespace, "vnet2", namespace.ifindex("vnet0"), "low")
    assert lab.show() == before


def test_a_lower_device_that_cannot_be_one_is_refused(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0")
    others.set_by_name("far", master="br0")
    before = lab.show()
    with refused(EBUSY):
        macvtap(namespace, "vnet0", OURS, "far")
    with refused(EINVAL):
        macvtap(namespace, "vnet0", OURS, "lo")
    with refused(ENODEV):
        namespace.create_macvtap(NewMacvtap("vnet0", OURS, lower=OURS, mode=Mode.VEPA))
    assert lab.show() == before


@pytest.mark.parametrize("mtu", [67, 1501, 65536])
def test_an_mtu_that_the_lower_device_cannot_carry_is_invalid(
    namespace: Namespace, mtu: int
) -> None:
    with refused(EINVAL):
        macvtap(namespace, "vnet0", OURS, "low", mtu=mtu)
    assert namespace.link(OURS) is None


def test_a_lower_mtu_below_its_own_pulls_it_down(
    namespace: Namespace, others: Stranger
) -> None:
    macvtap(namespace, "vnet0", OURS, "low")
    macvtap(namespace, "vnet1", OURS + 1, "low", mtu=1000)
    others.set_by_name("low", mtu=1200)
    links = [namespace.link(OURS), namespace.link(OURS + 1)]
    assert [link and link.mtu for link in links] == [1200, 1000]
    with refused(EINVAL):
        namespace.set_links([LinkChange(OURS, mtu=1500)])


def test_passthru_has_its_lower_device_and_the_mac_of_it_alone(
    namespace: Namespace,
) -> None:
    macvtap(namespace, "vnet0", OURS, "low", Mode.PASSTHRU, mac=MAC)
    link, low = namespace.link(OURS), namespace.link(namespace.ifindex("low"))
    assert link
    assert low
    assert link.mac == low.mac != MAC
    for mode in Mode:
        with refused(EINVAL):
            macvtap(namespace, "vnet1", OURS + 1, "low", mode)
    namespace.delete_links([OURS])
    macvtap(namespace, "vnet1", OURS + 1, "low")
    with refused(EINVAL):
        macvtap(namespace, "vnet0", OURS, "low", Mode.PASSTHRU)


def test_a_mac_given_to_passthru_is_its_lower_devices_until_it_goes(
    namespace: Namespace,
) -> None:
    def low_mac() -> str:
        link = namespace.link(namespace.ifindex("low"))
        assert link
        return link.mac

    before = low_mac()
    macvtap(namespace, "vnet0", OURS, "low", Mode.PASSTHRU)
    namespace.set_links([LinkChange(OURS, mac=MAC, up=True)])
    assert low_mac() == MAC
    namespace.delete_links([OURS])
    assert low_mac() == before


def test_a_mac_is_in_use_while_a_macvtap_beside_is_up_with_it(
    namespace: Namespace,
) -> None:
    for number in range(2):
        macvtap(namespace, f"vnet{number}", OURS + number, "low", mac=MAC)
    namespace.set_links([LinkChange(OURS, up=True)])
    with refused(EADDRINUSE):
        namespace.set_links([LinkChange(OURS + 1, up=True)])
    link = namespace.link(OURS + 1)
    assert link
    assert not link.up
    namespace.set_links([LinkChange(OURS, up=False)])
    namespace.set_links([LinkChange(OURS + 1, up=True)])
    with refused(EADDRINUSE):
        namespace.set_links([LinkChange(OURS, up=True)])
    namespace.delete_links([OURS + 1])
    namespace.set_links([LinkChange(OURS, up=True)])


def test_the_mac_of_the_lower_device_is_in_use(namespace: Namespace) -> None:
    macvtap(namespace, "vnet0", OURS, "low")
    low = namespace.link(namespace.ifindex("low"))
    assert low
    with refused(EADDRINUSE):
        namespace.set_links([LinkChange(OURS, mac=low.mac)])


def test_a_macvtap_on_a_macvtap_is_one_beside_it(
    lab: ContractLab, namespace: Namespace
) -> None:
    macvtap(namespace, "vnet0", OURS, "low")
    macvtap(namespace, "vnet1", OURS + 1, "vnet0")
    assert lab.show()["vnet1"].lower == "low"
    namespace.delete_links([OURS])
    assert namespace.link(OURS + 1)


def test_a_macvtap_goes_with_its_lower_device(
    namespace: Namespace, others: Stranger
) -> None:
    macvtap(namespace, "vnet0", OURS, "low")
    fds = namespace.open_macvtap(OURS, queues=1, vnet_hdr=True)
    others.delete_by_name("low")
    assert [link.name for link in namespace.links()] == ["lo"], "the peer, too"
    close(fds)


def test_a_macvtap_is_opened_once_for_each_queue_and_stays_when_closed(
    namespace: Namespace,
) -> None:
    macvtap(namespace, "vnet0", OURS, "low")
    fds = namespace.open_macvtap(OURS, queues=3, vnet_hdr=True)
    assert len(set(fds)) == 3
    assert not any(os.get_inheritable(fd) for fd in fds)
    close(fds)
    assert namespace.ifindex("vnet0") == OURS
    close(namespace.open_macvtap(OURS, queues=1, vnet_hdr=False))


def test_a_macvtap_is_opened_at_most_256_times(namespace: Namespace) -> None:
    macvtap(namespace, "vnet0", OURS, "low")
    fds = namespace.open_macvtap(OURS, queues=MAX_QUEUES, vnet_hdr=True)
    with refused(EBUSY):
        namespace.open_macvtap(OURS, queues=1, vnet_hdr=True)
    close(fds)
    close(namespace.open_macvtap(OURS, queues=1, vnet_hdr=True))


def test_a_device_that_is_no_macvtap_cannot_be_opened_as_one(
    namespace: Namespace,
) -> None:
    os.close(tap(namespace, "vnet0", OURS))
    for ifindex in (OURS, OURS + 1, namespace.ifindex("low")):
        with refused(ENOENT):
            namespace.open_macvtap(ifindex, queues=1, vnet_hdr=True)


def test_a_macvtap_cannot_be_a_port_of_a_bridge(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0")
    macvtap(namespace, "vnet0", OURS, "low")
    for ifindex in (OURS, namespace.ifindex("low")):
        with refused(EBUSY):
            namespace.set_links([LinkChange(ifindex, master=namespace.ifindex("br0"))])
    assert {shown.master for shown in lab.show().values()} == {""}


def test_the_lower_device_may_be_in_another_namespace(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    lab.add_netns("pod")
    pod = lab.system.netns("pod")
    try:
        lower = namespace.ifindex("low")
        device = NewMacvtap("eth0", OURS, lower, Mode.BRIDGE, mac="52:54:00:00:00:07")
        pod.create_macvtap(device, beneath=namespace)
        made = pod.link(OURS)
        assert made is not None
        assert (made.name, made.kind, made.mac) == ("eth0", "macvtap", device.mac)
        assert namespace.link(OURS) is None
        (fd,) = pod.open_macvtap(OURS, queues=1, vnet_hdr=True)
        os.close(fd)
        with refused(EEXIST):
            pod.create_macvtap(device, beneath=namespace)
        absent = device._replace(name="eth1", ifindex=OURS + 1, lower=OURS + 2)
        with refused(ENODEV):
            pod.create_macvtap(absent, beneath=namespace)
    finally:
        pod.close()
