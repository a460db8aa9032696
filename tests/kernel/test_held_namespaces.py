# SPDX-License-Identifier: Apache-2.0
"""Looking at another process's descriptors: one may be another file by then."""

import fcntl
import os
import subprocess
import sys
from errno import EINVAL
from pathlib import Path

import pytest

from tapster.kernel.held_namespaces import open_if_namespace
from tapster.kernel.netns import OWN

TRY_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), 6)"  # EX and NB


def test_a_namespace_is_opened() -> None:
    fd = open_if_namespace(os.open(OWN, os.O_PATH), os.stat(OWN).st_dev)
    assert os.fstat(fd).st_ino == os.stat(OWN).st_ino
    os.close(fd)


def test_another_file_keeps_the_locks_that_this_process_has_on_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db.lock"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        found = os.open(f"/proc/self/fd/{file.fileno()}", os.O_PATH)
        with pytest.raises(OSError, match="not a namespace") as raised:
            open_if_namespace(found, os.stat(OWN).st_dev)
        assert raised.value.errno == EINVAL
        command = [sys.executable, "-c", TRY_LOCK, str(path)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert b"BlockingIOError" in done.stderr, "the lock is gone"
