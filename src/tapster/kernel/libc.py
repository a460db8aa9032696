# SPDX-License-Identifier: Apache-2.0
"""System calls that Python has no function for, under their own names.

`ctypes` costs 3 ms to import, and only callers that need one of these pay it:
network namespaces other than the caller's own, and macvtap.
"""

import ctypes
import os

CLONE_NEWNET = 0x40000000
FSCONFIG_CMD_CREATE = 6
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1

# The same on every architecture since Linux 5.1 (alpha aside).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432

_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, nstype: int) -> None:
    """setns(2), for the calling thread."""
    _check(_libc.setns(fd, nstype), "setns")


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def mount_detached(fstype: str) -> int:
    """A new mount that is attached nowhere, as a descriptor; the caller closes it.

    It needs no mount namespace and leaves nothing behind, however the process
    ends. sysfs shows the network namespace of the calling thread.
    """
    context = _syscall(_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    return _check(_libc.syscall(number, *arguments), f"system call {number}")


def _check(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), call)
    return result
