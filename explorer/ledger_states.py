# SPDX-License-Identifier: Apache-2.0
"""Every state of the real ledger that was reached, and what each call does to it.

A state is the content of the tables, with row numbers. The layout of SQLite's pages
does not matter. An image of the file restores a state. A call is one transaction, and
depends on nothing but the state, the time and its arguments. So each call is run once
in each state, and its result is looked up after that.
"""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from explorer.calls import Call, Callback, Question, freeze, raised
from tapster.errors import TapsterError
from tapster.ledger import FIRST_IFINDEX, Ledger
from tapster.model import Lease

Leases = tuple[Lease, ...]

READS = frozenset(
    {
        "at",
        "ended",
        "entries",
        "lease",
        "leases",
        "named",
        "namespaces",
        "next_deadline",
        "suspects",
    }
)
"""The calls that never wait: in WAL mode a reader sees the last commit."""


class LedgerAnswer(NamedTuple):
    """What a call did."""

    state: int
    answer: Any


class _Asked(BaseException):
    """Raised by a callback that has no answer yet. It rolls the transaction back."""

    def __init__(self, question: Question) -> None:
        self.question = question


class LedgerStates:
    """States are numbered. State 0 is the empty ledger."""

    def __init__(self, directory: str) -> None:
        """Create a ledger in `directory`, then keep all states in memory."""
        self._now = 0.0
        self._db: Any = None
        self._ledger = Ledger(f"{directory}/ledger.db", self, randomness=self._bytes)
        self._db = self._ledger.file.connection
        # An image in the mode of the rollback journal can be opened in memory. Small
        # pages make small images.
        for setting in ("journal_mode = DELETE", "page_size = 512"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute("VACUUM")
        self._open(self._db.serialize())
        self._tables = self._find_tables()
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._images: list[bytes] = []
        self.leases: list[Leases] = []
        """The leases of each state."""
        self._done: dict[tuple[int, float, Call], LedgerAnswer] = {}
        self._at = self._number()

    def do(self, state: int, now: float, call: Call) -> LedgerAnswer:
        """Make a call in a state. `now` is the time on both clocks."""
        key = (state, now, call)
        if key not in self._done:
            self._done[key] = self._execute(state, now, call)
        return self._done[key]

    def boottime(self) -> float:
        return self._now

    def wallclock(self) -> float:
        return 0.0

    def close(self) -> None:
        self._ledger.close()

    def _execute(self, state: int, now: float, call: Call) -> LedgerAnswer:
        if self._at != state:
            self._open(zlib.decompress(self._images[state]))
            self._at = state
        self._now = now
        answers = iter(call.answers)
        args = [self._thaw(value, answers) for value in call.args]
        named = {key: self._thaw(value, answers) for key, value in call.named}
        before = self._db.total_changes
        try:
            if call.verb == "peek":
                # Answer as `reserve` would. The next call opens an image again.
                self._at = -1
                return LedgerAnswer(state, freeze(self._ledger.reserve(*args, **named)))
            answer = freeze(getattr(self._ledger, call.verb)(*args, **named))
        except _Asked as asked:
            return LedgerAnswer(state, asked.question)
        except TapsterError as error:
            return LedgerAnswer(state, raised(error))
        if self._db.total_changes != before:
            self._at = self._number()
        return LedgerAnswer(self._at, answer)

    def _open(self, image: bytes) -> None:
        """Open an image in memory."""
        # A connection that has seen another image may have cached parts of that image.
        self._db.close()
        self._db = type(self._db)(":memory:", isolation_level=None)
        self._db.deserialize(image)
        self._db.execute("PRAGMA foreign_keys = ON")
        self._ledger.file.connection = self._db

    def _thaw(self, value: Any, answers: Iterator[Any]) -> Any:
        """Return an argument in its first form. A callback gives recorded answers."""
        if not isinstance(value, Callback):
            return value

        def callback(*args: Any) -> Any:
            for answer in answers:
                return answer
            raise _Asked(Question(value, freeze(list(args))))

        return callback

    def _number(self) -> int:
        """Return the number of the state that the ledger is in now."""
        key = tuple(tuple(self._db.execute(query)) for query in self._tables)
        if key not in self._numbers:
            self._numbers[key] = len(self._images)
            self._images.append(zlib.compress(self._db.serialize(), 1))
            self.leases.append(tuple(self._ledger.leases()))
        return self._numbers[key]

    def _find_tables(self) -> list[str]:
        found = self._db.execute(
            "SELECT name, sql LIKE '%WITHOUT ROWID%' FROM sqlite_master "
            "WHERE type = 'table'"
        ).fetchall()
        return [
            f"SELECT {'*' if bare else 'rowid, *'} FROM {name} ORDER BY 1, 2"  # noqa: S608 - names of our own schema
            for name, bare in found
        ]

    def _bytes(self, count: int) -> bytes:
        """Return bytes that are not random, and that differ each time."""
        if self._db is None:  # the ledger is being made
            return bytes(count)
        (value,) = self._db.execute(
            "SELECT value FROM meta WHERE key = 'next_ifindex'"
        ).fetchone()
        return int(value - FIRST_IFINDEX + 1).to_bytes(count, "big")
