# SPDX-License-Identifier: Apache-2.0
"""The account of a storm: each kind of harm is counted, and nothing that is none."""

from collections.abc import Iterator
from typing import Any

import pytest

from soak.books import LeaseRow
from soak.events import LinkEvent, LinkLook
from soak.judge import (
    BLIND,
    BY_NOBODY,
    BY_STRANGER,
    CUT_OFF,
    LEAK,
    NOT_AS_PROMISED,
    NOT_RECORDED,
    TOO_SOON,
    Judge,
    StoppedVm,
)
from soak.marks import DEVICE, Mark
from soak.messages import MESSAGES

BR0, BR1, FOREIGN = 2, 3, 4
"""The ifindexes of the ground's devices."""
VM = 1000
STAMP = "tapster:1:2"
WAIT = 5.0


class Sequence:
    """What the kernel reports, in order, and the judge that hears it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rows: dict[str, LeaseRow] = {}
        self.stopped: list[StoppedVm] = []
        self.judge = Judge("n1", self.stopped.append, lambda: self.rows)
        self._numbers: dict[str, int] = {}
        self._links: dict[int, LinkLook] = {}
        for ifindex, name in ((BR0, "br0"), (BR1, "br1"), (FOREIGN, "vnet9")):
            self.link(ifindex, name=name, alias="")
        self.say("storm", "ground")

    @property
    def found(self) -> list[str]:
        return [finding.kind for finding in self.judge.findings]

    def link(self, ifindex: int, *, gone: bool = False, **changes: Any) -> None:
        """A device is there, or changes, or goes."""
        new = LinkLook(f"vnet{ifindex - VM}", True, BR0, "", 1500, STAMP)
        look = self._links.get(ifindex, new)._replace(**changes)
        self._links[ifindex] = look
        self.judge.event(LinkEvent(ifindex, gone, look, ()), self.now)

    def say(self, by: str, does: str, *, skip: int = 0, **says: Any) -> None:
        self._numbers[by] = self._numbers.get(by, 0) + 1 + skip
        mark = Mark(by, self._numbers[by], self.now, MESSAGES[does](**says))
        look = LinkLook(DEVICE, True, 0, "", 1500, mark.write())
        self.judge.event(LinkEvent(1, False, look, ()), self.now)

    def begin(self, ifindex: int = VM, *, make: bool = True, **says: Any) -> str:
        """A VM begins, on a device that is made for it. Its token."""
        if make:
            self.link(ifindex)
        token = says.setdefault("token", f"vm{ifindex}")
        card: dict[str, Any] = {
            "ledger": "a",
            "name": f"vnet{ifindex - VM}",
            "ifindex": ifindex,
            "wait": WAIT,
            "bound": False,
            "fleeting": False,
            "on": "br0",
            "tried": "",
        }
        self.say("m0.0/0", "begin", **{**card, **says})
        return str(token)

    def end(self, token: str) -> None:
        self.say("m0.0/0", "end", token=token)

    def act(self, kind: str, verb: str, name: str, **says: Any) -> Iterator[None]:
        """An outsider's act. The loop's body runs during the act."""
        self.say(f"{kind}/", "acting", kind=kind, verb=verb, name=name, **says)
        yield
        self.say(f"{kind}/", "acted")


@pytest.fixture
def row() -> Sequence:
    return Sequence()


CHANGES = [
    {"up": False},
    {"master": 0},
    {"name": "other"},
    {"mtu": 1400},
    {"alias": ""},
    {"gone": True},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_unexplained_change_of_a_running_vm_is_counted(
    row: Sequence, change: dict[str, Any]
) -> None:
    row.begin()
    row.link(VM, **change)
    assert row.found == [BY_NOBODY]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_unexplained_change_of_a_foreign_object_is_counted(
    row: Sequence, change: dict[str, Any]
) -> None:
    row.link(FOREIGN, **{**change, **({"alias": "x"} if "alias" in change else {})})
    assert row.found == [BY_NOBODY]


def test_before_it_begins_and_after_it_ends_a_vm_may_be_changed(
    row: Sequence,
) -> None:
    row.link(VM, up=False, master=0)
    row.link(VM, up=True, master=BR0)
    token = row.begin(make=False)
    row.end(token)
    row.link(VM, up=False, master=0)
    assert row.found == []


def test_an_administrators_act_accounts_for_what_it_does_and_no_more(
    row: Sequence,
) -> None:
    row.begin()
    for _ in row.act("admin", "down", "vnet0"):
        row.link(VM, up=False)
    assert row.found == []
    row.link(VM, master=0)
    assert row.found == [BY_NOBODY]


def test_a_foreign_mac_is_counted_and_tapster_may_put_the_promised_one_back(
    row: Sequence,
) -> None:
    mac = "fe:54:00:00:00:01"
    row.link(VM, mac=mac)
    row.begin(make=False, mac=mac)
    for _ in row.act("admin", "address", "vnet0"):
        row.link(VM, mac="02:ad:00:00:00:01")
    row.link(VM, mac=mac)
    assert row.found == []
    row.link(VM, mac="02:ad:00:00:00:02")
    assert row.found == [BY_NOBODY]


def test_tapster_may_give_a_renamed_device_its_name_back_and_no_other(
    row: Sequence,
) -> None:
    row.begin()
    for _ in row.act("admin", "rename", "vnet0"):
        row.link(VM, name="lan0")
    row.link(VM, name="vnet0")
    assert row.found == []
    row.link(VM, name="vnet1")
    assert row.found == [BY_NOBODY]


def test_a_vm_that_begins_with_another_mac_is_not_as_promised(row: Sequence) -> None:
    row.link(VM, mac="fe:54:00:00:00:01")
    row.begin(make=False, mac="fe:54:00:00:00:02")
    assert row.found == [NOT_AS_PROMISED]


def test_a_bridge_that_goes_and_returns_takes_its_ports_along(row: Sequence) -> None:
    token = row.begin()
    row.begin(VM + 1)
    for _ in row.act("admin", "rebuild", "br0"):
        row.link(VM, master=0)
        row.link(VM + 1, master=0)
        row.link(BR0, up=False)
        row.link(BR0, gone=True)
        row.link(BR0 + 100, name="br0", alias="", master=0)
    row.say("m0.0/0", "cut", token=token, since=row.now)
    row.link(VM, master=BR0 + 100)  # Tapster joins the port to the new bridge
    assert row.found == []
    row.link(VM, master=0)
    row.link(BR0 + 100, up=False)
    row.link(VM + 1, master=BR1)
    assert row.found == [BY_NOBODY] * 3


def test_a_vm_may_begin_while_its_bridge_is_away(row: Sequence) -> None:
    row.link(VM)
    for _ in row.act("admin", "rebuild", "br0"):
        row.link(VM, master=0)
        row.link(BR0, gone=True)
        row.begin(make=False)
        row.link(BR0 + 100, name="br0", alias="", master=0)
    row.link(VM, master=BR0 + 100)
    assert row.found == []


def test_a_bridge_takes_nothing_along_but_its_ports(row: Sequence) -> None:
    row.begin()
    row.begin(VM + 1)
    row.link(VM + 2, master=BR1)
    row.begin(VM + 2, make=False, on="br1")
    for _ in row.act("admin", "rebuild", "br0"):
        row.link(VM, up=False)
        row.link(VM + 1, gone=True)
        row.link(VM + 2, master=0)
    assert row.found == [BY_NOBODY] * 3


def test_a_device_may_leave_the_namespace_by_an_act_only(row: Sequence) -> None:
    row.begin()
    for _ in row.act("admin", "away", "vnet0"):
        row.link(VM, up=False, master=0)
        row.link(VM, gone=True)
    assert row.found == []


def test_a_device_may_be_moved_away_and_back_before_its_vm_begins(
    row: Sequence,
) -> None:
    row.link(VM)
    for _ in row.act("admin", "away", "vnet0"):
        row.link(VM, up=False)
        row.link(VM, master=0)
        row.link(VM, gone=True)
    row.link(VM)
    row.begin(make=False)
    assert row.found == []
    row.link(VM + 1, up=False, master=0)
    row.begin(VM + 1, make=False)
    assert row.found == [NOT_AS_PROMISED] * 2


def test_an_act_accounts_for_nothing_after_it_or_elsewhere(row: Sequence) -> None:
    row.begin()
    row.begin(VM + 1)
    for _ in row.act("admin", "nomaster", "vnet0"):
        row.link(VM + 1, master=0)
    row.link(VM, master=0)
    assert row.found == [BY_NOBODY, BY_NOBODY]


def test_an_act_accounts_for_its_own_direction_only(row: Sequence) -> None:
    for _ in row.act("admin", "down", "vnet0"):
        row.link(VM, up=False)
        row.link(VM, up=True)
        row.begin(make=False)
        row.link(VM, up=False)
    assert row.found == []
    row.begin(VM + 1)
    for _ in row.act("admin", "nomaster", "vnet1"):
        row.link(VM + 1, master=BR1)
    assert row.found == [BY_NOBODY]


def test_a_change_by_an_administrator_may_be_undone(row: Sequence) -> None:
    row.begin()
    for _ in row.act("admin", "master", "vnet0"):
        row.link(VM, master=0)
        row.link(VM, master=BR1)
    row.link(VM, master=0)
    row.link(VM, master=BR0)
    assert row.found == []
    row.link(VM, master=0)
    assert row.found == [BY_NOBODY]


def test_a_change_by_an_administrator_may_not_become_worse(row: Sequence) -> None:
    row.begin()
    for _ in row.act("admin", "down", "vnet0"):
        row.link(VM, up=False)
    row.link(VM, master=BR1)
    assert row.found == [BY_NOBODY]


def test_a_manager_may_move_its_vm(row: Sequence) -> None:
    token = row.begin()
    row.say("m0.0/0", "move", token=token, on="br1")
    row.link(VM, master=0)
    row.link(VM, master=BR1)
    row.say("m0.0/0", "moved", token=token, on="br1")
    assert row.found == []
    row.link(VM, master=BR0)
    assert row.found == [BY_NOBODY]


def test_an_administrator_may_interfere_with_a_move(row: Sequence) -> None:
    token = row.begin()
    row.say("m0.0/0", "move", token=token, on="br1")
    for _ in row.act("admin", "nomaster", "vnet0"):
        row.link(VM, master=0)
        row.link(VM, master=BR1)
        row.say("m0.0/0", "moved", token=token, on="br1")
        row.link(VM, master=0)
    assert row.found == []


def cleaned_up(row: Sequence, late_for: str, *, takes: float = 0.0) -> None:
    """A stranger takes vnet0 off its bridge, and that meets the device VM + 1."""
    for _ in row.act("stranger", "nomaster", "vnet0", late_for=late_for):
        row.link(VM + 1, master=0)
        row.now += takes


def reused(row: Sequence, *, after: float = 1.0, **says: Any) -> str:
    """A VM stops, its name goes to another. The first one's token."""
    token = row.begin()
    row.end(token)
    row.link(VM, gone=True)
    row.now += after
    row.link(VM + 1, name="vnet0")
    row.begin(VM + 1, make=False, name="vnet0", **says)
    return token


def test_a_late_cleanup_that_meets_a_running_vm_is_counted(row: Sequence) -> None:
    token = reused(row)
    cleaned_up(row, token)
    assert row.found.count(BY_STRANGER) == 1
    assert "vm1001" in row.judge.findings[-1].what


def test_a_cleanup_after_fin_wait_is_the_strangers_own_fault(row: Sequence) -> None:
    token = reused(row, after=WAIT)
    cleaned_up(row, token, takes=0.1)
    assert row.judge.tally["late cleanups that Tapster could not fend off"] == 1
    assert BY_STRANGER not in row.found


def test_a_cleanup_of_a_waiting_device_is_harmless(row: Sequence) -> None:
    row.end(row.begin())
    for _ in row.act("stranger", "del", "vnet0", late_for="vm1000"):
        row.link(VM, up=False)
        row.link(VM, gone=True)
    assert row.found == []


def test_two_vms_with_one_name_are_counted(row: Sequence) -> None:
    row.begin()
    row.link(VM + 1, name="vnet0")
    row.begin(VM + 1, make=False, name="vnet0")
    assert row.found == [TOO_SOON]


@pytest.mark.parametrize(("after", "found"), [(WAIT - 0.1, 2), (WAIT, 0)])
def test_a_name_given_out_within_fin_wait_is_counted(
    row: Sequence, after: float, found: int
) -> None:
    row.end(row.begin())
    row.now += after
    row.link(VM, gone=True)
    row.link(VM + 1, name="vnet0")
    row.begin(VM + 1, make=False, name="vnet0")
    assert row.found == [TOO_SOON] * found  # the device that held it, and the name


def test_another_ledger_may_have_the_name_once_an_outsider_freed_it(
    row: Sequence,
) -> None:
    row.end(row.begin())
    for _ in row.act("stranger", "del", "vnet0", late_for="vm1000"):
        row.link(VM, gone=True)
    row.link(VM + 1, name="vnet0")
    row.begin(VM + 1, make=False, name="vnet0", ledger="b")
    cleaned_up(row, "vm1000")
    assert row.found == []


def test_the_same_ledger_may_not(row: Sequence) -> None:
    row.end(row.begin())
    for _ in row.act("stranger", "del", "vnet0", late_for="vm1000"):
        row.link(VM, gone=True)
    row.link(VM + 1, name="vnet0")
    row.begin(VM + 1, make=False, name="vnet0", ledger="a")
    cleaned_up(row, "vm1000")
    assert row.found == [TOO_SOON, BY_STRANGER]


def test_a_cleanup_by_a_name_that_an_administrator_gave_is_no_finding(
    row: Sequence,
) -> None:
    token = row.begin()
    row.end(token)
    row.link(VM, gone=True)
    row.judge.findings.clear()
    row.begin(VM + 1)
    for _ in row.act("admin", "rename", "vnet1"):
        row.link(VM + 1, name="vnet0")
    cleaned_up(row, token)
    assert row.found == []


def test_a_vm_that_begins_late_without_its_device_claims_no_name(
    row: Sequence,
) -> None:
    row.link(VM)
    for _ in row.act("admin", "del", "vnet0"):
        row.link(VM, gone=True)
    row.link(VM + 1, name="vnet0")
    row.begin(VM + 1, make=False, name="vnet0", ledger="b")
    row.begin(make=False)
    row.now += WAIT
    row.link(VM + 2, name="vnet0")
    row.say("m0.0/0", "end", token="vm1001")
    row.now += WAIT
    row.begin(VM + 2, make=False, name="vnet0")
    assert row.found == []


def test_a_squatter_may_free_what_is_its_own(row: Sequence) -> None:
    row.link(50, name="vnet5", alias="", master=0)
    row.say("squatter/", "take", ifindex=50, name="vnet5", up=True, on="", also="")
    row.say("squatter/", "free", ifindex=50)
    row.link(50, gone=True)
    assert row.found == []


def test_an_outsider_may_hit_a_squatter_by_an_altname_that_was_not_reported(
    row: Sequence,
) -> None:
    row.link(50, name="own", alias="", master=0, up=False)
    for _ in row.act("admin", "del", "vnet0"):
        row.say(
            "squatter/", "take", ifindex=50, name="own", up=False, on="", also="vnet0"
        )
        row.link(50, gone=True)
    assert row.found == []
    assert row.judge.tally["foreign objects hit by outsiders"] == 1


def test_a_squatter_that_finds_its_device_changed_is_heard(row: Sequence) -> None:
    row.link(50, name="vnet5", alias="", master=0, up=False)
    row.say("squatter/", "take", ifindex=50, name="vnet5", up=True, on="", also="")
    assert row.found == [BY_NOBODY]


@pytest.mark.parametrize("change", [{"up": False}, {"master": BR1}, {"alias": ""}])
def test_a_vm_that_is_not_as_promised_from_the_start_is_counted(
    row: Sequence, change: dict[str, Any]
) -> None:
    row.link(VM, **change)
    row.begin(make=False)
    assert row.found == [NOT_AS_PROMISED]


def test_a_vm_without_a_device_is_counted(row: Sequence) -> None:
    row.begin(make=False)
    assert row.found == [NOT_AS_PROMISED]


def test_a_vm_that_is_cut_off_is_counted_unless_an_administrator_did_it(
    row: Sequence,
) -> None:
    token = row.begin()
    for _ in row.act("admin", "nomaster", "vnet0"):
        row.link(VM, master=0)
    row.say("m0.0/0", "cut", token=token, since=row.now)
    row.now += 1
    row.link(VM, master=BR0)
    row.say("m0.0/0", "cut", token=token, since=row.now - 0.5)
    assert row.found == []
    row.say("m0.0/0", "cut", token=token, since=row.now + 0.5)
    assert row.found == [CUT_OFF]


def test_a_killed_process_ends_the_vms_that_are_bound_to_it(row: Sequence) -> None:
    row.begin(bound=True)
    row.begin(VM + 1)
    row.say("storm", "kill", what="manager", process="m0.0")
    assert [stopped.token for stopped in row.stopped] == ["vm1000"]
    row.link(VM, up=False)
    assert row.found == []
    row.link(VM + 1, up=False)
    assert row.found == [BY_NOBODY]


def test_the_last_words_of_a_killed_process_count(row: Sequence) -> None:
    token = row.begin()
    row.say("storm", "kill", what="manager", process="m0.0")
    row.begin(VM + 1, bound=True)
    row.end(token)
    assert [stopped.token for stopped in row.stopped] == ["vm1001", "vm1000"]
    row.link(VM, up=False)
    row.link(VM + 1, up=False)
    assert row.found == []


RIGHT = LeaseRow("2", "vm1000", "vnet0", VM, "active", "/run/netns/n1", WAIT)


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        (RIGHT, []),
        (RIGHT._replace(state="fin_wait"), [NOT_RECORDED]),
        (RIGHT._replace(name="vnet1"), [NOT_RECORDED]),
        (RIGHT._replace(ifindex=VM + 1), [NOT_RECORDED]),
        (None, [NOT_RECORDED]),
    ],
)
def test_a_running_vm_is_in_its_ledger(
    row: Sequence, recorded: LeaseRow | None, found: list[str]
) -> None:
    row.begin()
    if recorded:
        row.rows["vm1000"] = recorded
    row.say("watcher", "sample")
    row.say("watcher", "sampled")
    assert row.found == found


def test_a_waiting_name_is_in_its_ledger(row: Sequence) -> None:
    row.end(row.begin())
    row.say("watcher", "sample")
    row.say("watcher", "sampled")
    assert row.found == [NOT_RECORDED]
    row.now += WAIT
    row.say("watcher", "sample")
    row.say("watcher", "sampled")
    assert row.found == [NOT_RECORDED]


def test_a_device_left_at_the_end_is_a_leak(row: Sequence) -> None:
    row.end(row.begin())
    row.say("storm", "final")
    assert row.found == [LEAK]


def test_a_mark_that_was_not_seen_is_noticed(row: Sequence) -> None:
    row.say("m0.0/0", "tally", what={})
    row.say("m0.0/0", "tally", what={}, skip=1)
    assert row.found == [BLIND]


def test_a_foreign_name_that_would_have_come_first_is_a_collision(
    row: Sequence,
) -> None:
    row.begin(VM + 8, tried="vnet%d")
    assert row.judge.tally["foreign names stepped around"] == 0
    row.begin(VM + 10, tried="vnet%d")
    assert row.judge.tally["foreign names stepped around"] == 1
