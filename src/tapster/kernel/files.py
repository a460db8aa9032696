# SPDX-License-Identifier: Apache-2.0
"""The files of a ledger: for their owner alone, and for whoever may be root beside."""

import os
from contextlib import suppress


def make(path: str) -> None:
    """Make an empty file unless it is there: what is in it is nobody else's business.

    Made by root it belongs to the owner of its directory: a daemon that is not root
    has to open what the command made before it. So does SQLite with the files beside
    its own (robustFchown() in os_unix.c).
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with suppress(FileExistsError):
        made = os.open(path, flags, 0o600)
        try:
            owner = os.stat(os.path.dirname(path))
            if os.geteuid() == 0 != owner.st_uid:
                with suppress(PermissionError):  # root without CAP_CHOWN keeps it
                    os.fchown(made, owner.st_uid, owner.st_gid)
        finally:
            os.close(made)
