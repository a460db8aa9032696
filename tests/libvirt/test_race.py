# SPDX-License-Identifier: Apache-2.0
"""The race under libvirt: it happens on libvirt's own taps, and not on Tapster's."""

import pytest

from demo.libvirt_race import SITUATIONS, Result, host, race

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(240)]

ROUNDS = 3
ENDS, RESTARTS, AGAIN = SITUATIONS


def rounds(way: str, situation: str) -> Result:
    with host(way) as made:
        return race(made, situation, ROUNDS)


def test_libvirts_own_names_return_when_its_daemon_restarts() -> None:
    assert rounds("libvirt", RESTARTS) == Result(ROUNDS, ROUNDS, ROUNDS)


@pytest.mark.parametrize("situation", [ENDS, RESTARTS])
def test_no_late_cleanup_by_name_reaches_another_vm_on_tapsters_device(
    situation: str,
) -> None:
    assert rounds("hook", situation) == Result(ROUNDS, 0, 0)


def test_tapsterd_repairs_what_is_done_to_a_domain_that_is_started_again() -> None:
    assert rounds("tapsterd", AGAIN) == Result(ROUNDS, ROUNDS, 0)
