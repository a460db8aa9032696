# SPDX-License-Identifier: Apache-2.0
"""Enter fresh network and mount namespaces, and leave them again.

Network namespaces belong to threads: only the main thread steps in, and it must not
share the work with others that were started before.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.keeper import MARK

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

KEEPER = Path(__file__).with_name("keeper.py")


def _call(name: str, *arguments: int) -> None:
    # The os module has unshare and setns only from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _open_namespace(stack: ExitStack, kind: str) -> int:
    fd = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Move the calling thread into another network namespace for a moment."""
    with ExitStack() as stack:
        own = _open_namespace(stack, "net")
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, there)
        _call("setns", there, CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", own, CLONE_NEWNET)


def _go_home(net: int, mnt: int, cwd: str) -> None:
    _call("setns", net, CLONE_NEWNET)
    # setns refuses a mount namespace to a thread that shares its working directory
    # with another one, such as a watchdog thread.
    _call("unshare", CLONE_FS)
    _call("setns", mnt, CLONE_NEWNS)
    os.chdir(cwd)


def _keep(stack: ExitStack, host: int) -> None:
    command = [sys.executable, "-IS", str(KEEPER), str(host)]
    keeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, start_new_session=True, cwd="/"
    )
    # Leaving the context closes its stdin and waits until it has done its work.
    stack.enter_context(keeper)


def _mark(stack: ExitStack) -> None:
    """Let every process that is started inherit where it lives."""
    before = os.environ.get(MARK)
    if before is None:
        stack.callback(os.environ.pop, MARK, None)
    else:
        stack.callback(os.environ.__setitem__, MARK, before)
    os.environ[MARK] = str(os.stat("/proc/thread-self/ns/net").st_ino)


def _mount() -> None:
    for arguments in (
        ["--make-rprivate", "/"],
        # sysfs shows the network namespace of the one who mounted it.
        ["-t", "sysfs", "sysfs", "/sys"],
        ["-t", "tmpfs", "tmpfs", "/run"],
    ):
        subprocess.run(["mount", *arguments], check=True)


@contextmanager
def namespaces() -> Iterator[None]:
    """Enter fresh namespaces: an empty network, an empty /run, nothing shared.

    At the end the thread is back where it was, and every process that lives in the
    network namespace is killed. The namespaces vanish with the last of them.
    """
    with ExitStack() as stack:
        net, mnt = _open_namespace(stack, "net"), _open_namespace(stack, "mnt")
        host, cwd = os.fstat(net).st_ino, os.getcwd()
        _call("unshare", CLONE_NEWNET | CLONE_NEWNS)
        _mark(stack)
        _keep(stack, host)
        stack.callback(_go_home, net, mnt, cwd)
        _mount()
        yield
