# SPDX-License-Identifier: Apache-2.0
"""Random walks agree with the model, on the host in memory and on the real one.

`make differential STEPS=100000 SEED=7` takes longer walks, and others. A failure names
the seed, and the same seed fails again.
"""

import os
from pathlib import Path

import pytest

from lab import fake_and_real
from tests.differential.walk import Walk

SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))
STEPS = int(os.environ.get("DIFFERENTIAL_STEPS", "20000"))
WALKS = 4
"""Walks in memory, which share the steps and can run at once."""
REAL = 50
"""The real host takes one step where those in memory take so many."""
COMPARE_EVERY = 20
KINDS = 10


def take(lab: fake_and_real.ContractLab, ledger: Path, seed: int, steps: int) -> Walk:
    """Walk so many steps."""
    walk = Walk(lab, ledger, seed)
    for number in range(steps):
        try:
            walk.step()
            if number % COMPARE_EVERY == 0:
                walk.compare_kernel()
        except BaseException as error:
            error.add_note(f"seed {seed}, step {number}")
            raise
    walk.compare_kernel()
    walk.close()
    return walk


@pytest.mark.slow
@pytest.mark.parametrize("walk", range(WALKS))
def test_two_hosts_in_memory_do_what_the_model_says(tmp_path: Path, walk: int) -> None:
    with fake_and_real.fake() as lab:
        steps = STEPS // WALKS
        done = take(lab, tmp_path / "ledger.db", SEED * WALKS + walk, steps).done
    assert len(done) == KINDS or steps < 1000, "every kind of step was taken"


@pytest.mark.kernel
def test_two_hosts_on_the_real_host_do_what_the_model_says(tmp_path: Path) -> None:
    with fake_and_real.real() as lab:
        take(lab, tmp_path / "ledger.db", SEED, STEPS // REAL)
