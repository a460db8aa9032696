# SPDX-License-Identifier: Apache-2.0
"""The failures of a batch: each is kept, so that one failure hides no other."""

from tapster.errors import ServiceUnavailable, TapsterError
from tapster.light import Iterable, Sequence


class Failures:
    """Collects errors while a batch goes on; raises them when the batch is done.

    One error is raised, so that callers can catch it by its type. Every other
    failure becomes a note of that error (PEP 678).
    """

    def __init__(self) -> None:
        self._errors: list[TapsterError] = []
        self._leases: set[str] = set()

    def add(self, error: TapsterError, ids: Iterable[str] = ()) -> None:
        """Keep an error for later, and the ids of the leases that it concerns."""
        self._errors.append(error)
        self._leases.update(ids)

    def left(self, error: BaseException, ids: Sequence[str]) -> Sequence[str]:
        """Return which of these leases are left when their batch has raised `error`.

        That is all of them, if the batch ended early or no error names a lease.
        """
        known = error in self._errors
        return [id for id in ids if known and id in self._leases] or ids

    def raise_any(self) -> None:
        """Raise what was collected, if anything was.

        A service that is away comes back by itself, and callers wait for it. So an
        error of another type is raised first, if there is one.
        """
        if not self._errors:
            return
        first = min(
            self._errors, key=lambda error: isinstance(error, ServiceUnavailable)
        )
        known = {str(first), *getattr(first, "__notes__", ())}
        for error in [error for error in self._errors if error is not first]:
            for text in (f"{error}", *getattr(error, "__notes__", ())):
                if text not in known:
                    known.add(text)
                    first.add_note(f"another failure: {text}")
        raise first
