# SPDX-License-Identifier: Apache-2.0
"""The file: damage, other programs' files, permissions, deletion."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest

from tapster.errors import LedgerDamaged, LedgerError, LedgerTooNew
from tapster.ledger import Ledger, database, transactions
from tapster.model import Tap
from tests.ledger.making import HERE, ME, Clock, dead, hold, names_of, reserve


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file in a directory.

    Not to be taken while this process has a ledger open there: when a process
    closes a file, it loses all the locks that it has on it (fcntl(2)).
    """
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def over(data: bytes, at: int, garbage: bytes) -> bytes:
    assert at + len(garbage) <= len(data)
    return data[:at] + garbage + data[at + len(garbage) :]


def page_of(data: bytes, table: str) -> int:
    """Where in the file the root page of a table begins."""
    db = sqlite3.connect(":memory:")
    db.deserialize(over(data, 18, b"\1\1"))  # memory has no write-ahead log
    query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
    (page,) = db.execute(query, (table,)).fetchone()
    db.close()
    return (int(page) - 1) * 4096


def lease_table(data: bytes) -> int:
    """Where in the file the schema says what the leases' table is."""
    return data.rindex(b"CREATE TABLE lease")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in the header": lambda data: data[:50],
    "cut in the first page": lambda data: data[:2000],
    "cut after the first page": lambda data: data[:4096],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut before the last page": lambda data: data[:-4096],
    "all zeros": lambda data: bytes(len(data)),
    "the magic overwritten": lambda data: over(data, 0, b"garbage!"),
    "the page size overwritten": lambda data: over(data, 16, b"\xff\xff"),
    "the application overwritten": lambda data: over(data, 68, b"\xff\xff\xff\xff"),
    "the version zeroed": lambda data: over(data, 60, bytes(4)),
    "the schema's tree overwritten": lambda data: over(data, 100, b"\xff" * 200),
    "the schema overwritten with letters": lambda data: over(
        data, lease_table(data), b"x" * 500
    ),
    "the schema overwritten with 0xff": lambda data: over(
        data, lease_table(data), b"\xff" * 500
    ),
    "the schema overwritten with zeros": lambda data: over(
        data, lease_table(data), bytes(500)
    ),
    "the settings overwritten": lambda data: over(
        data, page_of(data, "meta"), b"\xff" * 4096
    ),
    "the settings emptied": lambda data: over(
        data, page_of(data, "meta"), bytes.fromhex("0a00000000000000") + bytes(4088)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(
    path: Path, whole: bytes, damage: str
) -> None:
    path.write_bytes(DAMAGE[damage](whole))
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match=str(path)):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


LATENT: dict[str, Callable[[bytes], bytes]] = {
    "a page of leases overwritten with 0xff": lambda data: over(
        data, page_of(data, "lease"), b"\xff" * 4096
    ),
    "a page of leases zeroed": lambda data: over(
        data, page_of(data, "lease"), bytes(4096)
    ),
    "an owner that is not text": lambda data: data.replace(b"somebody", b"\xff" * 8),
    "a state that is none": lambda data: data.replace(
        b"fin_waitsomebody", b"fin_whatsomebody"
    ),
}


@pytest.mark.parametrize("damage", LATENT)
def test_damage_that_is_found_later_is_an_error_and_changes_nothing(
    path: Path, whole: bytes, damage: str
) -> None:
    path.write_bytes(LATENT[damage](whole))
    before = snapshot(path.parent)
    ledger = Ledger(path, Clock())
    try:
        with pytest.raises(LedgerDamaged, match=str(path)):
            ledger.leases()
        with pytest.raises(LedgerDamaged, match=str(path)):
            ledger.claim_due(ME, dead, boottime=inf, limit=99)
    finally:
        ledger.close()
    assert snapshot(path.parent) == before


def test_a_text_file_is_no_ledger(path: Path) -> None:
    path.write_text("This is a text file.\n" * 20, "utf-8")
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match="is not a ledger"):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_another_programs_database_is_no_ledger(path: Path, mode: str) -> None:
    other = sqlite3.connect(path)
    other.executescript(f"PRAGMA journal_mode = {mode}; CREATE TABLE t (x)")
    other.close()
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match="a database of another kind"):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


def test_another_programs_log_is_not_worked_off(path: Path, tmp_path: Path) -> None:
    # Its program was killed, or runs: what is in the log is not ours to move.
    other = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    other.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x)")
    for suffix in ("", "-wal"):
        copy = (tmp_path / f"other.db{suffix}").read_bytes()
        path.with_name(path.name + suffix).write_bytes(copy)
    other.close()
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match=str(path)):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


def test_a_ledger_of_a_later_release_is_refused(path: Path, whole: bytes) -> None:
    later = database.SCHEMA_VERSION + 1
    path.write_bytes(over(whole, 60, later.to_bytes(4, "big")))
    before = snapshot(path.parent)
    with pytest.raises(LedgerTooNew, match=f"schema {later}.* up to {later - 1}"):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


def test_a_ledger_that_a_later_release_has_just_changed_is_refused(
    path: Path, whole: bytes
) -> None:
    # The new version is in the write-ahead log, and not yet in the header.
    assert whole
    later = database.SCHEMA_VERSION + 1
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute(f"PRAGMA user_version = {later}")
        with pytest.raises(LedgerTooNew, match=f"schema {later}"):
            Ledger(path, Clock())
        assert other.execute("PRAGMA user_version").fetchone() == (later,)
    finally:
        other.close()


def test_an_empty_file_is_a_new_ledger(path: Path) -> None:
    path.touch()
    ledger = Ledger(path, Clock())
    assert ledger.leases() == []
    assert names_of(hold(ledger, Tap())) == ["vnet0"]
    ledger.close()


def test_a_ledger_and_its_directory_are_for_their_owner_alone(path: Path) -> None:
    ledger = Ledger(path, Clock())
    ledger.new_manager()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    modes = {entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
    assert modes == {0o600}
    ledger.close()


def test_a_ledger_keeps_its_id_and_leases_when_reopened(path: Path) -> None:
    first = Ledger(path, Clock())
    id, leases = first.id, hold(first, Tap(), Tap())
    first.close()
    second = Ledger(path, Clock())
    assert (second.id, second.leases()) == (id, leases)
    assert second.check() == []
    second.close()


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """As nobody, if the tests run as root, whom no mode stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked_directory(path: Path, whole: bytes) -> Iterator[Path]:
    assert whole
    path.parent.chmod(0)
    yield path.parent
    path.parent.chmod(0o700)


@pytest.mark.usefixtures("locked_directory", "unprivileged")
def test_a_directory_that_cannot_be_read_is_an_error(path: Path) -> None:
    with pytest.raises(LedgerError, match=f"{path}.*Permission denied; run as root"):
        Ledger(path, Clock())


def test_only_the_default_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped path must not lead to an empty ledger."""
    path = tmp_path / "new" / "ledger.db"
    with pytest.raises(LedgerError, match=f"no directory '{path.parent}'"):
        Ledger(path, Clock())
    assert not path.parent.exists()
    monkeypatch.setattr(transactions, "DEFAULT_PATH", str(path))
    Ledger(path, Clock()).close()
    assert path.exists()
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_default_directory_that_cannot_be_made_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = "/proc/tapster/ledger.db"
    monkeypatch.setattr(transactions, "DEFAULT_PATH", path)
    with pytest.raises(LedgerError, match="'/proc/tapster"):
        Ledger(path, Clock())


def test_a_directory_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=f"'{tmp_path}' is a directory"):
        Ledger(tmp_path, Clock())
    assert snapshot(tmp_path) == {}


def test_what_is_no_file_is_no_ledger(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to("loop")
    for path in (pipe, "/dev/null", "/dev/zero"):
        with pytest.raises(LedgerError, match=f"'{path}' is a device, a pipe or"):
            Ledger(path, Clock())
    with pytest.raises(LedgerError, match=f"'{loop}': Too many levels of symbolic"):
        Ledger(loop, Clock())
    with pytest.raises(LedgerError, match=f"'{loop}/x': Too many levels of symbolic"):
        Ledger(loop / "x", Clock())
    with pytest.raises(LedgerError, match=r"'/proc/ledger.db': No such file"):
        Ledger("/proc/ledger.db", Clock())


@pytest.mark.kernel
@pytest.mark.usefixtures("world")
def test_a_file_system_without_room_for_a_file_is_named(tmp_path: Path) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", tmp_path], check=True
    )
    with pytest.raises(LedgerError, match=r"no room for another file.*df -i"):
        Ledger(tmp_path / "ledger.db", Clock())


def test_a_directory_whose_owner_has_no_number_here_may_hold_a_ledger(
    path: Path,
) -> None:
    """In a user namespace, most user ids of the host have no number."""
    shutil.chown(path.parent, 1, 1)
    path.parent.chmod(0o777)
    code = f"""
from tapster.kernel.linux import LinuxSystem
from tapster.ledger import Ledger
Ledger({str(path)!r}, LinuxSystem()).close()
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    subprocess.run(command, check=True)
    assert path.stat().st_size > 0


HOLD = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_ledger_that_stays_locked_names_the_process_that_locks_it(
    path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    ledger = Ledger(path, Clock())
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            LedgerError, match=rf"is locked by process {holder.pid} \(python"
        ):
            ledger.new_manager()
    ledger.new_manager()
    ledger.close()


def test_a_path_that_is_not_utf_8_cannot_be_recorded(ledger: Ledger) -> None:
    nowhere = HERE._replace(path="/run/netns/\udcff")
    with pytest.raises(LedgerError, match=r"holds UTF-8 only, not '/run/netns/\\udcff"):
        hold(ledger, Tap(), netns=nowhere)
    assert ledger.leases() == []


WRONG: dict[str, list[str | int]] = {
    "ifindex": [0, -1, 1 << 31, 1 << 62],
    "name": ["", "a/b", "sixteen-bytes-xx", "a\0b"],
    "mac": ["", "52:54:00:12:34", "52:54:00:12:34:5g"],
    "queues": [0, 257, 1 << 62],
    "mtu": [-1, 1 << 31, 1 << 62],
    "vlan": [-1, 4095, 1 << 62],
    "trunks": ["0", "4095", "x"],
    "inbound": ["- 1 2", "1 2", "x"],
    "state": ["fin_what"],
    "kind": ["tun"],
    "mode": ["x"],
}


@pytest.mark.parametrize(
    ("column", "value"), [(key, one) for key, ones in WRONG.items() for one in ones]
)
def test_a_value_that_no_release_writes_is_damage(
    ledger: Ledger, column: str, value: str | int
) -> None:
    (lease,) = hold(ledger, Tap())
    ledger.file.connection.execute(f"UPDATE lease SET {column} = ?", (value,))  # noqa: S608 - not a value
    with pytest.raises(LedgerDamaged, match=ledger.path):
        ledger.lease(lease.id)
    with pytest.raises(LedgerDamaged, match=ledger.path):
        ledger.begin_release(lease.id)


def remove(path: Path) -> None:
    path.unlink()


def remove_all(path: Path) -> None:
    for entry in path.parent.iterdir():
        entry.unlink()
    path.parent.rmdir()


def replace(path: Path) -> None:
    Ledger(path.with_name("new.db"), Clock()).close()
    path.with_name("new.db").replace(path)


@pytest.mark.parametrize("change", [remove, remove_all, replace])
def test_a_ledger_that_was_deleted_or_replaced_takes_no_writes(
    ledger: Ledger, path: Path, change: Callable[[Path], None]
) -> None:
    first, second = hold(ledger, Tap(), Tap())
    change(path)
    writes: list[Callable[[], object]] = [
        lambda: ledger.new_manager(),
        lambda: reserve(ledger, Tap()),
        lambda: ledger.claim(first.id, ME, dead),
        lambda: ledger.begin_release(first.id),
        lambda: ledger.end([second.id]),
        lambda: ledger.call_if_idle(lambda: pytest.fail("it quit")),
    ]
    for write in writes:
        with pytest.raises(LedgerError, match=f"{path}.*deleted or replaced"):
            write()
