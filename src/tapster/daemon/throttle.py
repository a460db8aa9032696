# SPDX-License-Identifier: Apache-2.0
"""How many requests a user may send. Pure: a bucket of tokens for each."""


class Throttle:
    """Each user's bucket fills at a rate, up to two seconds' worth."""

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[float, float]] = {}

    def admit(self, uid: int, rate: int, now: float) -> bool:
        """Whether a request may come in; one that does costs a token."""
        tokens, last = self._buckets.get(uid, (2.0 * rate, now))
        tokens = min(tokens + (now - last) * rate, 2.0 * rate)
        admitted = tokens >= 1
        self._buckets[uid] = (tokens - admitted, now)
        return admitted

    def forget(self, now: float) -> None:
        """Forget the users whose bucket is full again."""
        for uid, (_, last) in list(self._buckets.items()):
            if now - last > 2:
                del self._buckets[uid]
