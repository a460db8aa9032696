# SPDX-License-Identifier: Apache-2.0
"""What an acquire does in a fleet: take a MAC of a block, ask for a given one.

A MAC of a block needs no question. A MAC that the user gives is asked for before the
device is made, so a refusal undoes nothing in the kernel. The question takes no longer
than the budget, whatever the store, the network or a name server does.
"""

import threading
from collections.abc import Callable, Sequence

from tapster.errors import TapsterError
from tapster.fleet.book import Book, Entry, describe
from tapster.fleet.claim import (
    ClaimAction,
    ClaimState,
    handed_over,
    own_vm,
    parse_epoch,
)
from tapster.fleet.store import FleetUnavailable, MacClaimed
from tapster.ledger import Ledger
from tapster.light import TYPE_CHECKING
from tapster.model import Lease, Spec

if TYPE_CHECKING:
    from tapster.fleet.settings import Settings
    from tapster.fleet.steps import Outcome


Asked = tuple[Lease, Spec]
"""A reserved lease, and how the user asked for it."""


class Guard:
    """The fleet's part of an acquire."""

    def __init__(self, ledger: Ledger, wallclock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._book = Book(ledger)
        self._wallclock = wallclock

    def next_mac(self) -> str | None:
        """A MAC that no other host gives out; None if there is none left."""
        return self._book.next_mac(self._wallclock())

    def check(self, asked: Sequence[Asked]) -> None:
        """Record whose the leases are, and ask for the MACs that were given.

        Raises MacClaimed. Without an answer it goes on, unless `when_away` says
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
        from tapster.fleet import settings

        loaded = settings.load()
        entries = [
            entry
            for lease, _ in questions
            if (entry := self._book.of_lease(lease.id)) is not None
        ]
        try:
            if loaded is None:
                raise FleetUnavailable(f"{settings.path()} has no [fleet]")
            outcomes = self._outcomes(loaded, questions, entries)
        except FleetUnavailable as error:
            if loaded is not None and loaded.when_away == "refuse":
                raise FleetUnavailable(
                    f"the fleet could not be asked for the MAC: {error}; "
                    'with fleet.when_away = "go" the VM would start'
                ) from error
            self._book.note([lease.id for lease, _ in questions], f"unasked: {error}")
            return
        self._book.settle(zip(entries, outcomes, strict=True), self._wallclock())
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome.action is ClaimAction.REPORT:
                raise MacClaimed(
                    f"MAC {entry.record.mac} in domain {entry.record.domain!r} is "
                    f"refused to VM {entry.record.vm}: {describe(outcome)}"
                )

    def _outcomes(
        self,
        settings: "Settings",
        questions: Sequence[Asked],
        entries: Sequence[Entry],
    ) -> "list[Outcome]":
        """Ask the store, and wait no longer than the budget."""
        from tapster.fleet.keys import Keys
        from tapster.fleet.member import boot_id, open_store
        from tapster.fleet.steps import Me, Push, push, run

        me = Me(settings.name, self._ledger.id, boot_id())
        running = self._book.running()
        outcomes: list[Outcome] = []
        problems: list[BaseException] = []

        def ask() -> None:
            try:
                store = open_store(settings, timeout=settings.budget)
            except TapsterError as error:
                problems.append(error)
                return
            try:
                for (_, spec), entry in zip(questions, entries, strict=True):
                    record = entry.record._replace(state=ClaimState.ACTIVE)
                    given_up = spec.vm is not None and spec.vm.takeover
                    pushed = Push(record, given_up=given_up, given=True)
                    asking = push(Keys(settings.prefix), me, pushed, running)
                    outcomes.append(run(asking, store))
            except TapsterError as error:
                problems.append(error)
            finally:
                store.close()

        # A name server can keep a thread for longer than any timeout of a socket.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(settings.budget)
        if problems:
            raise problems[0]
        if thread.is_alive() or len(outcomes) < len(questions):
            raise FleetUnavailable(f"no answer within {settings.budget:g} s")
        return outcomes
