# SPDX-License-Identifier: Apache-2.0
"""Several processes use one ledger, and some are killed or interrupted."""

import multiprocessing
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from math import inf
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from tapster import names
from tapster.errors import TapsterError
from tapster.ledger import Ledger, Reservation
from tapster.model import Naming, Tap, Wiring
from tests.ledger.killing import create, dump, killed_before
from tests.ledger.making import (
    HERE,
    ME,
    OTHER,
    THERE,
    Clock,
    dead,
    end,
    hold,
    names_of,
    nobody_has,
    nothing_changed,
    release,
)

_together: Barrier


def _remember(barrier: Barrier) -> None:
    global _together
    _together = barrier


PROCESSES = 4


@pytest.fixture(scope="module")
def others() -> Iterator[ProcessPoolExecutor]:
    """Other processes, which inherit nothing."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        PROCESSES,
        mp_context=spawn,
        initializer=_remember,
        initargs=(spawn.Barrier(PROCESSES),),
    ) as pool:
        yield pool


def open_together(paths: list[Path]) -> list[str]:
    """Open one ledger after the other, each at the same time as the others do."""
    ids = []
    for path in paths:
        _together.wait(10)
        try:
            ledger = Ledger(path, Clock())
            ledger.new_manager()
            ids.append(ledger.id)
            ledger.close()
        except TapsterError as error:
            ids.append(str(error))
    return ids


def leave_alone(_: Path) -> None:
    """The ledger is yet to be made."""


def half_make(path: Path) -> None:
    """A ledger whose maker was killed just before its last step."""
    Ledger(path, Clock()).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    db.close()


def journal_mode(ledger: Ledger) -> str:
    (mode,) = ledger.file.connection.execute("PRAGMA journal_mode").fetchone()
    return str(mode)


@pytest.mark.slow
@pytest.mark.parametrize("make", [leave_alone, half_make])
def test_processes_that_make_a_ledger_at_once_end_with_one(
    others: ProcessPoolExecutor, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    paths = [tmp_path / f"{number}.db" for number in range(20)]
    for path in paths:
        make(path)
    jobs = [others.submit(open_together, paths) for _ in range(PROCESSES)]
    for ids in zip(*(job.result() for job in jobs), strict=True):
        assert set(ids) == {ids[0]}
    for path in paths:
        ledger = Ledger(path, Clock())
        assert journal_mode(ledger) == "wal"
        ledger.close()


def hold_one(path: Path) -> tuple[str, int]:
    """A lease of another process, which then closes the ledger."""
    ledger = Ledger(path, Clock())
    (lease,) = hold(ledger, Tap())
    ledger.close()
    return lease.name, lease.ifindex


@pytest.mark.parametrize("close", [False, True])
def test_two_ledgers_in_one_process_do_not_unlock_each_other_I1(
    others: ProcessPoolExecutor, path: Path, close: bool
) -> None:
    # SQLite's locks belong to the process, and it loses all that it has on a
    # file when it closes any descriptor of that file.
    first = Ledger(path, Clock())
    given = [(lease.name, lease.ifindex) for lease in hold(first, Tap())]
    second = Ledger(path, Clock())
    if close:
        second.close()
    given.append(others.submit(hold_one, path).result())
    given += [(lease.name, lease.ifindex) for lease in hold(first, Tap())]
    given.append(others.submit(hold_one, path).result())
    first.close()
    second.close()
    assert [name for name, _ in given] == ["vnet0", "vnet1", "vnet2", "vnet3"]
    assert len({ifindex for _, ifindex in given}) == 4


def acquire(path: Path) -> None:
    ledger = Ledger(path, Clock())
    foreign = {"vnet0": 5, "vnet4": 6}
    specs = [Tap(), Tap(naming=Naming.NEXT), Tap(naming=Naming.STABLE, key="k")]
    wanted = [
        Reservation(spec, names.parse("vnet%d"), None, Wiring()) for spec in specs
    ]
    ledger.reserve(
        HERE,
        wanted,
        manager=ME,
        holder_of=lambda name: foreign.get(name, 0),
        changed_links=lambda: None,
    )


def reap(path: Path) -> None:
    ledger = Ledger(path, Clock())
    ledger.end([lease.id for lease in ledger.leases()])


def kill_at_every_statement_of_creation(path: Path) -> int:
    for statement in count(1):
        killed = killed_before(statement, create, path)
        ledger = Ledger(path, Clock())
        assert ledger.check() == []
        assert journal_mode(ledger) == "wal", f"killed before statement {statement}"
        assert names_of(hold(ledger, Tap())) == ["vnet0"]
        ledger.close()
        path.unlink()
        if not killed:
            return statement
    raise AssertionError("unreachable")


def kill_at_every_statement(work: Callable[[Path], None], path: Path) -> int:
    before = dump(path)
    for statement in count(1):
        if not killed_before(statement, work, path):
            assert dump(path) != before
            return statement
        assert dump(path) == before, f"killed before statement {statement}"
    raise AssertionError("unreachable")


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_creates_a_ledger_leaves_none_or_all(
    others: ProcessPoolExecutor, path: Path
) -> None:
    job = others.submit(kill_at_every_statement_of_creation, path)
    assert job.result() > 20


@pytest.mark.slow
@pytest.mark.parametrize("work", [acquire, reap])
def test_a_process_that_is_killed_leaves_the_state_before_its_transaction(
    others: ProcessPoolExecutor, path: Path, work: Callable[[Path], None]
) -> None:
    ledger = Ledger(path, Clock())
    leases = hold(ledger, *[Tap()] * 5)
    end(ledger, leases[0], leases[3])
    release(ledger, leases[1])
    ledger.close()
    assert others.submit(kill_at_every_statement, work, path).result() > 20


class Stop(BaseException):
    """What may come at any moment, as KeyboardInterrupt does."""


def stop(*_: object) -> Any:
    raise Stop


WANTED = [Reservation(Tap(), names.parse("vnet%d"), None, Wiring())]

INTERRUPTED: dict[str, Callable[[Ledger], object]] = {
    "taken": lambda ledger: ledger.reserve(
        HERE, WANTED, manager=ME, holder_of=stop, changed_links=nothing_changed
    ),
    "changed": lambda ledger: ledger.reserve(
        HERE, WANTED, manager=ME, holder_of=nobody_has, changed_links=stop
    ),
    "alive": lambda ledger: ledger.claim_due(ME, stop, boottime=inf, limit=9),
    "quit": lambda ledger: ledger.call_if_idle(stop),
}


@pytest.mark.parametrize("at", INTERRUPTED)
def test_an_operation_that_is_interrupted_leaves_the_state_before(
    ledger: Ledger, at: str
) -> None:
    ledger.reserve(
        HERE,
        WANTED,
        manager=ME,
        holder_of=lambda name: 5 if name == "vnet0" else 0,
        changed_links=nothing_changed,
    )
    end(ledger, *hold(ledger, Tap(), netns=THERE))
    if at == "alive":
        (lease,) = hold(ledger, Tap())
        release(ledger, lease)
        ledger.claim(lease.id, OTHER, dead)
    before = list(ledger.file.connection.iterdump())
    with pytest.raises(Stop):
        INTERRUPTED[at](ledger)
    assert list(ledger.file.connection.iterdump()) == before
    ledger.new_manager()
