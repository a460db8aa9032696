# SPDX-License-Identifier: Apache-2.0
"""Fail any chosen system call of a child process, with any error.

The child loads a seccomp filter that lets every call of some kinds wait for the
word of its parent: go on, or fail so (seccomp_unotify(2)). So the kernel refuses
Python, SQLite and ctypes alike, and only in the steps and at the calls that a test
names; strace can do that for a whole process only, and costs a start for each call.
"""

import ctypes
import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import traceback
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

HANG_MS = 20_000
"""Milliseconds after which a silent child counts as hanging."""

SCMP_ACT_ALLOW = 0x7FFF0000
SCMP_ACT_NOTIFY = 0x7FC00000
SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1

_NOTIF = struct.Struct("QIIiIQ6Q")  # id, pid, flags; nr, arch, ip, args
_RESP = struct.Struct("QqiI")  # id, val, error, flags

Script = Iterator[object]
"""The work of a child: each step ends with a `yield` of its result."""


class Fault(NamedTuple):
    """Fail the `number`-th call of a kind in a step; if lasting, all later ones too."""

    call: str
    errno: int
    number: int = 1
    lasting: bool = False

    def __str__(self) -> str:
        on = " and every later one" if self.lasting else ""
        code = os.strerror(self.errno)
        return f"{self.call} number {self.number}{on} fails: {code}"


class FaultyChild:
    """A child process that does one step of its script at a time."""

    def __init__(
        self, script: Callable[[], Script], calls: Iterable[str] = ("execve",)
    ) -> None:
        """Fork; the calls named in `calls` can be failed."""
        self._control, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._control.close()
                _live(theirs, calls, script)
            finally:
                os._exit(1)
        theirs.close()
        _, ancillary, _, _ = self._control.recvmsg(
            1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
        )
        assert ancillary, "the filter could not be loaded"
        (self._listener,) = array("i", ancillary[0][2])
        self.calls: Counter[str] = Counter()
        """How many calls of each kind the last step made."""
        self._names = {_number(call): call for call in calls}
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._control, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._listener)
        self._control.close()

    def step(self, fault: Fault | None = None) -> Any:
        """Let the child do its next step; return the step's result."""
        self.calls = Counter()
        self._control.send(b"!")
        while True:
            ready = self._poll.poll(HANG_MS)
            assert ready, f"the child hangs: {fault}"
            if any(fd == self._control.fileno() for fd, _ in ready):
                what, said = pickle.loads(self._control.recv(1 << 20))  # noqa: S301
                assert what == "said", f"{fault}: {said}"
                return said
            self._answer(fault)

    def _answer(self, fault: Fault | None) -> None:
        """Let a waiting call go on, or fail."""
        note = fcntl.ioctl(self._listener, SECCOMP_IOCTL_NOTIF_RECV, bytes(_NOTIF.size))
        id_, _, _, number, *_ = _NOTIF.unpack(note)
        call = self._names[number]
        self.calls[call] += 1
        answer = _RESP.pack(id_, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)
        if fault and call == fault.call:
            late = self.calls[call] - fault.number
            if late == 0 or (late > 0 and fault.lasting):
                answer = _RESP.pack(id_, 0, -fault.errno, 0)
        fcntl.ioctl(self._listener, SECCOMP_IOCTL_NOTIF_SEND, answer)


def _live(
    control: socket.socket, calls: Iterable[str], script: Callable[[], Script]
) -> None:
    """Be the child. It speaks by calls that no test fails: readv and writev."""
    fd = control.fileno()

    def say(*message: object) -> None:
        os.writev(fd, [pickle.dumps(message)])

    listener = _load_filter(calls)
    control.sendmsg(
        [b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [listener]))]
    )
    os.close(listener)
    try:
        steps = script()
        while os.readv(fd, [bytearray(1)]):
            say("said", next(steps))
    except BaseException:  # noqa: BLE001 - it is the parent's
        say("raised", traceback.format_exc())


_seccomp = ctypes.CDLL("libseccomp.so.2")
_seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
_seccomp.seccomp_init.restype = ctypes.c_void_p
_seccomp.seccomp_rule_add.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
]
_seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
_seccomp.seccomp_notify_fd.argtypes = [ctypes.c_void_p]


def _number(call: str) -> int:
    number = int(_seccomp.seccomp_syscall_resolve_name(call.encode()))
    assert number >= 0, f"there is no system call {call!r}"
    return number


def _load_filter(calls: Iterable[str]) -> int:
    """Hold these calls until the owner of the returned descriptor decides."""
    context = _seccomp.seccomp_init(SCMP_ACT_ALLOW)
    for call in calls:
        assert not _seccomp.seccomp_rule_add(context, SCMP_ACT_NOTIFY, _number(call), 0)
    assert _seccomp.seccomp_load(context) == 0
    return int(_seccomp.seccomp_notify_fd(context))
