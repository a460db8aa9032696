# SPDX-License-Identifier: Apache-2.0
"""Limits how many requests a user may send: a bucket of tokens for each user. Pure."""

BURST = 2.0
"""A bucket holds the requests of so many seconds, which may come at once."""


class Throttle:
    """Each user's bucket fills at a rate, and holds the requests of `BURST` seconds."""

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[float, float]] = {}

    def admit(self, user: int, rate: int, now: float) -> float:
        """Take a token and return 0; without a token, return the seconds until the
        next."""
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
