# SPDX-License-Identifier: Apache-2.0
"""Kill a process before any SQL statement of what it does with a ledger."""

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapster.ledger import Ledger, sqlite
from tests.ledger.making import Clock


def killed_before(statement: int, work: Callable[[Path], None], path: Path) -> bool:
    """Do the work in a child that is killed before its n-th SQL statement.

    False if the work has fewer of them, and is done.
    """
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"the work failed: status {status}"
        return status != 0
    try:
        left = statement

        def trace(_: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        connect = sqlite.connect

        def traced(*arguments: Any, **options: Any) -> sqlite.Connection:
            db: sqlite.Connection = connect(*arguments, **options)
            db.set_trace_callback(trace)
            return db

        pytest.MonkeyPatch().setattr(sqlite, "connect", traced)
        work(path)
        os._exit(0)
    finally:
        os._exit(1)


def dump(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    lines = list(db.iterdump())
    db.close()
    return lines


def create(path: Path) -> None:
    Ledger(path, Clock())
