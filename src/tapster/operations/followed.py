# SPDX-License-Identifier: Apache-2.0
"""The network namespaces that have leases: which are watched, and which have ended."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from tapster.errors import HostError
from tapster.kernel.port import HERE
from tapster.model import Netns
from tapster.operations.look import Look

OnDoubt = Callable[[str, Netns, HostError], None]
"""Called with the name of an event, if it cannot be determined whether a namespace
exists."""
SURVEY_PAUSE = 0.5
"""Seconds between two looks at all namespaces. Hundreds may end, one after the other;
the next look, or the next sweep, tells of those that end in the meantime."""
NAMESPACE_RETRY = 60.0
"""Seconds until the next look at a namespace that has ended, or whose existence could
not be determined. The look may have to go through all processes."""


class FollowedNamespaces:
    """The namespaces in which the watches report changes. One thread uses it."""

    def __init__(
        self,
        own: Netns,
        on_doubt: OnDoubt = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`own` is the process's own namespace, which cannot end."""
        self._on_doubt = on_doubt
        self._clock = clock
        self._followed = {own.cookie: (own, HERE)}
        """Each namespace with its number in a Watch."""
        self._retries: dict[int, float] = {}
        """When to look again at each namespace that is not followed."""
        self._suspects: list[Netns] = []
        """Namespaces that were reported as ended, and not looked for yet."""
        self._next_survey = 0.0

    def __contains__(self, cookie: int) -> bool:
        return cookie in self._followed

    def numbered(self) -> list[tuple[Netns, int]]:
        """Return every namespace with its number in a Watch."""
        return list(self._followed.values())

    def others(self) -> list[Netns]:
        """Return every namespace but the process's own."""
        return [netns for netns, number in self._followed.values() if number != HERE]

    def follow(self, look: Look, netns: Netns) -> bool:
        """Let the watches report changes in this namespace.

        True if the namespace was not followed before or has ended: then look at its
        leases.
        """
        if not self._is_new(netns):
            return False
        try:
            number = look.number(netns)
        except HostError as error:
            self._retry_later(netns)
            self._on_doubt("not-watched", netns, error)
            return False
        if number is None:
            self._retry_later(netns)
        else:
            self._retries.pop(netns.cookie, None)
            self._followed[netns.cookie] = netns, number
        return True

    def follow_all(self, look: Look) -> list[Netns]:
        """Follow every namespace that has leases.

        Return those that were not followed before or have ended.
        """
        namespaces = look.namespaces()
        # Thousands of pods may have ended since the process has begun.
        used = {netns.cookie for netns in namespaces}
        self._retries = {key: at for key, at in self._retries.items() if key in used}
        new = [netns for netns in namespaces if self._is_new(netns)]
        # One look at all processes tells of all namespaces that have ended. `follow`
        # would look at all processes for each.
        ended = look.ended_namespaces(new) if new else set()
        for netns in ended:
            self._retry_later(netns)
        return [netns for netns in new if netns in ended or self.follow(look, netns)]

    def _is_new(self, netns: Netns) -> bool:
        """Return whether to look for a namespace: it is not followed, and was not
        looked for just before."""
        retry = self._retries.get(netns.cookie, 0.0)
        return netns.cookie not in self._followed and self._clock() >= retry

    def _retry_later(self, netns: Netns) -> None:
        self._retries[netns.cookie] = self._clock() + NAMESPACE_RETRY

    def suspect(self, netnses: Iterable[Netns]) -> None:
        """Note that these are reported as ended. Their numbers may belong to other
        namespaces by now."""
        self._suspects += netnses

    def suspects(self, *, soon: bool) -> Collection[Netns]:
        """Take the followed namespaces that were reported as ended; with `soon`, none
        until SURVEY_PAUSE after the last."""
        if not self._suspects or (soon and self._clock() < self._next_survey):
            return ()
        suspects = {netns for netns in self._suspects if netns.cookie in self._followed}
        self._suspects.clear()
        self._next_survey = self._clock() + SURVEY_PAUSE
        return suspects

    def forget_ended(self, look: Look, suspects: Collection[Netns]) -> Sequence[Netns]:
        """Stop following those of these namespaces that have ended. Return them."""
        ended = look.ended_namespaces(suspects)
        for netns in set(suspects) - ended:
            try:
                if look.number(netns) is None:
                    ended.add(netns)
            except HostError as error:
                # `follow_all` follows it again if it still has leases.
                self._on_doubt("not-determined", netns, error)
                del self._followed[netns.cookie]
        for cookie in {netns.cookie for netns in ended}:
            del self._followed[cookie]
        return [*ended]
