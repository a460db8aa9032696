# SPDX-License-Identifier: Apache-2.0
"""Changing, joining and deleting devices, and noticing that others do."""

import os
from errno import (
    EBUSY,
    EINVAL,
    ELOOP,
    ENODEV,
    EOPNOTSUPP,
    ERANGE,
    EXFULL,
)

import pytest

from lab.fake_and_real import ContractLab
from lab.library import close
from tapster.kernel.port import LinkChange, Namespace, NewMacvtap
from tapster.model import Link, Mode
from tapster.testing import Stranger
from tests.contract.makers import OURS, refused, tap

MAC = "fe:54:00:00:00:01"
GUEST = "52:54:00:00:00:01"


@pytest.fixture
def bridge(namespace: Namespace, others: Stranger) -> int:
    others.add_bridge("br0")
    return namespace.ifindex("br0")


def look(namespace: Namespace, ifindex: int) -> Link:
    link = namespace.link(ifindex)
    assert link
    return link


def idle(namespace: Namespace, *numbers: int) -> None:
    """Make taps that nobody has open: vnet0 has ifindex OURS, and so on."""
    for number in numbers:
        os.close(tap(namespace, f"vnet{number}", OURS + number))


# Changing


def test_all_of_a_device_is_changed_at_once(
    lab: ContractLab, namespace: Namespace, bridge: int
) -> None:
    idle(namespace, 0)
    namespace.set_links(
        [
            LinkChange(
                OURS,
                mac=MAC,
                mtu=1400,
                alias="tapster:1:2",
                no_ipv6=True,
                master=bridge,
                isolated=True,
                up=True,
            )
        ]
    )
    shown = lab.show()["vnet0"]
    assert (shown.mac, shown.mtu, shown.alias) == (MAC, 1400, "tapster:1:2")
    assert (shown.no_ipv6, shown.master, shown.isolated) == (True, "br0", True)
    assert shown.up
    link = look(namespace, OURS)
    assert (link.mac, link.mtu, link.alias) == (MAC, 1400, "tapster:1:2")
    assert (link.master, link.up) == (bridge, True)
    namespace.set_links([LinkChange(OURS, master=0, up=False, alias="")])
    link = look(namespace, OURS)
    assert (link.master, link.up, link.alias, link.mtu) == (0, False, "", 1400)


def test_a_field_that_is_none_stays_as_it_is(
    lab: ContractLab, namespace: Namespace
) -> None:
    idle(namespace, 0)
    before = lab.show()
    namespace.set_links([LinkChange(OURS)])
    assert lab.show() == before
    namespace.set_links([LinkChange(OURS, up=True)])
    assert lab.show()["vnet0"] == before["vnet0"]._replace(up=True)


def test_changes_end_at_the_first_that_fails(namespace: Namespace) -> None:
    idle(namespace, 0, 1)
    with refused(ENODEV):
        namespace.set_links(
            [
                LinkChange(OURS, alias="first"),
                LinkChange(OURS + 7, alias="nobody"),
                LinkChange(OURS + 1, alias="third"),
            ]
        )
    assert look(namespace, OURS).alias == "first"
    assert look(namespace, OURS + 1).alias == ""


def test_a_failing_change_is_made_up_to_the_failing_part(namespace: Namespace) -> None:
    """The kernel takes the device up before it joins it to the bridge."""
    idle(namespace, 0)
    with refused(EINVAL):
        namespace.set_links([LinkChange(OURS, alias="x", master=OURS + 7, up=True)])
    link = look(namespace, OURS)
    assert (link.alias, link.up, link.master) == ("x", True, 0)


@pytest.mark.parametrize("mtu", [67, 65522])
def test_an_mtu_beyond_what_a_tap_can_carry_is_invalid(
    namespace: Namespace, mtu: int
) -> None:
    idle(namespace, 0)
    namespace.set_links([LinkChange(OURS, mtu=68)])
    namespace.set_links([LinkChange(OURS, mtu=65521)])
    with refused(EINVAL):
        namespace.set_links([LinkChange(OURS, mtu=mtu)])
    assert look(namespace, OURS).mtu == 65521


def test_an_alias_has_255_bytes(namespace: Namespace) -> None:
    idle(namespace, 0)
    namespace.set_links([LinkChange(OURS, alias="x" * 255)])
    with refused(ERANGE):
        namespace.set_links([LinkChange(OURS, alias="y" * 256, up=True)])
    link = look(namespace, OURS)
    assert (link.alias, link.up) == ("x" * 255, False), "nothing of it was done"


def test_an_mtu_too_small_for_ipv6_is_no_failure(namespace: Namespace) -> None:
    idle(namespace, 0)
    namespace.set_links(
        [LinkChange(OURS, mtu=576, no_ipv6=True), LinkChange(OURS, up=True)]
    )
    link = look(namespace, OURS)
    assert (link.mtu, link.up) == (576, True)


def test_ipv6_is_off_in_every_address_mode(namespace: Namespace) -> None:
    idle(namespace, 0)
    for disabled in (True, False):
        namespace.set_links([LinkChange(OURS, disable_ipv6=disabled)])
        link = look(namespace, OURS)
        assert (link.no_ipv6, link.ipv6_disabled) == (disabled, disabled)
    # A device with so small an MTU has no IPv6. A larger MTU brings its defaults.
    namespace.set_links([LinkChange(OURS, mtu=576, disable_ipv6=True)])
    assert look(namespace, OURS).ipv6_disabled
    namespace.set_links([LinkChange(OURS, mtu=1500)])
    assert not look(namespace, OURS).ipv6_disabled


# Bridges


def test_a_port_is_isolated_for_as_long_as_it_is_one(
    lab: ContractLab, namespace: Namespace, others: Stranger, bridge: int
) -> None:
    idle(namespace, 0)
    with refused(EOPNOTSUPP):
        namespace.set_links([LinkChange(OURS, isolated=True)])
    with refused(ENODEV):
        namespace.set_links([LinkChange(OURS + 7, isolated=True)])
    namespace.set_links([LinkChange(OURS, master=bridge, isolated=True)])
    assert lab.show()["vnet0"].isolated
    others.add_bridge("br1")
    namespace.set_links([LinkChange(OURS, master=namespace.ifindex("br1"))])
    shown = lab.show()["vnet0"]
    assert (shown.master, shown.isolated) == ("br1", False)


def test_a_port_that_learns_nothing_has_neighbours_for_good(
    lab: ContractLab, namespace: Namespace, others: Stranger, bridge: int
) -> None:
    idle(namespace, 0, 1)
    with refused(EOPNOTSUPP):
        namespace.set_links([LinkChange(OURS, neighbour=GUEST)])
    with refused(EOPNOTSUPP):
        namespace.set_links([LinkChange(OURS, learning=False)])
    namespace.set_links(
        [LinkChange(OURS, master=bridge, learning=False, neighbour=GUEST)]
    )
    namespace.set_links([LinkChange(OURS + 1, master=bridge)])
    namespace.set_links([LinkChange(OURS, neighbour=GUEST)])  # once more
    shown = lab.show()
    assert (shown["vnet0"].learning, shown["vnet0"].neighbours) == (
        False,
        frozenset({GUEST}),
    )
    assert (shown["vnet1"].learning, shown["vnet1"].neighbours) == (True, frozenset())
    assert namespace.neighbours(OURS) == {GUEST}
    assert namespace.neighbours(OURS + 1) == namespace.neighbours(OURS + 7) == set()
    link = look(namespace, OURS)
    assert (link.learning, link.flood, link.isolated) == (False, False, False)
    namespace.set_links([LinkChange(OURS, learning=True, isolated=True)])
    link = look(namespace, OURS)
    assert (link.learning, link.flood, link.isolated) == (True, True, True)
    assert namespace.neighbours(OURS) == {GUEST}, "as long as it is a port"
    others.add_bridge("br1")
    namespace.set_links([LinkChange(OURS, master=namespace.ifindex("br1"))])
    assert namespace.neighbours(OURS) == lab.show()["vnet0"].neighbours == set()


def test_a_device_that_cannot_be_a_port_or_bridge_is_refused(
    namespace: Namespace, others: Stranger, bridge: int
) -> None:
    idle(namespace, 0, 1)
    others.add_bridge("br1")
    for ifindex, master, code in (
        (OURS, OURS + 7, EINVAL),
        (OURS, OURS + 1, EOPNOTSUPP),
        (namespace.ifindex("lo"), bridge, EINVAL),
        (namespace.ifindex("br1"), bridge, ELOOP),
        (bridge, bridge, ELOOP),
    ):
        with refused(code):
            namespace.set_links([LinkChange(ifindex, master=master)])
    assert {link.master for link in namespace.links()} == {0}


def test_ports_are_counted(namespace: Namespace, others: Stranger, bridge: int) -> None:
    idle(namespace, 0, 1, 2)
    assert namespace.ports(look(namespace, bridge)) == 0
    namespace.set_links([LinkChange(OURS + n, master=bridge) for n in range(3)])
    assert namespace.ports(look(namespace, bridge)) == 3
    namespace.set_links([LinkChange(OURS, master=0)])
    namespace.delete_links([OURS + 1])
    gone = look(namespace, bridge)
    assert namespace.ports(gone) == 1
    others.rename("br0", "other")
    with refused(ENODEV):
        namespace.ports(gone)


def test_a_bridge_has_room_for_1023_ports(namespace: Namespace, bridge: int) -> None:
    numbers = range(1024)
    idle(namespace, *numbers)
    *fitting, over = (LinkChange(OURS + n, master=bridge, up=True) for n in numbers)
    namespace.set_links(fitting)
    assert namespace.ports(look(namespace, bridge)) == 1023
    with refused(EXFULL):
        namespace.set_links([over])
    assert look(namespace, over.ifindex).master == 0
    namespace.set_links([fitting[0]._replace(master=0)])
    namespace.set_links([over])


def test_a_bridge_follows_its_lowest_mac_and_mtu(
    namespace: Namespace, others: Stranger, bridge: int
) -> None:
    idle(namespace, 0, 1)
    namespace.set_links([LinkChange(OURS, mac=MAC, mtu=1400, master=bridge)])
    assert look(namespace, bridge)[4:6] == (MAC, 1400)
    lower = "52:54:00:00:00:01"
    namespace.set_links([LinkChange(OURS + 1, mac=lower, mtu=1300, master=bridge)])
    assert look(namespace, bridge)[4:6] == (lower, 1300)
    namespace.delete_links([OURS + 1])
    assert look(namespace, bridge)[4:6] == (MAC, 1400)
    namespace.delete_links([OURS])
    assert look(namespace, bridge)[4:6] == ("00:00:00:00:00:00", 1500)


def test_a_bridge_keeps_a_mac_and_an_mtu_that_were_set(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    others.set_by_name("br0", mtu=1450)
    idle(namespace, 0)
    bridge = namespace.ifindex("br0")
    namespace.set_links([LinkChange(OURS, mac=MAC, mtu=1300, master=bridge)])
    namespace.delete_links([OURS])
    assert look(namespace, bridge)[4:6] == ("02:00:00:00:00:01", 1450)


def test_ports_outlive_their_bridge(
    namespace: Namespace, others: Stranger, bridge: int
) -> None:
    idle(namespace, 0)
    namespace.set_links([LinkChange(OURS, master=bridge, up=True)])
    others.delete_by_name("br0")
    link = look(namespace, OURS)
    assert (link.master, link.up) == (0, True)


# Deleting


def test_absent_devices_are_deleted_without_a_word(namespace: Namespace) -> None:
    idle(namespace, 0, 1)
    namespace.delete_links([])
    namespace.delete_links([OURS + 7])
    namespace.delete_links([OURS + 7, OURS, OURS + 8])
    namespace.delete_links([OURS + 7, OURS + 8])
    namespace.delete_links([OURS, OURS + 1, OURS + 1])
    assert [link.name for link in namespace.links()] == ["lo"]


def test_only_the_devices_named_are_deleted_I3(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("bystander")
    others.set_by_name("bystander", group=7)
    idle(namespace, *range(5))
    before = lab.show()
    namespace.delete_links([OURS, OURS + 2])
    namespace.delete_links([OURS + 4])
    after = lab.show()
    assert after == {name: before[name] for name in after}
    assert set(after) == {"lo", "bystander", "vnet1", "vnet3"}


def test_a_group_with_a_device_that_cannot_be_deleted_stays_whole(
    namespace: Namespace,
) -> None:
    idle(namespace, 0)
    lo = namespace.ifindex("lo")
    with refused(EOPNOTSUPP):
        namespace.delete_links([lo])
    with refused(EOPNOTSUPP):
        namespace.delete_links([OURS, lo])
    assert look(namespace, OURS).name == "vnet0"
    namespace.delete_links([OURS])


# Noticing


def test_changes_are_reported_from_the_second_call_on(
    namespace: Namespace, others: Stranger
) -> None:
    idle(namespace, 0, 1)
    assert namespace.changed_links() is None
    assert namespace.changed_links() == set()
    others.rename("vnet0", "renamed")
    others.add_tap("other")
    changed = namespace.changed_links()
    assert changed
    assert {OURS, namespace.ifindex("other")} <= changed
    assert OURS + 1 not in changed
    assert namespace.changed_links() == set()
    others.delete_by_name("renamed")
    assert namespace.changed_links() == {OURS}
    namespace.forget_changes()
    assert namespace.changed_links() is None


def test_the_close_of_a_tap_that_is_up_is_reported(namespace: Namespace) -> None:
    fd = tap(namespace, "vnet0", OURS)
    namespace.set_links([LinkChange(OURS, up=True)])
    namespace.changed_links()
    close([fd])
    assert namespace.changed_links() == {OURS}


def test_an_altname_is_reported_only_if_its_device_is_up(
    namespace: Namespace, others: Stranger
) -> None:
    idle(namespace, 0, 1)
    namespace.set_links([LinkChange(OURS, up=True)])
    namespace.changed_links()
    for number in (0, 1):
        others.add_altname(f"vnet{number}", f"other{number}")
    assert namespace.changed_links() == {OURS}
    for number in (0, 1):
        others.del_altname(f"vnet{number}", f"other{number}")
    assert namespace.changed_links() == {OURS}


def test_each_object_reports_the_changes_since_its_own_last_look(
    lab: ContractLab, namespace: Namespace
) -> None:
    other = lab.system.netns(None)
    assert namespace.changed_links() is None
    assert other.changed_links() is None
    idle(namespace, 0)
    for one in (namespace, other):
        changed = one.changed_links()
        assert changed
        assert OURS in changed
    other.close()


def test_a_macvtap_beside_is_not_disturbed(namespace: Namespace, bridge: int) -> None:
    """A device that has macvtaps on it cannot be a port."""
    idle(namespace, 0)
    namespace.create_macvtap(
        NewMacvtap("vnet1", OURS + 1, lower=OURS, mode=Mode.BRIDGE)
    )
    with refused(EBUSY):
        namespace.set_links([LinkChange(OURS, master=bridge)])
    namespace.delete_links([OURS + 1])
    namespace.set_links([LinkChange(OURS, master=bridge)])
