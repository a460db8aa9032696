# SPDX-License-Identifier: Apache-2.0
"""Run a child process that starts on command and outlives a killed supervisor.

The supervisor forks the child first, and the child waits. The supervisor records the
child's process id in the ledger. Then the child may exec. So the child never runs
without a record. If the supervisor is killed before that, the child sees the pipe close
and ends. If the supervisor is killed later, the child goes on, and the lease ends with
the child.
"""

import os
import signal
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from tapster.errors import KernelError
from tapster.kernel import signals
from tapster.light import NoReturn, Self

PASSED_ON = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
Mask = set[int | signal.Signals]
"""The type that pthread_sigmask takes and returns."""

SI_KERNEL = 128
"""The `si_code` of a signal that the terminal made: sigaction(2)."""


@contextmanager
def signals_blocked() -> Iterator[Mask]:
    """Block the signals that `Child.wait` waits for; yield the earlier mask."""
    signals.keep_statuses()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A forked process that is to become a command. Use it in `signals_blocked`."""

    def __init__(
        self,
        command: Sequence[str],
        fds: Iterable[int],
        mask: Mask,
        environment: Mapping[str, str],
    ) -> None:
        """Fork; the child inherits `fds`, blocks `mask`, and waits for `go`."""
        self.siblings: set[int] = set()
        """The children that this process had before: a script may start helpers, and
        then become this process by exec."""
        with suppress(OSError):  # without /proc no child is found later, either
            self.siblings.update(_children())
        try:
            may_go, self._go = os.pipe()
            self._failure, failed = os.pipe()  # both close-on-exec
            self.pid = os.fork()
        except OSError as error:
            raise KernelError(error.errno or 0, f"starting {command[0]!r}") from error
        if self.pid == 0:
            try:
                os.close(self._go)
                _become(command, fds, mask, environment, may_go, failed)
            finally:
                os._exit(127)
        os.close(may_go)
        os.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pipes. A child that was not told to go ends."""
        self._close_go()
        os.close(self._failure)

    def go(self) -> None:
        """Let the child become the command. Raises OSError if it cannot.

        Raises KeyboardInterrupt if a signal to stop has come since the fork: a signal
        from the terminal that came before the fork has not reached the child.
        """
        if is_stopped():
            raise KeyboardInterrupt
        os.write(self._go, b"!")
        self._close_go()
        if code := os.read(self._failure, 16):
            os.waitpid(self.pid, 0)
            raise OSError(int(code), os.strerror(int(code)))

    def wait(self) -> int:
        """Pass signals on until the child ends; its status, as a shell's `$?`."""
        while True:
            caught = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
            if caught.si_signo == signal.SIGCHLD:
                status = self._collect()
                if status is not None:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
            elif caught.si_code != SI_KERNEL:
                # What the terminal sends reaches the whole process group.
                os.kill(self.pid, caught.si_signo)

    def _collect(self) -> int | None:
        """Collect children that have ended; return the status of the command, if it is
        one of them.

        A process that the command leaves becomes a child of this process: see
        `adopt_orphans`. As zombies, such processes would use up the process ids.
        """
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self.pid:
                return status
            if not pid:
                return None
            self.siblings.discard(pid)  # it may be the pid of another process now

    def _close_go(self) -> None:
        if self._go >= 0:
            os.close(self._go)
            self._go = -1


def living_children(siblings: Collection[int]) -> list[int]:
    """Return the pids of this process's children that have not ended, without
    `siblings`.

    Those that a command left in the background are among them, if the process adopts
    orphans. First come the VMs: those that have a tap or macvtap open. A command may
    also leave helpers, such as swtpm. Otherwise the oldest comes first.
    """
    living = []
    for pid in sorted({*_children()} - {*siblings}):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            living.append(pid)
    return sorted(living, key=lambda pid: not _has_device(pid))


def _children() -> Iterator[int]:
    """Yield the pids of this process's children. Raises OSError."""
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            yield from map(int, file.read().split())


def _has_device(pid: int) -> bool:
    """Return whether a process has a tap or macvtap open."""
    folder = f"/proc/{pid}/fd"
    try:
        for fd in os.listdir(folder):
            # A macvtap was opened on a mount that no path leads to.
            if os.readlink(f"{folder}/{fd}").startswith(("/dev/net/tun", "/tap")):
                return True
    except OSError:
        pass  # it has ended, or it closed a file, or it may not be looked into
    return False


def is_stopped() -> bool:
    """Return whether a signal to stop has come in `signals_blocked`."""
    pending = set(signal.sigpending()) & PASSED_ON
    return any(signal.getsignal(number) != signal.SIG_IGN for number in pending)


def _become(
    command: Sequence[str],
    fds: Iterable[int],
    mask: Mask,
    environment: Mapping[str, str],
    may_go: int,
    failed: int,
) -> None:
    if not os.read(may_go, 1):
        return
    try:
        become(command, fds, mask, environment)
    except OSError as error:
        os.write(failed, str(error.errno).encode())


def become(
    command: Sequence[str],
    fds: Iterable[int],
    mask: Mask | None,
    environment: Mapping[str, str],
) -> NoReturn:
    """Become a command that has these descriptors and blocks these signals.

    None for `mask`: those that are blocked now. Raises OSError.
    """
    for fd in fds:
        os.set_inheritable(fd, True)
    # Python ignores these two, and exec would hand that on.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.execvpe(command[0], list(command), environment)
