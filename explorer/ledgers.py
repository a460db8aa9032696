# SPDX-License-Identifier: Apache-2.0
"""Every state of the real ledger that was reached, and what each call does to it.

A state is what the tables hold, row numbers included; how SQLite has laid it
out in its pages is of no account. An image of the file brings a state back. A
call is one transaction and depends on the state, the time and its arguments
alone, so each is run once and remembered.
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
    {"leases", "lease", "named", "suspects", "ended", "next_deadline", "entries"}
)
"""The calls that wait for no other: in WAL mode a reader sees the last commit."""


class Answered(NamedTuple):
    """What a call did."""

    state: int
    answer: Any


class _Asked(BaseException):
    """Raised inside a transaction, which it rolls back, by an open question."""

    def __init__(self, question: Question) -> None:
        self.question = question


class Ledgers:
    """States are numbered; 0 is the empty ledger."""

    def __init__(self, directory: str) -> None:
        """Works on one ledger file in `directory`, and then in memory."""
        self._now = 0.0
        self._db: Any = None
        self._ledger = Ledger(f"{directory}/ledger.db", self, randomness=self._bytes)
        self._db = self._ledger.file.connection
        # Images of the rollback journal's mode open in memory; small pages make
        # them small.
        for settle in ("journal_mode = DELETE", "page_size = 512"):
            self._db.execute(f"PRAGMA {settle}")
        self._db.execute("VACUUM")
        self._open(self._db.serialize())
        self._tables = self._find_tables()
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._images: list[bytes] = []
        self.leases: list[Leases] = []
        """The leases of each state."""
        self._done: dict[tuple[int, float, Call], Answered] = {}
        self._at = self._number()

    def do(self, state: int, now: float, call: Call) -> Answered:
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

    def _execute(self, state: int, now: float, call: Call) -> Answered:
        if self._at != state:
            self._open(zlib.decompress(self._images[state]))
            self._at = state
        self._now = now
        told = iter(call.told)
        args = [self._thaw(value, told) for value in call.args]
        named = {key: self._thaw(value, told) for key, value in call.named}
        before = self._db.total_changes
        try:
            if call.verb == "peek":
                # What `reserve` would answer; the next call opens an image.
                self._at = -1
                return Answered(state, freeze(self._ledger.reserve(*args, **named)))
            answer = freeze(getattr(self._ledger, call.verb)(*args, **named))
        except _Asked as asked:
            return Answered(state, asked.question)
        except TapsterError as error:
            return Answered(state, raised(error))
        if self._db.total_changes != before:
            self._at = self._number()
        return Answered(self._at, answer)

    def _open(self, image: bytes) -> None:
        """Go on with this image, in memory."""
        # A new connection: one that has seen another image may go on with what
        # it remembers of that.
        self._db.close()
        self._db = type(self._db)(":memory:", isolation_level=None)
        self._db.deserialize(image)
        self._db.execute("PRAGMA foreign_keys = ON")
        self._ledger.file.connection = self._db

    def _thaw(self, value: Any, told: Iterator[Any]) -> Any:
        """An argument as it was; callbacks give the recorded answers in turn."""
        if not isinstance(value, Callback):
            return value

        def callback(*args: Any) -> Any:
            for answer in told:
                return answer
            raise _Asked(Question(value, freeze(list(args))))

        return callback

    def _number(self) -> int:
        """The number of the state that the ledger is in now."""
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
        """Not random, but never twice the same: ifindexes are counted up too."""
        if self._db is None:  # the ledger is being made
            return bytes(count)
        (value,) = self._db.execute(
            "SELECT value FROM meta WHERE key = 'next_ifindex'"
        ).fetchone()
        return int(value - FIRST_IFINDEX + 1).to_bytes(count, "big")
