# SPDX-License-Identifier: Apache-2.0
"""Gate: lets one thread at a time use an object, and only where that is sound.

It refuses a forked child: the parent's ledger, locks and sockets are not the child's to
use. After `close` it refuses every call. It refuses a signal handler that uses an
object in the middle of a call of the same thread: the handler would find work half
done, and could not wait for its end.

An exception at any instruction, as Ctrl-C raises, leaves the gate as it was. So there
is no flag that says that a call is under way: the thread's stack says so. And the lock
is held by `with` alone, which has no instruction of Python between lock and block.
"""

import os
import sys
from _thread import RLock  # threading costs as much as all of this

from tapster.errors import RequestError, TapsterError, unforeseen
from tapster.kernel.signals import raised_by_handler
from tapster.light import Callable, TypeVar

T = TypeVar("T")


class Gate:
    """The gate of one object, which errors call `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = RLock()
        self._pid = os.getpid()
        self._closed = False

    def run(self, work: Callable[[], T]) -> T:
        """Do the work of a user's whole call; no other call comes in between.

        An exception that is neither Tapster's own nor raised by a signal handler
        becomes the error that `unforeseen` makes of it.
        """
        lock = self.lock
        self._refuse_reentry()
        with lock:
            self._refuse_closed()
            try:
                return work()
            except TapsterError:
                raise
            except Exception as error:
                if raised_by_handler(error):
                    raise
                raise unforeseen(error) from error

    @property
    def lock(self) -> RLock:
        """The lock, for parts of a call: `with gate.lock:`."""
        # First: another thread of the parent may hold the child's copy for ever.
        if os.getpid() != self._pid:
            raise RequestError(
                f"this {self._name} was opened by process {self._pid}, and cannot be "
                f"used in its forked child {os.getpid()}: "
                f"open another {self._name} there"
            )
        self._refuse_closed()
        return self._lock

    @property
    def closed(self) -> bool:
        """Whether the object is closed. Any thread may ask, without waiting."""
        return self._closed

    def close(self) -> bool:
        """Refuse every further call. True the first time, in the opener's process."""
        if os.getpid() != self._pid:
            return False
        self._refuse_reentry()
        with self._lock:
            first, self._closed = not self._closed, True
            return first

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RequestError(f"this {self._name} is closed: open another one")

    def _refuse_reentry(self) -> None:
        """Refuse a thread that is in a call already."""
        if not self._lock._is_owned():  # type: ignore[attr-defined] # as in threading
            return
        frame = sys._getframe(2).f_back
        while frame is not None:
            if frame.f_code is _RUN and frame.f_locals["self"] is self:
                raise RequestError(
                    f"this {self._name} is in the middle of a call of this thread: a "
                    "signal handler cannot use it; let the handler set a flag"
                )
            frame = frame.f_back


_RUN = Gate.run.__code__
