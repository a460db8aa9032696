# SPDX-License-Identifier: Apache-2.0
"""The interface of a fleet's store, and its errors.

A store maps keys to values, both text. A commit writes several keys, or none, and
only if other keys still have the values that the caller has read. Every call has a
time limit.
"""

from collections.abc import Iterator, Mapping, Sequence

from tapster.errors import ConflictError, ServiceUnavailable
from tapster.light import NamedTuple, Protocol

MAX_KEYS = 100
"""Keys in a commit or a read: etcd takes 128 operations in a transaction."""


class FleetUnavailable(ServiceUnavailable):
    """The store cannot be used now, and nothing was written."""


class FleetUnclear(FleetUnavailable):
    """The store did not answer: the write may be applied now, later or never."""


class FleetDamaged(FleetUnavailable):
    """The store has a value that no release of Tapster writes."""


class MacRegistered(ConflictError):
    """The store says that another VM, or another host, has the MAC."""


class Committed(NamedTuple):
    """The answer to a commit."""

    done: bool
    """False: a key was not as expected, and nothing was written."""
    found: Mapping[str, str]
    """If not done, the keys that were expected as they are now; absent ones are not
    in it."""


class Transactions(Protocol):
    """What most operations need of a store."""

    def read(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Return the values of keys, all at one moment; absent ones are not in the
        answer."""

    def commit(
        self,
        expected: Mapping[str, str | None],
        writes: Mapping[str, str | None],
        *,
        session: int = 0,
    ) -> Committed:
        """Write if every key of `expected` has that value; None is no value.

        A write of None deletes the key. Keys that are written with `session` go when
        that session ends.
        """


class Store(Transactions, Protocol):
    """A store. Every method raises FleetUnavailable; writes also FleetUnclear."""

    timeout: float
    """Seconds that a call takes at most."""

    def scan(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Return all keys that begin with `prefix`, in order, with their values."""

    def open_session(self, seconds: int) -> int:
        """Begin a session that ends `seconds` after it was last kept."""

    def keep_session(self, session: int) -> bool:
        """Let a session last; False if it has ended."""

    def close(self) -> None:
        """Close the connection."""
