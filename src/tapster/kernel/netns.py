# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: finding, entering and telling them apart.

Each thread is in one network namespace. A tap is created in that of the thread that
opens /dev/net/tun. A later namespace can have the inode number of an earlier one, but
not its cookie (SO_NETNS_COOKIE, socket(7)).
"""

import fcntl
import os
import struct
from errno import EBADFD, EINVAL, ELOOP, ENODEV, ENOTTY, ENXIO

from tapster.kernel import sockets
from tapster.kernel.descriptors import closing_on_error
from tapster.kernel.files import absolute
from tapster.light import AbstractContextManager, Any, Iterator, contextmanager

SO_NETNS_COOKIE = 71
NS_GET_NSTYPE = 0xB703
CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
HOST = "/proc/1/ns/net"
"""The namespace of the host, or of the container."""
NAMED = "/run/netns"
"""Where `ip netns` keeps the names of namespaces (ip-netns(8))."""
INITIAL_PIDNS = 0xEFFFFFFC
"""The inode of the initial pid namespace (PROC_PID_INIT_INO)."""
GONE = (FileNotFoundError, NotADirectoryError, ProcessLookupError)
"""The errors which mean that nothing is at a path. Other errors do not tell."""
_OTHER_FILES = (ELOOP, ENODEV, ENXIO)
"""The errors of a link to itself, a device that is missing, and a socket."""


def path_of(where: str) -> str:
    """Return the path of a namespace that is given by name or path."""
    return absolute(where) if "/" in where else f"{NAMED}/{where}"


def known_path() -> str:
    """Return a named path of the calling thread's namespace, or "" if it has none."""
    wanted = os.stat(OWN)
    try:
        paths = named()
    except OSError:
        return ""  # the names may not be for every user
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue  # it is no namespace that this thread could be in
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return path
    return ""


def named() -> list[str]:
    """Return the paths of the namespaces that have a name."""
    try:
        return [f"{NAMED}/{name}" for name in sorted(os.listdir(NAMED))]
    except GONE:
        return []


def sees_all(of: int) -> bool:
    """Return whether all processes of a pid namespace can be seen here."""
    own = pidns()
    return own != 0 and own in (of, INITIAL_PIDNS)


def pidns() -> int:
    """Return the inode of the pid namespace that /proc shows, or 0.

    0 means that /proc was mounted in another pid namespace than the caller's.
    """
    if os.readlink("/proc/self") != str(os.getpid()):
        return 0
    return os.stat("/proc/self/ns/pid").st_ino


def open_netns(path: str) -> int:
    """Open the namespace at `path`. The caller closes the descriptor.

    Raise OSError, with EINVAL if there is something else than a network namespace.
    """
    # A FIFO must not make its opener wait.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _OTHER_FILES:
            raise OSError(EINVAL, "not a network namespace", path) from error
        raise
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError as error:
        kind = 0
        # These say that it is no namespace. EBADFD comes from a tap.
        if error.errno not in (EINVAL, ENOTTY, EBADFD):
            os.close(fd)
            raise
    if kind != CLONE_NEWNET:
        os.close(fd)
        raise OSError(EINVAL, "not a network namespace", path)
    return fd


def leads_elsewhere(path: str) -> bool:
    """Return whether a link is on the way to `path`."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False  # nothing is there to be opened
    try:
        return os.readlink(f"/proc/self/fd/{fd}") != path
    finally:
        os.close(fd)


def is_at(path: str, wanted: int) -> bool:
    """Return whether the namespace with a cookie is at `path`, with no link on the way.

    The path may change at any time. All of the answer is about one file.
    """
    try:
        there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        itself = f"/proc/self/fd/{there}"
        if os.readlink(itself) != path:
            return False
        opened = open_netns(itself)
    except OSError:
        return False  # it is something else
    finally:
        os.close(there)
    try:
        with inside(opened):
            return cookie() == wanted
    finally:
        os.close(opened)


def cookie() -> int:
    """Return the cookie of the calling thread's namespace."""
    probe = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC)
    try:
        raw = probe.getsockopt(sockets.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    finally:
        probe.close()
    (value,) = struct.unpack("Q", raw)
    return int(value)


class inside:
    """Run a block in the namespace `fd`. Other threads stay where they are.

    Signals wait until the block has ended, so the block must be short.
    """

    # A class, because the thread is mostly there, and a generator takes longer than
    # the two looks.

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._visit: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        there, here = os.fstat(self._fd), os.stat(OWN)
        if (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev):
            self._visit = _visiting(self._fd)
            self._visit.__enter__()

    def __exit__(self, *failure: Any) -> None:  # noqa: PYI036 - passed on
        if self._visit is not None:
            self._visit.__exit__(*failure)


@contextmanager
def _visiting(fd: int) -> Iterator[None]:
    with coming_back():
        from tapster.kernel.libc import setns

        setns(fd, CLONE_NEWNET)
        yield


def is_nothing_at(path: str) -> bool:
    """Return whether nothing is at a path, for certain."""
    try:
        os.stat(path)
    except GONE:
        return True
    except OSError:
        pass
    return False


def is_hosts() -> bool:
    """Return whether the calling thread is in the namespace of the host, or of the
    container. Raise OSError if /proc hides it."""
    # As in all_namespaces.py: init may have more privileges than root.
    there, here = "/proc/1/net/dev", "/proc/thread-self/net/dev"
    return os.stat(there).st_ino == os.stat(here).st_ino


def leave() -> None:
    """Go into a new namespace, which has only a `lo` that is down. Raise OSError."""
    from tapster.kernel.libc import unshare

    unshare(CLONE_NEWNET)


def new_empty() -> int:
    """Return a descriptor of a new namespace, which has only a `lo` that is down.

    The caller closes the descriptor. Then the namespace ends.
    """
    with closing_on_error() as fds:
        with coming_back():
            from tapster.kernel.libc import unshare

            unshare(CLONE_NEWNET)
            fds.append(open_netns(OWN))
        return fds[0]


@contextmanager
def coming_back() -> Iterator[None]:
    """Return to the thread's namespace when the block has ended, however it ends."""
    from tapster.kernel.libc import setns
    from tapster.kernel.signals import deferred

    with deferred():
        own = open_netns(OWN)
        try:
            setns(own, CLONE_NEWNET)  # a thread that may not come back must not leave
            try:
                yield
            finally:
                try:
                    setns(own, CLONE_NEWNET)
                except OSError:
                    # The kernel was short of memory. Try once more: a thread that
                    # stayed would do all its other work in the wrong namespace.
                    setns(own, CLONE_NEWNET)
        finally:
            os.close(own)
