# SPDX-License-Identifier: Apache-2.0
"""Names, altnames and interface indexes."""

import os

from lab.fake_and_real import ContractLab
from tapster.kernel.port import LinkChange, Namespace
from tapster.testing import Stranger
from tests.contract.makers import OURS, tap


def test_a_device_is_found_by_its_name_and_by_its_altname(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0")
    others.add_altname("br0", "uplink")
    long = "an-alternative-name-may-be-longer"
    others.add_altname("br0", long)
    assert namespace.ifindex(long) == namespace.ifindex("br0")
    assert namespace.ifindex("br0") == namespace.ifindex("uplink") > 0
    assert namespace.named("br0") == namespace.named("uplink")
    assert namespace.named("br0") == namespace.link(namespace.ifindex("br0"))
    assert namespace.ifindex("br") == namespace.ifindex("br00") == 0
    others.del_altname("br0", "uplink")
    assert namespace.ifindex("uplink") == 0


def test_an_absent_device_is_no_error(namespace: Namespace) -> None:
    assert namespace.ifindex("vnet0") == 0
    assert namespace.named("vnet0") is None
    assert namespace.link(0) is None
    assert namespace.link(OURS) is None


def test_every_device_is_listed_as_it_is_shown_alone(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0")
    os.close(tap(namespace, "vnet0", OURS))
    links = namespace.links()
    assert {link.name for link in links} == {"lo", "br0", "vnet0"}
    assert [namespace.link(link.ifindex) for link in links] == links
    assert {link.name: link.kind for link in links} == {
        "lo": "",
        "br0": "bridge",
        "vnet0": "tun",
    }


def test_a_template_of_the_kernel_fills_the_lowest_hole(others: Stranger) -> None:
    names = [others.add_tap("vnet%d") for _ in range(4)]
    assert names == ["vnet0", "vnet1", "vnet2", "vnet3"]
    others.delete_by_name("vnet1")
    others.rename("vnet2", "web")
    others.add_altname("web", "vnet1")
    assert others.add_tap("vnet%d") == "vnet2", "an altname is a name, too"
    assert others.add_tap("") == "tap0"


def test_a_large_ifindex_does_not_move_the_kernels_counter(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("one")
    os.close(tap(namespace, "vnet0", OURS))
    others.add_tap("two")
    one, two = namespace.ifindex("one"), namespace.ifindex("two")
    assert two == one + 1
    others.delete_by_name("two")
    others.add_tap("three")
    assert namespace.ifindex("three") == two + 1, "nor does it go back"


def test_a_small_ifindex_that_is_asked_for_is_stepped_over_later(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("one")
    one = namespace.ifindex("one")
    os.close(tap(namespace, "vnet0", one + 1))
    others.add_tap("two")
    assert namespace.ifindex("two") == one + 2


def test_a_rename_changes_no_identity(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    fd = tap(namespace, "vnet0", OURS)
    namespace.set_links([LinkChange(OURS, up=True)])
    others.rename("vnet0", "renamed")
    assert namespace.ifindex("renamed") == OURS
    assert namespace.ifindex("vnet0") == 0
    shown = lab.show()["renamed"]
    assert (shown.up, shown.carrier) == (True, True), "it was up, and is open"
    os.close(fd)
    assert lab.show()["renamed"].carrier is False


def test_a_name_that_was_given_up_is_free(
    namespace: Namespace, others: Stranger
) -> None:
    os.close(tap(namespace, "vnet0", OURS))
    others.rename("vnet0", "renamed")
    os.close(tap(namespace, "vnet0", OURS + 1))
    namespace.delete_links([OURS + 1])
    os.close(tap(namespace, "vnet0", OURS + 1))
    assert namespace.ifindex("vnet0") == OURS + 1


def test_a_deletion_by_altname_deletes_the_device(
    namespace: Namespace, others: Stranger
) -> None:
    os.close(tap(namespace, "vnet0", OURS))
    others.add_altname("vnet0", "other")
    others.delete_by_name("other")
    assert namespace.link(OURS) is None
    assert namespace.ifindex("vnet0") == 0


def test_names_are_listed_with_their_indexes(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("vnet0")
    others.add_bridge("br0")
    tap(namespace, "vnet1", OURS)
    listed = namespace.names()
    assert {"vnet0", "vnet1", "br0"} <= listed.keys()
    assert listed == {link.name: link.ifindex for link in namespace.links()}


def test_many_links_are_read_at_once_as_they_are_one_by_one(
    namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0")
    for number in range(0, 80, 2):
        os.close(tap(namespace, f"vnet{number}", OURS + number))
    wanted = [OURS + number for number in range(80)] + [namespace.ifindex("br0")]
    one_by_one = {index: namespace.link(index) for index in wanted}
    found = namespace.links_with(wanted)
    assert found == {index: link for index, link in one_by_one.items() if link}
    assert len(found) == 41
    assert namespace.links_with([]) == {}
