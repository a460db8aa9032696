# SPDX-License-Identifier: Apache-2.0
"""Half a minute of storm does no harm; a storm that does harm says so."""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lines import Lines
from soak.judge import BY_NOBODY, BY_STRANGER, NOT_RECORDED, TOO_SOON, WRONG
from soak.part import BY_NAME, NO_WAIT

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

SOAK = [sys.executable, "-m", "soak", "--seed", "1"]
HARM = "wrongly touched"
STORM_SECONDS = 120.0
"""Seconds for a short storm to end."""
HARMED = 240.0
"""Seconds until harm is done that takes a few on an idle host."""


def table(output: str) -> dict[str, int]:
    """The counts of a storm's table by what they are of."""
    rows = re.findall(r"(?m)^ *(\S.*?) +(\d+)$", output)
    return {what: int(count) for what, count in rows}


def test_a_vm_whose_starter_was_killed_stops_in_order() -> None:
    """A VM that ends without a word looks like a VM that somebody harmed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "soak.vm", "vm/", "foreground"],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_storm_touches_nothing_and_leaves_nothing_I1_I2_I3_I4_I5() -> None:
    done = subprocess.run(
        [*SOAK, "--minutes", "0.5"], stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)  # beside what is wrong, if this fails
    counts = table(done.stdout)
    assert (counts["leaks"], counts[HARM], counts["not seen"]) == (0, 0, 0)
    assert done.returncode == 0
    for what in ("VMs", "kills", "admin", "talks over the wire"):
        assert counts[what] > 0, what
    # It was a storm: names were contested, and strangers met what waits for them.
    assert counts["foreign names stepped around"] > 0
    assert counts["late cleanups that met a waiting device"] > 0


@pytest.mark.parametrize(
    ("broken", "harm"),
    [
        (BY_NAME, {BY_NOBODY}),
        (NO_WAIT, {BY_STRANGER, TOO_SOON, NOT_RECORDED}),
    ],
)
def test_a_storm_sees_the_harm_that_broken_managers_do(
    broken: str, harm: set[str]
) -> None:
    with subprocess.Popen(
        [*SOAK, "--minutes", "10", "--broken", broken],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as soak:
        assert soak.stderr
        told = Lines(soak.stderr)
        missing = set(harm)
        while missing:
            # Whichever comes first; it is told of each kind a few times.
            said = told.wait_for(f"soak: ({'|'.join(missing)}) in", HARMED)
            missing.discard(said[1])
        soak.send_signal(signal.SIGINT)
        output, _ = soak.communicate(timeout=STORM_SECONDS)
    assert soak.returncode == 1
    counts = table(output.decode())
    assert all(counts[kind.removeprefix(WRONG)] > 0 for kind in harm)
    assert counts["leaks"] == 0


@pytest.fixture
def badge() -> Iterator[str]:
    """Something by which every process of a storm is known: it is in their environment.

    Also those that live in other namespaces, or have lost their parents.
    """
    badge = f"SOAK_BADGE={uuid.uuid4()}"
    yield badge
    assert wearers(badge) == []


def wearers(badge: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if badge.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["ctrl-c", "kill-9"],
)
def test_a_storm_leaves_no_process_behind(
    badge: str, number: signal.Signals, status: int
) -> None:
    name, _, value = badge.partition("=")
    with subprocess.Popen(
        [*SOAK, "--minutes", "5"],
        env={**os.environ, name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as soak:
        assert soak.stdout
        Lines(soak.stdout).wait_for("the storm begins", STORM_SECONDS)
        assert wearers(badge)
        soak.send_signal(number)
        # To the end of its output, which all of its processes may write to.
        output, errors = soak.communicate(timeout=STORM_SECONDS)
    assert soak.returncode == status, errors
    assert b"Traceback" not in errors
    assert (HARM in output.decode()) is (number == signal.SIGINT)
