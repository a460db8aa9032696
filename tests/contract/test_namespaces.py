# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: each a world of its own, found again by its cookie."""

import os
from errno import EBUSY

import pytest

from lab.fake_and_real import ContractLab
from lab.library import close
from tapster.errors import NoSuchLink
from tapster.kernel.port import HERE, LinkChange, Namespace
from tapster.model import Netns
from tests.contract.makers import OURS, macvtap, refused, tap


@pytest.fixture
def blue(lab: ContractLab) -> Netns:
    lab.add_netns("blue")
    namespace = lab.system.netns("blue")
    namespace.close()
    return namespace.netns


def test_a_namespace_has_a_name_a_path_and_a_cookie(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    assert blue.path == "/run/netns/blue"
    assert blue.boot == namespace.netns.boot == lab.system.boot_id
    assert blue.cookie != namespace.netns.cookie
    assert namespace.netns.path == ""
    for where in ("blue", "/run/netns/blue"):
        same = lab.system.netns(where)
        assert same.netns == blue
        same.close()


@pytest.mark.parametrize("where", ["green", "/run/netns/green", "/nowhere/blue"])
def test_an_unknown_one_is_refused(lab: ContractLab, where: str) -> None:
    with pytest.raises(NoSuchLink, match=where):
        lab.system.netns(where)


def test_names_and_ifindexes_are_its_own(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    there = lab.system.netns("blue")
    for one in (namespace, there):
        os.close(tap(one, "vnet0", OURS))
        with refused(EBUSY):
            tap(one, "vnet0", OURS + 1)
    there.set_links([LinkChange(OURS, alias="blue")])
    assert lab.show("blue")["vnet0"].alias == "blue"
    assert lab.show()["vnet0"].alias == ""
    there.delete_links([OURS])
    assert namespace.ifindex("vnet0") == OURS
    lab.others("blue").add_tap("vnet0")
    assert there.ifindex("vnet0") not in (0, OURS)
    there.close()


def test_macvtaps_of_one_ifindex_are_two_devices(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    there = lab.system.netns("blue")
    fds: list[int] = []
    for where, one in ((None, namespace), ("blue", there)):
        lab.others(where).add_veth("low", "far")
        macvtap(one, "vnet0", OURS, "low")
        fds += one.open_macvtap(OURS, queues=1, vnet_hdr=True)
    there.delete_links([OURS])
    assert namespace.ifindex("vnet0") == OURS
    close(fds)
    there.close()


def test_a_namespace_reports_its_own_changes_alone(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    there = lab.system.netns("blue")
    for one in (namespace, there):
        one.changed_links()
    os.close(tap(there, "vnet0", OURS))
    assert namespace.changed_links() == set()
    assert there.changed_links()
    there.close()


def test_a_namespace_is_found_by_its_cookie(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    for wanted in (namespace.netns, blue, blue._replace(path="")):
        found = lab.system.find(wanted)
        assert found
        assert found.netns.cookie == wanted.cookie
        found.close()


def test_a_namespace_without_a_name_is_found_by_a_process_in_it(
    lab: ContractLab, blue: Netns
) -> None:
    pid = lab.start("blue")
    lab.delete_netns("blue")
    found = lab.system.find(blue)
    assert found
    assert found.netns.cookie == blue.cookie
    found.close()
    lab.end(pid)
    assert lab.system.find(blue) is None


def test_a_namespace_is_found_by_a_tap_of_it_that_is_open(
    lab: ContractLab, blue: Netns
) -> None:
    there = lab.system.netns("blue")
    fd = tap(there, "vnet0", OURS)
    there.close()
    lab.delete_netns("blue")
    assert lab.system.ended_namespaces([blue]) == set()
    found = lab.system.find(blue)
    assert found
    assert found.ifindex("vnet0") == OURS
    found.close()
    os.close(fd)
    assert lab.system.ended_namespaces([blue]) == {blue}
    assert lab.system.find(blue) is None


def test_one_look_finds_the_ended_of_many_namespaces(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    lab.add_netns("green")
    green = lab.system.netns("green")
    green.close()
    every = [namespace.netns, blue, green.netns, blue._replace(boot="earlier")]
    assert lab.system.ended_namespaces(every) == {blue._replace(boot="earlier")}
    lab.delete_netns("blue")
    lab.add_netns("white")
    moved = green.netns._replace(path="/run/netns/gone")
    every = [namespace.netns, blue, moved]
    assert lab.system.ended_namespaces(every) == {blue}
    assert lab.system.ended_namespaces([]) == set()


def test_a_namespace_that_is_gone_is_not_found(lab: ContractLab, blue: Netns) -> None:
    lab.delete_netns("blue")
    assert lab.system.find(blue) is None


def test_another_one_of_the_same_name_is_not_it(lab: ContractLab, blue: Netns) -> None:
    lab.delete_netns("blue")
    lab.add_netns("blue")
    assert lab.system.find(blue) is None
    again = lab.system.netns("blue")
    assert again.netns.cookie != blue.cookie
    again.close()


def test_a_namespace_of_an_earlier_boot_is_not_found(
    lab: ContractLab, namespace: Namespace
) -> None:
    assert lab.system.find(namespace.netns._replace(boot="earlier")) is None


def test_another_one_has_a_number_here(
    lab: ContractLab, namespace: Namespace, blue: Netns
) -> None:
    assert namespace.number(namespace) == HERE
    lab.add_netns("green")
    there, elsewhere = lab.system.netns("blue"), lab.system.netns("green")
    numbers = [
        namespace.number(there),
        namespace.number(elsewhere),
        namespace.number(there),
    ]
    assert numbers[0] == numbers[2] not in (numbers[1], HERE)
    there.close()
    elsewhere.close()


def test_an_open_one_does_not_end(lab: ContractLab, blue: Netns) -> None:
    there = lab.system.netns("blue")
    os.close(tap(there, "vnet0", OURS))
    lab.delete_netns("blue")
    assert there.ifindex("vnet0") == OURS
    found = lab.system.find(blue)
    assert found
    found.close()
    there.close()
    assert lab.system.find(blue) is None
