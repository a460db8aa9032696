# SPDX-License-Identifier: Apache-2.0
"""SQLite without the module `sqlite3`, for the start path of VMs.

`sqlite3` imports `datetime`, to convert dates, which the ledger does not have. The
module in C below it does all that the ledger needs. To import it takes 7 M instructions
less, a twentieth of a verb.
"""

from _sqlite3 import (
    SQLITE_BUSY,
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
