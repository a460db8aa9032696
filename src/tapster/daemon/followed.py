# SPDX-License-Identifier: Apache-2.0
"""The network namespaces that have leases: which are watched, and which have ended."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from tapster.daemon.log import WARNING, Log
from tapster.errors import HostError
from tapster.kernel.port import HERE
from tapster.model import Netns
from tapster.operations.look import Look

SURVEY_PAUSE = 0.5
"""Seconds between two looks at all namespaces. Hundreds may end, one after the other;
the next look, or the next sweep, tells of those that end in the meantime."""
NAMESPACE_RETRY = 60.0
"""Seconds to wait before retrying a namespace whose existence could not be
determined."""


class FollowedNamespaces:
    """The namespaces in which the watches report changes. Used in the worker's
    thread."""

    def __init__(
        self,
        look: Look,
        own: Netns,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`own` is the daemon's own namespace, which cannot end."""
        self._look = look
        self._log = log
        self._clock = clock
        self._followed = {own.cookie: (own, HERE)}
        """Each namespace with its number in a Watch."""
        self._undetermined: dict[int, float] = {}
        """When to retry each namespace whose existence could not be determined."""
        self._suspects: list[Netns] = []
        """Namespaces that were reported as ended, and not looked for yet."""
        self._next_survey = 0.0

    def __contains__(self, cookie: int) -> bool:
        return cookie in self._followed

    def numbered(self) -> list[tuple[Netns, int]]:
        """Return every namespace with its number in a Watch."""
        return list(self._followed.values())

    def others(self) -> list[Netns]:
        """Return every namespace but the daemon's own."""
        return [netns for netns, number in self._followed.values() if number != HERE]

    def follow(self, netns: Netns) -> bool:
        """Let the watches report changes in this namespace.

        True if the namespace was not followed before or has ended: then look at its
        leases.
        """
        now = self._clock()
        if netns.cookie in self._followed:
            return False
        if self._undetermined.get(netns.cookie, 0) > now:
            return False
        try:
            number = self._look.number(netns)
        except HostError as error:
            self._undetermined[netns.cookie] = now + NAMESPACE_RETRY
            self._log(WARNING, "not-watched", netns=netns.path, error=error)
            return False
        self._undetermined.pop(netns.cookie, None)
        if number is not None:
            self._followed[netns.cookie] = netns, number
        return True

    def follow_all(self) -> list[Netns]:
        """Follow every namespace that has leases.

        Return those that were not followed before or have ended.
        """
        new = [n for n in self._look.namespaces() if n.cookie not in self._followed]
        # One look at all processes tells of all namespaces that have ended. `follow`
        # would look at all processes for each.
        ended = self._look.ended_namespaces(new)
        return [netns for netns in new if netns in ended or self.follow(netns)]

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

    def forget_ended(self, suspects: Collection[Netns]) -> Sequence[Netns]:
        """Stop following those of these namespaces that have ended. Return them."""
        ended = self._look.ended_namespaces(suspects)
        for netns in set(suspects) - ended:
            try:
                if self._look.number(netns) is None:
                    ended.add(netns)
            except HostError as error:
                # `follow_all` follows it again if it still has leases.
                self._log(WARNING, "not-determined", netns=netns.path, error=error)
                del self._followed[netns.cookie]
        for cookie in {netns.cookie for netns in ended}:
            del self._followed[cookie]
        return [*ended]
