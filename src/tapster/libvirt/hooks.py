# SPDX-License-Identifier: Apache-2.0
"""Put libvirt's hook on this host, remove it, and tell whether libvirt calls it.

libvirt looks when its daemon starts whether there are hooks at all. A hook that is
added beside others is called at once.
"""

import os
import shlex
from collections.abc import Iterator

from tapster.errors import HostError

FOLDER = "/etc/libvirt/hooks"
HOOK = f"{FOLDER}/qemu.d/50-tapster"
TEMPLATE = os.path.join(os.path.dirname(__file__), "hook.sh")
CALL = "exec /usr/bin/env "
"""The beginning of the template's line that calls the command."""
DAEMONS = ("virtqemud", "libvirtd")
"""The daemons that call the hook: the modular one, and that of all drivers."""


def text(program: str, ledger: str | None) -> str:
    """Return the hook that calls this program, with this ledger."""
    words = [program] if ledger is None else [program, "--ledger", ledger]
    with open(TEMPLATE, encoding="utf-8") as file:
        return file.read().replace("@TAPSTER@", shlex.join(words))


def program() -> str | None:
    """Return the program that the hook calls; None if the hook is another's."""
    try:
        with open(HOOK, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeError):
        return None
    calls = [line for line in lines if line.startswith(CALL)]
    try:
        words = shlex.split(calls[0].partition("<<")[0])
        return words[len(CALL.split())]
    except (IndexError, ValueError):  # somebody has changed the line
        return None


def install(program: str, ledger: str | None) -> list[str]:
    """Write the hook; return the paths that were made. Raise HostError."""
    made = [path for path in _parents(HOOK) if not os.path.isdir(path)]
    temporary = f"{HOOK}.new"
    try:
        os.makedirs(os.path.dirname(HOOK), 0o755, exist_ok=True)
        # libvirt must never find half of the file, or a file that it cannot execute.
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text(program, ledger))
            os.fchmod(file.fileno(), 0o755)
        os.rename(temporary, HOOK)
    except OSError as error:
        raise HostError(f"{HOOK!r} was not written: {error.strerror}") from error
    return [*made, HOOK]


def uninstall() -> list[str]:
    """Remove the hook, and its folders if they are empty; return what was removed."""
    removed = []
    try:
        os.unlink(HOOK)
        removed.append(HOOK)
        for folder in reversed([*_parents(HOOK)]):
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
                removed.append(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"{HOOK!r} was not removed: {error.strerror}") from error
    return removed


def daemon_to_restart() -> str | None:
    """Return the daemon that does not call the hook until it is restarted.

    None if every daemon that runs had hooks already when it started.
    """
    oldest = min((_changed(path) for path in _hooks()), default=None)
    if oldest is None:
        return None
    for daemon in DAEMONS:
        started = _started(daemon)
        if started is not None and started < oldest:
            return daemon
    return None


def _parents(path: str) -> Iterator[str]:
    """Yield the folders that belong to hooks, the outermost first."""
    yield FOLDER
    yield os.path.dirname(path)


def _hooks() -> Iterator[str]:
    """Yield every hook for QEMU domains that libvirt could call."""
    paths = [f"{FOLDER}/qemu"]
    if os.path.isdir(f"{FOLDER}/qemu.d"):
        paths += [f"{FOLDER}/qemu.d/{name}" for name in os.listdir(f"{FOLDER}/qemu.d")]
    yield from (path for path in paths if os.access(path, os.X_OK))


def _changed(path: str) -> float:
    return os.stat(path).st_ctime


def _started(daemon: str) -> float | None:
    """Return when a daemon started, on the wall clock; None if it does not run."""
    try:
        with open(f"/run/{daemon}.pid", encoding="ascii") as file:
            return os.stat(f"/proc/{int(file.read())}").st_ctime
    except (OSError, ValueError):
        return None
