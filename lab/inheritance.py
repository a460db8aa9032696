# SPDX-License-Identifier: Apache-2.0
"""Undo what a process inherits from its starter: no test result may depend on it.

A shell starts a background job of a script with SIGINT ignored, nohup ignores SIGHUP,
and users choose their own umask, locale, time zone, limits and TAPSTER_LEDGER.
"""

import os
import resource
import signal
import time

VARIABLES = ("TAPSTER_", "LC_", "LANG", "LISTEN_", "NOTIFY_SOCKET", "OVS_", "PYTHON")
"""Beginnings of the names of environment variables that a test must not see."""

TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "POSIXLY_CORRECT")
"""Variables that change what a program prints."""

OPEN_FILES = 4096
"""Enough for a tap with 256 queues on the kernel in memory."""

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders of programs that a user without privileges may lack in PATH."""


def disinherit() -> None:
    """Give this process, and so its children, one known environment."""
    _reset_signals()
    _reset_variables()
    _reset_limits()
    os.umask(0o022)


def _reset_signals() -> None:
    """Let every signal act as it does in a process that a terminal starts."""
    for number in signal.valid_signals():
        # Python itself ignores SIGPIPE and SIGXFSZ; subprocess restores them.
        ours = number in (signal.SIGPIPE, signal.SIGXFSZ)
        if signal.getsignal(number) is signal.SIG_IGN and not ours:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _reset_variables() -> None:
    for name in list(os.environ):
        if name.startswith(VARIABLES) or name in TERMINAL:
            del os.environ[name]
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ["TZ"] = "UTC"
    time.tzset()
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [folder for folder in SBIN if folder not in path]
    os.environ["PATH"] = os.pathsep.join([*path, *missing])


def _reset_limits() -> None:
    """Raise each soft limit to its hard limit; set the number of open files."""
    for kind in (
        resource.RLIMIT_AS,
        resource.RLIMIT_CPU,
        resource.RLIMIT_DATA,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_NPROC,
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (hard, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
