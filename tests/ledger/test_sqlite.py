# SPDX-License-Identifier: Apache-2.0
"""The import of SQLite: what is left of the stand-in for `functools`."""

import subprocess
import sys

import pytest

USE = """
import sys
before = sys.modules.get("functools")
from tapster.ledger import sqlite
left = sys.modules.get("functools")
connection = sqlite.connect(":memory:")
for number in range(300):  # more than the statements that are kept
    assert connection.execute(f"SELECT {number % 200} + ?", (1,)).fetchone()
import functools
@functools.wraps(print)
def wrapped(): ...
print("imported" if left is functools else "left out" if left is None else "replaced")
"""
THREAD = """
import _thread
lock = _thread.allocate_lock()
lock.acquire()
_thread.start_new_thread(lock.acquire, ())
while not _thread._count():
    pass
"""


@pytest.mark.parametrize(
    ("first", "result"),
    [
        ("", "left out"),
        ("import functools", "imported"),
        (THREAD, "imported"),
    ],
    ids=["alone", "imported before", "beside a thread"],
)
def test_sqlite_works_and_functools_is_whole(first: str, result: str) -> None:
    path = f"import sys; sys.path = {sys.path!r}\n"
    command = [sys.executable, "-I", "-S", "-c", path + first + USE]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == result, shown.stderr
