# SPDX-License-Identifier: Apache-2.0
"""Deferring signals, so that Ctrl-C cannot come between a step and its undoing."""

# The module `signal` makes an enum member of each signal in a mask that it returns: 60
# at every end of a block, which takes longer than a system call.
import _signal as signal  # type: ignore[import-not-found] # it has no stub

from tapster.light import Self

# A process causes these signals itself. If it blocks them, the kernel kills it.
_FAULTS = {
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGTRAP,
}
_DEFERRED = signal.valid_signals() - _FAULTS


class deferred:
    """Deliver no signal to the calling thread before the block has ended.

    Python raises KeyboardInterrupt between any two instructions of the main thread,
    also inside `finally`. So `try` alone cannot undo a step for certain. Here a signal
    waits in the kernel (pthread_sigmask(3)), and raises after the undoing. The kernel
    may hand a signal to another thread that does not block it. So a program with
    several threads should handle signals in the main thread (signalfd(2), a wakeup
    descriptor), and call Tapster in another, as the daemon does.
    """

    # A class, because a generator takes as long as the two system calls.

    def __enter__(self) -> None:
        # First ask for the mask, then change it. Changing it may already raise.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRED)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            raise

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


class Deferral:
    """Defer signals from a moment inside a block until the end of the block."""

    def __init__(self) -> None:
        self._deferred: deferred | None = None

    def begin(self) -> None:
        """Defer signals from now on."""
        later = deferred()
        later.__enter__()
        self._deferred = later

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._deferred is not None:
            self._deferred.__exit__()


def keep_statuses() -> None:
    """Let this process get the status of each child that ends.

    A process whose starter ignores SIGCHLD, as many daemons do, ignores it too. Then
    the kernel keeps no status, and waitpid(2) fails.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def raised_by_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the program has raised an error.

    A handler may end a call so, as a time limit does. Such an error is the program's.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {
        getattr(handler, "__code__", getattr(type(handler).__call__, "__code__", None))
        for handler in handlers
        if callable(handler)
    }
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False
