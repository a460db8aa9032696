# SPDX-License-Identifier: Apache-2.0
"""A ledger of an earlier schema is brought up to date, or left as it was."""

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tapster.errors import LedgerTooNew
from tapster.ledger import Ledger, database
from tapster.model import (
    HistoryQuery,
    Kind,
    Mode,
    Netns,
    Process,
    Rate,
    State,
    Tap,
    Wiring,
)
from tests.ledger.killing import create, dump, killed_before
from tests.ledger.making import Clock, hold, names_of

DUMPS = {
    int(path.stem.removeprefix("schema_")): path
    for path in Path(__file__).parent.glob("schema_*.sql")
}
"""By the version of its schema: a ledger that the last release with it wrote."""


def write(path: Path, version: int) -> None:
    """Make a ledger with an earlier schema, in the journal mode that releases use."""
    path.parent.mkdir(exist_ok=True)
    db = sqlite3.connect(path)
    db.executescript(DUMPS[version].read_text("utf-8"))
    assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    db.close()


def schema(path: Path) -> dict[str, Any]:
    """Return the columns of each table, and the columns of each index."""
    db = sqlite3.connect(path)
    tables = db.execute(
        "SELECT name, type, tbl_name, sql LIKE '%WITHOUT ROWID%', sql LIKE '%STRICT%' "
        "FROM sqlite_schema WHERE type != 'trigger'"
    ).fetchall()
    found: dict[str, Any] = {}
    for name, kind, table, *options in tables:
        if kind == "index":
            columns = db.execute(f"PRAGMA index_xinfo({name})").fetchall()
            unique, partial = db.execute(
                'SELECT "unique", partial FROM pragma_index_list(?) WHERE name = ?',
                (table, name),
            ).fetchone()
            # Not the columns' places: a migration adds columns at the end.
            found[name] = (table, unique, partial, [one[2:] for one in columns])
        else:
            columns = db.execute(f"PRAGMA table_info({name})").fetchall()
            # A migration can only add a column as the last one.
            found[name] = (options, {column[1:] for column in columns})
    db.close()
    return found


def test_there_is_a_dump_of_each_earlier_schema() -> None:
    assert sorted(DUMPS) == list(range(1, database.SCHEMA_VERSION))
    assert sorted(database.MIGRATIONS) == sorted(DUMPS)


@pytest.mark.parametrize("version", DUMPS)
def test_a_migrated_ledger_has_the_schema_of_a_new_one(
    tmp_path: Path, version: int
) -> None:
    write(tmp_path / "old.db", version)
    for name in ("old.db", "new.db"):
        Ledger(tmp_path / name, Clock()).close()
    assert schema(tmp_path / "old.db") == schema(tmp_path / "new.db")


@pytest.mark.parametrize("version", DUMPS)
def test_a_migrated_ledger_keeps_its_leases(tmp_path: Path, version: int) -> None:
    write(tmp_path / "old.db", version)
    ledger = Ledger(tmp_path / "old.db", Clock())
    assert ledger.check() == []
    assert ledger.id == "00000002"
    tap, macvtap, waiting, reserved = ledger.leases()
    here = Netns(
        "2f1c6a0e-0000-4000-8000-000000000001", 1, "/run/netns/here", 4026531836
    )
    assert {lease.netns for lease in ledger.leases()} == {here}
    assert (tap.name, tap.state, tap.process) == (
        "vnet0",
        State.ACTIVE,
        Process(10, 20, 30),
    )
    assert (tap.caller_uid, tap.on_close) == (1000, True)
    assert tap.backends == ("filter", "outbound")
    assert tap.wiring == Wiring(
        bridge="br0",
        vlan=7,
        trunks=(20, 30),
        filter=True,
        addresses=("192.0.2.11",),
        inbound=Rate(1000, 2000, 64),
        outbound=Rate(500),
    )
    assert (macvtap.kind, macvtap.lower, macvtap.mode) == (
        Kind.MACVTAP,
        "eth0",
        Mode.VEPA,
    )
    assert (waiting.state, waiting.deadline) == (State.FIN_WAIT, 15.0)
    assert (reserved.state, reserved.manager) == (State.RESERVED, 7)
    owners = {entry.owner for entry in ledger.entries(HistoryQuery("vnet3"))}
    assert owners == {"vm3", "vm5"}
    assert names_of(hold(ledger, Tap(), netns=here)) == ["vnet4"]
    ledger.close()


@pytest.mark.parametrize("version", DUMPS)
def test_a_migrated_ledger_is_refused_by_the_earlier_release(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.db"
    write(path, version)
    Ledger(path, Clock()).close()
    before = path.read_bytes()
    monkeypatch.setattr(database, "SCHEMA_VERSION", version)
    with pytest.raises(
        LedgerTooNew,
        match=rf"has schema \d+; this release knows schemas up to {version}",
    ):
        Ledger(path, Clock())
    assert path.read_bytes() == before


def kill_at_every_statement(directory: Path, version: int) -> int:
    """Kill migrations at each statement. Return how many statements there are."""
    for statement in count(1):
        path = directory / f"{statement}.db"
        write(path, version)
        before = dump(path)
        killed = killed_before(statement, create, path)
        db = sqlite3.connect(path)
        (reached,) = db.execute("PRAGMA user_version").fetchone()
        db.close()
        assert reached in (version, database.SCHEMA_VERSION)
        assert (reached == version) == (dump(path) == before), statement
        if not killed:
            assert reached == database.SCHEMA_VERSION
            return statement
    raise AssertionError("unreachable")


@pytest.mark.slow
@pytest.mark.parametrize("version", DUMPS)
def test_a_process_that_is_killed_while_it_migrates_leaves_the_old_schema_or_the_new(
    tmp_path: Path, version: int
) -> None:
    # A process without threads may fork.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        job = pool.submit(kill_at_every_statement, tmp_path, version)
    assert job.result() > 8
