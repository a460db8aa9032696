# SPDX-License-Identifier: Apache-2.0
"""System calls that Python has no function for, under their own names.

`ctypes` takes 3 ms to import. So only the code that needs one of these calls imports
this module: for other network namespaces, and for macvtaps.
"""

import ctypes
import os
import struct
from errno import EINVAL, ENOSYS

from tapster.light import NamedTuple

AT_FDCWD = -100
AT_NO_AUTOMOUNT = 0x800
AT_STATX_DONT_SYNC = 0x4000
CLONE_NEWNET = 0x40000000
FSCONFIG_CMD_CREATE = 6
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1

RESOLVE_CACHED = 0x20

# The same on every architecture since Linux 5.1 (alpha aside).
_FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _PIDFD_GETFD = 430, 431, 432, 437, 438

_BPF = {"x86_64": 321, "i386": 357, "i686": 357, "ppc64le": 361, "s390x": 351}
"""bpf(2) has other numbers on older architectures; on newer ones it is 280."""

_STATX = struct.Struct("128x4I112x")
"""struct statx: the device that a file is, and the device that the file is on."""

_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, nstype: int) -> None:
    """Call setns(2) for the calling thread."""
    _check(_libc.setns(fd, nstype), "setns")


def unshare(flags: int) -> None:
    """Call unshare(2) for the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents end.

    PR_SET_CHILD_SUBREAPER of prctl(2). Children do not inherit this.
    """
    _check(_libc.prctl(36, 1, 0, 0, 0), "prctl")


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a copy of a descriptor of another process: pidfd_getfd(2)."""
    return _syscall(_PIDFD_GETFD, pidfd, number, 0)


def getsockopt(fd: int, level: int, option: int, asked: bytes) -> bytes:
    """Call getsockopt(2) with a value that says what is asked for."""
    value = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint32(len(asked))
    _check(
        _libc.getsockopt(fd, level, option, value, ctypes.byref(length)), "getsockopt"
    )
    return value.raw


class DeviceNumbers(NamedTuple):
    """Two fields of stat(2)."""

    st_dev: int
    st_rdev: int


def devices(path: str) -> DeviceNumbers:
    """Return what device a file is on, and what device it is.

    The file system is not asked. It may be that of a server that does not answer, and
    stat(2) would wait for as long.
    """
    buffer = ctypes.create_string_buffer(_STATX.size)
    flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), flags, 0, buffer), "statx")
    major, minor, on_major, on_minor = _STATX.unpack(buffer)
    return DeviceNumbers(os.makedev(on_major, on_minor), os.makedev(major, minor))


def open_cached(folder: int, path: str) -> int:
    """Open a path below a folder with O_PATH, without asking any file system.

    Raise OSError; EAGAIN if the kernel would have to ask one. The kernel keeps the way
    to each mount point. Before Linux 5.12 a file system may be asked.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    how = struct.pack("QQQ", flags, 0, RESOLVE_CACHED)
    try:
        return _syscall(_OPENAT2, folder, os.fsencode(path), how, len(how))
    except OSError as error:
        if error.errno not in (EINVAL, ENOSYS):
            raise
        return os.open(path, flags, dir_fd=folder)


def mount_detached(fstype: str) -> int:
    """Mount a file system that is attached nowhere. The caller closes the descriptor.

    The mount needs no mount namespace. It ends with its descriptor, however the process
    ends. A sysfs shows the network namespace of the thread that mounted it.
    """
    context = _syscall(_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2). The kernel takes attributes that it does not know if they are zero."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 152))
    number = _BPF.get(os.uname().machine, 280)
    return _check(_libc.syscall(number, command, buffer, len(buffer)), "bpf")


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    return _check(_libc.syscall(number, *arguments), f"system call {number}")


def _check(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), call)
    return result
