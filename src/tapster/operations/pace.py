# SPDX-License-Identifier: Apache-2.0
"""Pace: how often what another program changes again and again is put back. Pure."""

AT_ONCE, SECONDS = 10, 60.0
"""A device is restored at once, at most so many times in so many seconds."""
PAUSE = 1.0
"""Seconds between two restorations after that."""


class Pace:
    """When the device of each lease was restored.

    The program that changes a device, such as the guest's VMM, may do so without end.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._restored: dict[str, tuple[float, int, float]] = {}
        """Since when, how often and when last, by lease."""
        self._swept = 0.0

    def is_spent(self, id: str, now: float) -> bool:
        """Return whether a device was restored as often as it is at once."""
        since, times, _ = self._restored.get(id, (now, 0, now))
        return times >= self._at_once and now - since < SECONDS

    def allows(self, id: str, now: float) -> bool:
        """Return whether to restore a lease's device now; count it if so."""
        if now - self._swept >= SECONDS:
            self._swept = now
            recent = self._restored.items()
            self._restored = {key: was for key, was in recent if now - was[0] < SECONDS}
        since, times, last = self._restored.get(id, (now, 0, now))
        if now - since >= SECONDS:
            since, times = now, 0
        if times >= self._at_once and now - last < PAUSE:
            return False
        self._restored[id] = since, times + 1, now
        return True
