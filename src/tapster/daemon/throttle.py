# SPDX-License-Identifier: Apache-2.0
"""Limits how many requests a user may send: a bucket of tokens for each user. Pure."""

BURST = 2.0
"""A bucket holds the requests of so many seconds, which may come at once."""


FREE_WORK = 0.01
"""Seconds of processor time that a request may take at no charge. An acquire of a few
devices takes less."""
WEIGHT = 4
"""Each further second takes the tokens of so many seconds. So no user has more than a
quarter of the worker's time for long.

`make bench ARGS=looking` makes long requests, of 47 ms each, as one user. Another
user's acquire and release took 44 ms, and 110 ms without a charge; 29 ms alone."""


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

    def charge(self, user: int, rate: int, work: float, now: float) -> None:
        """Take tokens for a request that took so many seconds of processor time. The
        bucket may owe some."""
        if work > FREE_WORK:
            tokens, last = self._buckets.get(user, (BURST * rate, now))
            tokens = min(tokens + (now - last) * rate, BURST * rate)
            tokens -= (work - FREE_WORK) * WEIGHT * rate
            self._buckets[user] = (tokens, now)

    def forget(self, rate: int, now: float) -> None:
        """Forget the users whose bucket is full again."""
        for user, (tokens, last) in list(self._buckets.items()):
            if tokens + (now - last) * rate >= BURST * rate:
                del self._buckets[user]
