# SPDX-License-Identifier: Apache-2.0
"""A store in memory, for tests and for programs that test against a fleet."""

from collections.abc import Iterator, Mapping, Sequence

from tapster.fleet.store import Committed


class MemoryStore:
    """A store that always answers."""

    timeout = 0.0

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._sessions: dict[int, set[str]] = {}
        self.last_session = 0

    def read(self, keys: Sequence[str]) -> Mapping[str, str]:
        return {key: self.values[key] for key in keys if key in self.values}

    def scan(self, prefix: str) -> Iterator[tuple[str, str]]:
        yield from sorted(
            (key, value) for key, value in self.values.items() if key.startswith(prefix)
        )

    def commit(
        self,
        expected: Mapping[str, str | None],
        writes: Mapping[str, str | None],
        *,
        session: int = 0,
    ) -> Committed:
        if any(self.values.get(key) != value for key, value in expected.items()):
            return Committed(False, self.read([*expected]))
        for key, value in writes.items():
            for keys in self._sessions.values():
                keys.discard(key)
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
                if session:
                    self._sessions[session].add(key)
        return Committed(True, {})

    def open_session(self, seconds: int) -> int:
        self.last_session += 1
        self._sessions[self.last_session] = set()
        return self.last_session

    def keep_session(self, session: int) -> bool:
        return session in self._sessions

    def end_session(self, session: int) -> None:
        """Let a session end, as time would."""
        for key in self._sessions.pop(session):
            self.values.pop(key, None)

    def close(self) -> None:
        pass
