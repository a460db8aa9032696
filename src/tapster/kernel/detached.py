# SPDX-License-Identifier: Apache-2.0
"""Starting a process that belongs to init and not to its starter."""

import _signal as signal  # type: ignore[import-not-found] # it has no stub
import os
import sys
from errno import EAGAIN, ENOTSUP

from tapster.light import suppress

_OWN_UNIT = """\
timeout 10 systemd-run --quiet --collect --same-dir --property=KillMode=process \
    ${PYTHONPATH+--setenv=PYTHONPATH} -- "$@" || { "$@" & }"""


KEPT = 3
"""The number of the descriptor that a process inherits."""


def start(module: str, *arguments: str, keep: int | None = None) -> None:
    """Run `python -m MODULE ARGUMENTS` in a new session, without input or output.

    The process becomes a child of init. So the caller has no zombie to collect. If the
    caller is in a service of systemd, the process gets a unit of its own: systemd kills
    what a service leaves behind. If the process is killed, its children go on.

    With `keep`, a descriptor such as that of a lock, the process has a copy of it and a
    further argument, the number of the copy; but not in a unit of its own.

    Raise OSError.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        raise OSError(
            ENOTSUP,
            "this program has no Python interpreter to start it with: run tapsterd, or "
            "give Host a reaper that runs: python3 -m tapster.reaper LEDGER",
        )
    # -P: take no module from the caller's working directory.
    command = [sys.executable, "-P", "-m", module, *arguments]
    script, kept = '"$@" &', keep is not None
    if _in_a_service():
        script, kept = _OWN_UNIT, False  # systemd passes no descriptor on
    if kept:
        command.append(str(KEPT))
    shell = ["sh", "-c", script, "sh", *command]
    # The process must not keep the caller's other descriptors, such as locks, open. And
    # it must be possible to end it, whatever signals the caller blocks or ignores.
    fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
    pid = os.posix_spawn(
        "/bin/sh",
        shell,
        _environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
            *([(os.POSIX_SPAWN_DUP2, keep, KEPT)] if kept else ()),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in fds if fd > (KEPT if kept else 2)),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
    )
    with suppress(ChildProcessError):  # the caller ignores SIGCHLD
        _, status = os.waitpid(pid, 0)
        if status:
            raise OSError(EAGAIN, "the shell could not fork")


def _environment() -> dict[str, str]:
    """Return an environment in which a new interpreter finds this package.

    A program may have brought the package along, in a folder or an archive that it put
    into its own `sys.path`.
    """
    environment = dict(os.environ)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    place = os.path.dirname(package)
    site = sys.modules.get("site")
    if site is None or place not in site.getsitepackages():
        further = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{place}:{further}" if further else place
    return environment


def _in_a_service() -> bool:
    """Tell whether systemd could run the process in a unit, seeing the same host."""
    if os.geteuid() or not os.path.isdir("/run/systemd/system"):
        return False
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
            if ".service" not in file.read():
                return False
        # The new unit has the namespaces of init. Elsewhere it would miss the devices.
        return all(
            os.path.samefile(f"/proc/thread-self/ns/{kind}", f"/proc/1/ns/{kind}")
            for kind in ("net", "mnt")
        )
    except OSError:
        return False
