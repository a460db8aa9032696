# SPDX-License-Identifier: Apache-2.0
"""The fleet's part of an acquire: choose a MAC from a block, or register a given MAC.

A MAC of a block needs no call of the store. A MAC that the user gives is registered
before the device is made, so a refusal undoes nothing in the kernel. The call takes no
longer than the budget, whatever the store, the network or a name server does.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from tapster.errors import RequestError
from tapster.fleet.book import UNASKED, Book, BookEntry, describe
from tapster.fleet.registration import (
    PushAction,
    RecordState,
    handed_over,
    own_vm,
    parse_epoch,
)
from tapster.fleet.store import FleetUnavailable, FleetUnclear, MacRegistered
from tapster.ledger import Ledger
from tapster.light import TYPE_CHECKING
from tapster.model import Lease, Spec

if TYPE_CHECKING:
    from tapster.fleet.settings import Cached, Settings
    from tapster.fleet.steps import Outcome, Push
    from tapster.fleet.store import Committed, Store


OnAsked = Callable[[Sequence[str], float], None]
ANXIOUS = 5.0
"""Seconds after an acquire that got no answer in which others wait a tenth of the
budget: in the daemon, operations wait for each other."""
WAITING = 0.98
"""The part of the budget for which an acquire waits: each wait ends some milliseconds
late, and the registration that was not answered is recorded."""
Asked = tuple[Lease, Spec]
"""A reserved lease, and how the user asked for it."""


class FleetMacs:
    """The fleet's part of an acquire."""

    def __init__(self, ledger: Ledger, wallclock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._book = Book(ledger)
        self._wallclock = wallclock
        self._asking: Asking | None = None
        self.on_asked: OnAsked = lambda *_: None
        """Called after each question with the result for each lease, and the seconds
        that the answer took."""
        self._settings: Cached | None = None
        self._anxious_until = 0.0

    def close(self) -> None:
        """Close the connection to the store."""
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def next_mac(self) -> str | None:
        """Return a MAC that no other host gives out; None if there is none left."""
        return self._book.next_mac(self._wallclock())

    def check(self, asked: Sequence[Asked]) -> None:
        """Record the VMs of the leases, and register the MACs that were given.

        Raises MacRegistered. Without an answer it goes on, unless `when_away` says
        "refuse".
        """
        questions = []
        for lease, spec in asked:
            vm, epoch = spec.vm, None
            if vm is not None and vm.incoming is not None:
                epoch = handed_over(parse_epoch(vm.incoming))
            # While a device is on standby, its VM runs on another host.
            question = spec.mac is not None and not spec.standby
            self._book.identify(
                lease.id,
                own_vm(lease.id) if vm is None else vm.id,
                epoch,
                sent=question,
            )
            if question:
                questions.append((lease, spec))
        if questions:
            self._ask(questions)

    def _ask(self, questions: Sequence[Asked]) -> None:
        loaded, problem = self._load()
        entries = [
            entry
            for lease, _ in questions
            if (entry := self._book.of_lease(lease.id)) is not None
        ]
        began = time.perf_counter()
        results = ["away"] * len(entries)
        try:
            if loaded is None:
                raise FleetUnavailable(problem)
            outcomes = self._outcomes(loaded, questions, entries)
            results = [_result(outcome) for outcome in outcomes]
        except FleetUnavailable as error:
            if isinstance(error, FleetUnclear):
                results = ["unclear"] * len(entries)
            if loaded is not None and loaded.when_away == "refuse":
                raise FleetUnavailable(
                    f"the fleet could not be asked for the MAC: {error}; "
                    'with fleet.when_away = "go" the VM would start'
                ) from error
            self._book.note([lease.id for lease, _ in questions], f"{UNASKED}{error}")
            return
        finally:
            self.on_asked(results, time.perf_counter() - began)
        self._book.record_outcomes(
            zip(entries, outcomes, strict=True), self._wallclock()
        )
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome.action is PushAction.REPORT:
                raise MacRegistered(
                    f"MAC {entry.record.mac} in segment {entry.record.segment!r} is "
                    f"refused to VM {entry.record.vm}: {describe(outcome)}"
                )

    def _load(self) -> "tuple[Settings | None, str]":
        """Return the settings of this host; if there are none, the reason."""
        from tapster.fleet import settings

        if self._settings is None:
            self._settings = settings.Cached()
        try:
            return self._settings.load(), f"{settings.path()} has no [fleet]"
        except RequestError as error:
            return None, str(error)

    def _outcomes(
        self,
        settings: "Settings",
        questions: Sequence[Asked],
        entries: Sequence[BookEntry],
    ) -> "list[Outcome]":
        """Ask the store, and wait no longer than the budget."""
        from tapster.fleet.steps import Push

        running = self._book.running()
        asking, self._asking = self._asking, None
        if asking is None or asking.settings != settings:
            if asking is not None:
                asking.close()
            try:
                asking = Asking(settings, self._ledger.id)
            except RequestError as error:  # as of other settings, in `_load`
                raise FleetUnavailable(str(error)) from error
        began = time.monotonic()
        calm = began >= self._anxious_until
        budget = settings.budget if calm else settings.budget / 10
        asking.until = began + WAITING * budget
        try:
            outcomes = [
                asking.push(
                    Push(
                        entry.record._replace(state=RecordState.ACTIVE),
                        given_up=spec.vm is not None and spec.vm.takeover,
                        given=True,
                    ),
                    running,
                )
                for (_, spec), entry in zip(questions, entries, strict=True)
            ]
        except BaseException:
            asking.close()
            ended = time.monotonic()
            if calm and ended >= asking.until:
                self._anxious_until = ended + ANXIOUS
            raise
        self._anxious_until = 0.0
        self._asking = asking
        return outcomes


def _result(outcome: "Outcome") -> str:
    return "taken" if outcome.action is PushAction.REPORT else "ok"


class Asking:
    """A connection to the store that is kept from one acquire to the next."""

    def __init__(self, settings: "Settings", ledger: str) -> None:
        from tapster.fleet import steps
        from tapster.fleet.keys import Keys
        from tapster.fleet.member import boot_id, open_store

        self.settings = settings
        self.until = 0.0
        """The time on the monotonic clock by which the store must have answered."""
        self._steps = steps
        self._me = steps.Me(settings.name, ledger, boot_id())
        self._where = Keys(settings.prefix)
        self._store = open_store(settings)
        self._permit: dict[str, str] = {}

    def push(self, pending: "Push", running: frozenset[str]) -> "Outcome":
        """Register a MAC."""
        key = self._where.permit(self._me.host)
        if not self._permit:
            self._permit = {**self.read([key])}
        # The permit may be out of date. Then the commit fails, and its answer has the
        # new permit: as many round trips as reading the permit first.
        guess = self._permit if key in self._permit else None
        asking = self._steps.push(self._where, self._me, pending, running, guess)
        return self._steps.run(asking, self)

    def read(self, keys: Sequence[str]) -> Mapping[str, str]:
        """As in `Store`."""
        return self._in_time().read(keys)

    def commit(
        self,
        expected: Mapping[str, str | None],
        writes: Mapping[str, str | None],
        *,
        session: int = 0,
    ) -> "Committed":
        """As in `Store`; remembers the permit that the answer shows."""
        answer = self._in_time().commit(expected, writes, session=session)
        key = self._where.permit(self._me.host)
        if key in answer.found:
            self._permit = {key: answer.found[key]}
        return answer

    def _in_time(self) -> "Store":
        """Return the store, which takes no longer than the time that is left."""
        self._store.timeout = self.until - time.monotonic()
        if self._store.timeout <= 0:
            raise FleetUnavailable("no answer in time")
        return self._store

    def close(self) -> None:
        """Close the connection."""
        self._store.close()
