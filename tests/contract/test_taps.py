# SPDX-License-Identifier: Apache-2.0
"""Taps: made exclusively, kept after the last close, and open to hijackers."""

import os
from collections.abc import Callable
from errno import E2BIG, EBADFD, EBUSY, EINVAL

import pytest

from lab.fake_and_real import ContractLab
from lab.library import close
from tapster.kernel.port import LinkChange, Namespace
from tapster.model import MAX_QUEUES
from tapster.testing import Stranger
from tests.contract.makers import OURS, refused, tap, taps


def test_a_tap_is_as_it_was_asked_for(lab: ContractLab, namespace: Namespace) -> None:
    fds = taps(namespace, "vnet0", OURS, 3)
    assert len(set(fds)) == 3
    assert not any(os.get_inheritable(fd) for fd in fds)
    shown = lab.show()["vnet0"]
    assert (shown.ifindex, shown.kind) == (OURS, "tun")
    assert (shown.persist, shown.vnet_hdr, shown.queues) == (True, True, 3)
    assert (shown.up, shown.master, shown.alias) == (False, "", "")
    assert (shown.mtu, shown.group) == (1500, "default")
    close(fds)
    close(taps(namespace, "vnet1", OURS + 1, vnet_hdr=False))
    shown = lab.show()["vnet1"]
    assert (shown.vnet_hdr, shown.queues) == (False, None), "no multi-queue tap"


def test_a_user_may_be_let_in(namespace: Namespace) -> None:
    fds = namespace.create_tap(
        "vnet0", OURS, queues=1, vnet_hdr=True, uid=1234, gid=5678
    )
    close(fds)
    assert namespace.ifindex("vnet0") == OURS


Squat = Callable[[Stranger], object]

SQUATS: dict[str, Squat] = {
    "idle": lambda others: others.add_tap("vnet0"),
    "open": lambda others: others.open_tap("vnet0"),
    "idle multi-queue": lambda others: others.add_tap("vnet0", multi_queue=True),
    "open multi-queue": lambda others: others.open_tap("vnet0", multi_queue=True),
    "bridge": lambda others: others.add_bridge("vnet0"),
}


@pytest.mark.parametrize("squat", SQUATS.values(), ids=SQUATS)
@pytest.mark.parametrize("queues", [1, 2])
def test_a_name_that_is_taken_is_busy_and_its_device_untouched(
    lab: ContractLab, namespace: Namespace, others: Stranger, squat: Squat, queues: int
) -> None:
    squat(others)
    before = lab.show()
    with refused(EBUSY):
        taps(namespace, "vnet0", OURS, queues)
    assert lab.show() == before


def test_an_altname_is_as_busy_as_a_name(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("other")
    others.add_altname("other", "vnet0")
    before = lab.show()
    with refused(EBUSY):
        tap(namespace, "vnet0", OURS)
    assert lab.show() == before


def test_an_ifindex_that_is_taken_is_busy(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_bridge("br0")
    os.close(tap(namespace, "vnet0", OURS))
    before = lab.show()
    for taken in (OURS, namespace.ifindex("br0")):
        with refused(EBUSY):
            tap(namespace, "vnet1", taken)
    assert lab.show() == before


@pytest.mark.parametrize(
    "name", ["a/b", ".", "..", "a b", "a:b", "all", "default", "x%dy%d", "a%b"]
)
def test_a_name_that_linux_refuses_is_invalid(
    lab: ContractLab, namespace: Namespace, name: str
) -> None:
    before = lab.show()
    with refused(EINVAL):
        tap(namespace, name, OURS)
    assert lab.show() == before


def test_a_name_of_sixteen_bytes_is_cut(namespace: Namespace) -> None:
    """Without a word, which is why names are checked before."""
    os.close(tap(namespace, "sixteen-bytes-xx", OURS))
    assert namespace.ifindex("sixteen-bytes-x") == OURS


def test_our_tap_outlives_its_last_descriptor_and_shows_the_close(
    lab: ContractLab, namespace: Namespace
) -> None:
    fds = taps(namespace, "vnet0", OURS, 2)
    assert lab.show()["vnet0"].carrier is False, "it is down"
    namespace.set_links([LinkChange(OURS, up=True)])
    assert _carrier(namespace)
    copy = os.dup(fds[0])
    close(fds)
    assert _carrier(namespace), "a copy is open"
    os.close(copy)
    assert not _carrier(namespace)
    link = namespace.link(OURS)
    assert link
    assert link.up


def _carrier(namespace: Namespace) -> bool:
    link = namespace.link(OURS)
    assert link
    return link.carrier


def test_any_other_tap_goes_with_its_last_descriptor(
    namespace: Namespace, others: Stranger
) -> None:
    first, second = (others.open_tap("vnet0", multi_queue=True) for _ in range(2))
    others.close(first)
    assert namespace.ifindex("vnet0")
    others.close(second)
    assert namespace.ifindex("vnet0") == 0
    os.close(tap(namespace, "vnet0", OURS))


@pytest.mark.parametrize("name", ["vnet0", "other"])
def test_a_program_that_requests_no_new_tap_gets_an_idle_one_of_the_name(
    lab: ContractLab, namespace: Namespace, others: Stranger, name: str
) -> None:
    os.close(tap(namespace, "vnet0", OURS))
    others.add_altname("vnet0", "other")
    handle = others.open_tap(name)
    shown = lab.show()["vnet0"]
    assert (shown.ifindex, shown.persist) == (OURS, True), "the same device"
    assert shown.vnet_hdr is False, "with other flags"
    with refused(EBUSY, OSError):
        others.open_tap(name)
    others.close(handle)
    with refused(EBUSY, OSError):
        others.open_tap(name, exclusive=True)
    with refused(EINVAL, OSError):
        others.open_tap(name, multi_queue=True)
    assert namespace.ifindex("vnet0") == OURS


def test_a_tap_in_use_is_not_hijacked(namespace: Namespace, others: Stranger) -> None:
    fd = tap(namespace, "vnet0", OURS)
    with refused(EBUSY, OSError):
        others.open_tap("vnet0")
    os.close(fd)


def test_a_multi_queue_tap_is_joined_by_anybody(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    fds = taps(namespace, "vnet0", OURS, 2)
    handle = others.open_tap("vnet0", multi_queue=True)
    shown = lab.show()["vnet0"]
    assert (shown.queues, shown.vnet_hdr) == (3, True)
    with refused(EINVAL, OSError):
        others.open_tap("vnet0")
    close(fds)
    assert lab.show()["vnet0"].queues == 1
    others.close(handle)
    assert lab.show()["vnet0"].queues == 0


def test_a_tap_has_at_most_256_queues(namespace: Namespace, others: Stranger) -> None:
    fds = taps(namespace, "vnet0", OURS, MAX_QUEUES)
    with refused(E2BIG, OSError):
        others.open_tap("vnet0", multi_queue=True)
    with refused(E2BIG):
        taps(namespace, "vnet1", OURS + 1, MAX_QUEUES + 1)
    assert namespace.ifindex("vnet1") == 0
    close(fds)


def test_a_device_that_is_no_tap_is_not_opened_as_one(others: Stranger) -> None:
    others.add_bridge("br0")
    with refused(EINVAL, OSError):
        others.open_tap("br0")


def test_a_tap_can_be_deleted_while_it_is_open(
    namespace: Namespace, others: Stranger
) -> None:
    fds = taps(namespace, "vnet0", OURS, 2)
    others.delete_by_name("vnet0")
    assert namespace.link(OURS) is None
    again = tap(namespace, "vnet0", OURS)
    close(fds)
    assert namespace.ifindex("vnet0") == OURS, "the old descriptors are not its own"
    os.close(again)


def test_a_tap_is_opened_once_more_when_it_is_idle(
    lab: ContractLab, namespace: Namespace
) -> None:
    close(taps(namespace, "vnet0", OURS, vnet_hdr=False))
    fd = namespace.open_tap("vnet0", OURS, multi_queue=False, vnet_hdr=False)
    assert not os.get_inheritable(fd)
    assert not lab.show()["vnet0"].vnet_hdr, "its flags are as they were"
    with refused(EBUSY):
        namespace.open_tap("vnet0", OURS, multi_queue=False, vnet_hdr=False)
    os.close(fd)


def test_a_multi_queue_tap_takes_further_queues(
    lab: ContractLab, namespace: Namespace
) -> None:
    fds = taps(namespace, "vnet0", OURS, 2)
    fd = namespace.open_tap("vnet0", OURS, multi_queue=True, vnet_hdr=True)
    assert lab.show()["vnet0"].queues == 3
    close([*fds, fd])


def test_a_foreign_device_is_never_opened_by_its_name_I4(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("vnet0")
    before = lab.show()
    with refused(EBADFD):
        namespace.open_tap("vnet0", OURS, multi_queue=False, vnet_hdr=True)
    assert lab.show() == before


def given(namespace: Namespace, *, queues: int = 1, gid: int | None = None) -> bool:
    """Give the tap vnet0 to user 0; what is said of that."""
    return namespace.give_tap(
        "vnet0", OURS, multi_queue=queues > 1, vnet_hdr=True, uid=0, gid=gid
    )


def owners(namespace: Namespace) -> tuple[int | None, int | None]:
    link = namespace.link(OURS)
    assert link
    return link.tap_owner, link.tap_group


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("opened", [True, False], ids=["open", "idle"])
def test_a_tap_gets_another_owner(
    lab: ContractLab, namespace: Namespace, queues: int, opened: bool
) -> None:
    fds = namespace.create_tap(
        "vnet0", OURS, queues=queues, vnet_hdr=True, uid=1234, gid=None
    )
    if not opened:
        close(fds)
    before = lab.show()
    assert given(namespace, queues=queues)
    assert owners(namespace) == (0, None)
    assert given(namespace, queues=queues, gid=5678)
    assert owners(namespace) == (0, 5678)
    assert lab.show() == before, "nothing else has changed, and nothing is left open"
    if opened:
        close(fds)


def test_a_tap_with_as_many_queues_as_can_be_gets_another_owner(
    namespace: Namespace,
) -> None:
    fds = taps(namespace, "vnet0", OURS, MAX_QUEUES)
    assert given(namespace, queues=MAX_QUEUES)
    assert owners(namespace) == (0, None)
    close(fds)


def test_a_foreign_tap_of_the_name_keeps_its_owner_I4(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    others.add_tap("vnet0")
    before = lab.show()
    assert not given(namespace)
    assert lab.show() == before


def test_opening_an_absent_tap_makes_none(
    lab: ContractLab, namespace: Namespace
) -> None:
    before = lab.show()
    assert not given(namespace)
    with refused(EBADFD):
        namespace.open_tap("vnet0", OURS, multi_queue=False, vnet_hdr=True)
    assert lab.show() == before


def test_a_tap_of_one_queue_is_held_while_a_process_has_it_open(
    lab: ContractLab, namespace: Namespace, others: Stranger
) -> None:
    fd = tap(namespace, "vnet0", OURS)
    assert namespace.is_held("vnet0", OURS, vnet_hdr=True)
    os.close(fd)
    before = lab.show()
    assert not namespace.is_held("vnet0", OURS, vnet_hdr=True)
    assert lab.show() == before, "it is closed again"
    others.add_tap("vnet1")
    before = lab.show()
    assert not namespace.is_held("vnet1", OURS, vnet_hdr=True)
    assert lab.show() == before
