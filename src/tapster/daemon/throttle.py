# SPDX-License-Identifier: Apache-2.0
"""How many requests a user may send. Pure: a bucket of tokens for each user."""

BURST = 2.0
"""Seconds whose requests may come at once."""


class Throttle:
    """Each user's bucket fills at a rate, and holds the requests of `BURST` seconds."""

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[float, float]] = {}

    def admit(self, user: int, rate: int, now: float) -> float:
        """Take a token and return 0; or return the seconds until there is one."""
        tokens, last = self._buckets.get(user, (BURST * rate, now))
        tokens = min(tokens + (now - last) * rate, BURST * rate)
        if tokens < 1:
            self._buckets[user] = (tokens, now)
            return (1 - tokens) / rate
        self._buckets[user] = (tokens - 1, now)
        return 0.0

    def forget(self, now: float) -> None:
        """Forget the users whose bucket is full again."""
        for user, (_, last) in list(self._buckets.items()):
            if now - last > BURST:
                del self._buckets[user]
