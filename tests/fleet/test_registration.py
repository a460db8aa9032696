# SPDX-License-Identifier: Apache-2.0
"""The rules of MAC registrations, by themselves."""

from itertools import product

import pytest

from tapster.errors import RequestError
from tapster.fleet import keys, registration
from tapster.fleet.keys import (
    Block,
    Fleet,
    InventoryRow,
    Keys,
    Permit,
    Session,
    encode,
    value_of,
)
from tapster.fleet.registration import (
    FIRST,
    RELEASED,
    Epoch,
    PushAction,
    Record,
    RecordState,
    Registration,
    Standing,
    parse_epoch,
)
from tapster.fleet.store import FleetDamaged

RECORD = Record(
    "a1", "default", "0a:54:00:00:00:01", "X", Epoch(0, 3), RecordState.ACTIVE, 1.0
)
REGISTRATION = Registration("X", "A", "a1", Epoch(0, 3), RecordState.ACTIVE, 1.0)
NOBODY: frozenset[str] = frozenset()


def stand(found: Registration | None, record: Record = RECORD) -> Standing:
    return registration.stand("A", record, found, lost=False)


def test_the_table_says_something_for_each_state_that_is_pushed() -> None:
    pushed = (RecordState.ACTIVE, *RELEASED)
    assert set(registration.TABLE) == set(product(pushed, Standing))


def test_a_release_writes_only_its_own_registration_or_a_later_one() -> None:
    for state, standing in product(RELEASED, Standing):
        puts = registration.decide(state, standing) is PushAction.PUT
        assert puts == (standing in (Standing.OURS, Standing.OLDER))


@pytest.mark.parametrize(
    ("found", "standing"),
    [
        (None, Standing.ABSENT),
        (REGISTRATION, Standing.OURS),
        (REGISTRATION._replace(epoch=Epoch(1, 0)), Standing.OURS),
        (REGISTRATION._replace(epoch=Epoch(0, 2)), Standing.OLDER),
        (
            REGISTRATION._replace(host="B", lease="b1", epoch=Epoch(0, 2)),
            Standing.OLDER,
        ),
        (
            REGISTRATION._replace(host="B", lease="b1", epoch=Epoch(0, 4)),
            Standing.NEWER,
        ),
        (
            REGISTRATION._replace(host="B", lease="b1", epoch=Epoch(1, 0)),
            Standing.NEWER,
        ),
        (REGISTRATION._replace(host="B", lease="b1"), Standing.RIVAL),
        (
            REGISTRATION._replace(
                host="B", epoch=Epoch(9, 0), state=RecordState.PARKED
            ),
            Standing.VACANT,
        ),
        (REGISTRATION._replace(vm="Y"), Standing.OURS),
        (REGISTRATION._replace(vm="Y", host="B"), Standing.OTHER),
        (
            REGISTRATION._replace(vm="Y", host="B", state=RecordState.PARKED),
            Standing.OTHER,
        ),
        (
            REGISTRATION._replace(vm="Y", host="B", state=RecordState.ENDED),
            Standing.FREE,
        ),
    ],
)
def test_how_a_registration_stands_to_a_record(
    found: Registration | None, standing: Standing
) -> None:
    assert stand(found) is standing


def test_an_unordered_record_asks_whether_the_vm_runs() -> None:
    unordered = RECORD._replace(lease="a2", epoch=None)
    elsewhere = REGISTRATION._replace(host="B", lease="b1")
    assert stand(elsewhere, unordered) is Standing.HELD
    assert registration.stand("A", unordered, elsewhere, lost=True) is Standing.LOST
    parked = elsewhere._replace(state=RecordState.PARKED)
    assert stand(parked, unordered) is Standing.VACANT
    assert stand(REGISTRATION, RECORD._replace(epoch=None)) is Standing.OURS


def test_a_ledger_knows_that_a_lease_of_its_own_is_over() -> None:
    parked = registration.known_here("A", REGISTRATION, NOBODY)
    assert parked == REGISTRATION._replace(state=RecordState.PARKED)
    own = REGISTRATION._replace(vm=registration.own_vm("a1"))
    ended = registration.known_here("A", own, NOBODY)
    assert ended == own._replace(state=RecordState.ENDED)
    assert registration.known_here("A", REGISTRATION, frozenset({"a1"})) == REGISTRATION
    assert registration.known_here("B", REGISTRATION, NOBODY) == REGISTRATION


def test_a_new_term_is_above_every_step_of_the_old_one() -> None:
    found = REGISTRATION._replace(host="B", lease="b1", epoch=Epoch(4, 9))
    unordered = RECORD._replace(epoch=None)
    new = registration.wanted("A", unordered, PushAction.NEW_TERM, found)
    assert new is not None
    assert new.epoch == Epoch(5, 0)
    assert registration.handed_over(found.epoch) < new.epoch


def test_a_push_after_a_lost_answer_keeps_the_epoch_of_the_store() -> None:
    for epoch in (None, FIRST):
        new = registration.wanted(
            "A", RECORD._replace(epoch=epoch), PushAction.PUT, REGISTRATION
        )
        assert new is not None
        assert new.epoch == REGISTRATION.epoch
    first = registration.wanted("A", RECORD._replace(epoch=None), PushAction.PUT, None)
    assert first is not None
    assert first.epoch == FIRST


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "1.2.3", "-1.0", "a.b", "1.²"])
def test_text_that_is_no_epoch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"TERM\.STEP"):
        parse_epoch(text)


def test_epochs_are_ordered_by_numbers() -> None:
    epochs = [parse_epoch(text) for text in ("0.9", "0.10", "1.0", "10.0")]
    assert epochs == sorted(epochs)
    assert [str(epoch) for epoch in epochs] == ["0.9", "0.10", "1.0", "10.0"]


VALUES = [
    REGISTRATION,
    Permit("5f", 3, fenced="boot", by="ha", why="no heartbeat", at=2.5),
    Session("boot", "5f", 3.0),
    Block("A", "5f", 4.0),
    InventoryRow(
        "vnet0", "0a:54:00:00:00:01", "d", "X", "me", "tap", "br0", "active", 5.0
    ),
    Fleet("0a:54:00", 6.0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(value: keys.Value) -> None:
    text = encode(value)
    assert len(text) < 1024
    assert value_of(type(value), "key", text) == value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", "null", '"text"', "[" * 100_000, "\0"]
)
def test_a_damaged_value_names_its_key(value: keys.Value, damage: str) -> None:
    with pytest.raises(FleetDamaged, match="'the/key'"):
        value_of(type(value), "the/key", damage)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"vm":"X"', '"vm":"\\u001b[2J"'),
        ('"vm":"X"', '"vm":["X"]'),
        ('"epoch":"0.3"', '"epoch":"later"'),
        ('"since":1.0', '"since":"1"'),
        ('"state":"active"', '"state":"standby"'),
        ('"state":"active"', '"state":"gone"'),
        ('"vm":"X"', f'"vm":"{"X" * 2000}"'),
    ],
)
def test_text_of_other_hosts_is_checked(old: str, new: str) -> None:
    text = encode(REGISTRATION)
    assert old in text
    with pytest.raises(FleetDamaged):
        keys.registration_of("key", text.replace(old, new))


def test_names_that_become_part_of_a_key() -> None:
    assert keys.check_name("host", "rack-1.host_2:a") == "rack-1.host_2:a"
    for name in ("", "a/b", "a b", "ä", "x" * 65):
        with pytest.raises(RequestError, match="host"):
            keys.check_name("host", name)


def test_a_prefix_is_local_and_unicast() -> None:
    assert keys.check_prefix("0A:54:01") == "0a:54:01"
    for prefix in ("00:54:00", "0b:54:00", "0a:54", "0a:54:0", "0a5400", "zz:00:00"):
        with pytest.raises(RequestError):
            keys.check_prefix(prefix)


def test_the_macs_of_a_block() -> None:
    macs = keys.macs_of("0a:54:00:12:34")
    assert (macs[0], macs[-1]) == ("0a:54:00:12:34:00", "0a:54:00:12:34:ff")
    assert len(set(macs)) == keys.BLOCK_SIZE
    assert {keys.block_of(mac) for mac in macs} == {"0a:54:00:12:34"}


def test_no_key_of_a_host_begins_like_those_of_another() -> None:
    where = Keys("/t")
    assert not where.row("web10", "1").startswith(where.rows("web1"))
