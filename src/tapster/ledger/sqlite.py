# SPDX-License-Identifier: Apache-2.0
"""SQLite without the module `sqlite3`, for the start path of VMs.

`sqlite3` imports `datetime`, to convert dates, which the ledger does not have. The
module in C below it does all that the ledger needs. To import it takes 7 M instructions
less, a tenth of a verb.

The module in C asks `functools` for one thing when it is imported: `lru_cache`, for its
prepared statements. `functools` imports `collections`, and both take another 7 M. What
`lru_cache` makes is written in C, too, in `_functools`. So where nothing has imported
`functools`, a stand-in has its name in that moment. No other thread can see it: with a
second thread, `functools` itself is imported.
"""

import sys
from _thread import _count as other_threads

from tapster.light import TYPE_CHECKING

if not TYPE_CHECKING and "functools" not in sys.modules and not other_threads():
    from _functools import _lru_cache_wrapper

    class _Functools:
        """Has of `functools` what `_sqlite3` asks for."""

        @staticmethod
        def lru_cache(size):
            return lambda function: _lru_cache_wrapper(function, size, False, None)

    sys.modules["functools"] = _Functools
    try:
        import _sqlite3  # noqa: F401 - it keeps what it has found
    finally:
        del sys.modules["functools"]

from _sqlite3 import (
    SQLITE_BUSY,
    SQLITE_CANTOPEN,
    SQLITE_FULL,
    SQLITE_IOERR,
    SQLITE_READONLY,
    Connection,
    DatabaseError,
    Error,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    complete_statement,
    connect,
)

__all__ = [
    "SQLITE_BUSY",
    "SQLITE_CANTOPEN",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "Connection",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "OperationalError",
    "ProgrammingError",
    "complete_statement",
    "connect",
]
