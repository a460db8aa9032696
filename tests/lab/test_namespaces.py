# SPDX-License-Identifier: Apache-2.0
"""The namespaces of a test: all that lives in them ends, and no visitor does."""

import os
import subprocess
import sys
import time

import pytest

from lab.lines import readable
from lab.namespaces import namespaces

pytestmark = pytest.mark.kernel

VISIT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from lab.namespaces import inside
for path in sys.stdin:
    with inside(path.strip()):
        print("inside", flush=True)
        sys.stdin.readline()
print("outside", flush=True)
"""
ORPHAN = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
"""A process that nobody waits for."""


def test_a_process_that_looks_into_the_namespaces_is_spared() -> None:
    """As `recover` does, which looks for a namespace among all of the host."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", VISIT, root]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as visitor:
        assert visitor.stdin
        assert visitor.stdout
        with namespaces():
            visitor.stdin.write(f"/proc/{os.getpid()}/ns/net\n")
            visitor.stdin.flush()
            assert visitor.stdout.readline() == "inside\n"
        said, _ = visitor.communicate("\n")
        assert said == "outside\n"


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param((), id="as the test"),
        pytest.param(("env", "-i"), id="without an environment"),
        pytest.param(("unshare", "--mount"), id="with other mounts"),
        pytest.param(("env", "-i", "unshare", "--net"), id="in another network"),
    ],
)
def test_a_process_that_was_left_in_the_namespaces_ends(
    prefix: tuple[str, ...],
) -> None:
    with namespaces():
        done = subprocess.run(
            [*prefix, "sh", "-c", ORPHAN], capture_output=True, text=True, check=True
        )
        left = os.pidfd_open(int(done.stdout))
    try:
        assert readable(left, time.monotonic() + 10), "it still runs"
    finally:
        os.close(left)


def test_the_mark_of_the_namespaces_is_gone_after_them() -> None:
    before = dict(os.environ)
    with namespaces():
        with namespaces():
            pass
        assert dict(os.environ) != before
    assert dict(os.environ) == before
