# SPDX-License-Identifier: Apache-2.0
"""`tapster run` in units of its own: what systemd kills, and what goes with it."""

from pathlib import Path

import pytest

from tests.host.inside.world import leases, links, sh, state, wait_until

VM = "tapster run --bridge br0 --fin-wait 3 -- sleep infinity"


@pytest.fixture(autouse=True)
def _clean_units() -> None:
    sh("systemctl reset-failed")


def start(ledger: Path, mode: str, unit: str = "vm.service") -> str:
    """Start a unit that is a VM; return the name of its tap."""
    sh(
        f"systemd-run --quiet --collect --unit {unit} --property KillMode={mode} "
        f"--property TimeoutStopSec=10 --property SuccessExitStatus=143 "
        f"--setenv TAPSTER_LEDGER={ledger} {VM}"
    )
    wait_until(lambda: "vnet0" in links() and bool(leases()), "the VM has its tap")
    return "vnet0"


@pytest.mark.parametrize("mode", ["control-group", "mixed", "process"])
@pytest.mark.usefixtures("bridge")
def test_stopping_a_unit_ends_its_lease(ledger: Path, mode: str) -> None:
    name = start(ledger, mode)
    sh("systemctl stop vm.service")
    assert state("vm.service", "ActiveState") == "inactive"
    wait_until(lambda: name not in links(), f"{name} is reaped")
    assert leases() == {}


@pytest.mark.usefixtures("bridge")
def test_a_unit_that_is_killed_whole_leaves_nothing(ledger: Path) -> None:
    name = start(ledger, "control-group")
    sh("systemctl kill --signal SIGKILL vm.service")
    assert set(leases()) <= {name}  # any command looks after what was left
    wait_until(lambda: name not in links(), f"{name} is reaped")
    assert leases() == {}


@pytest.mark.usefixtures("bridge")
def test_the_end_of_the_unit_that_started_the_reaper_does_not_end_reaping(
    ledger: Path,
) -> None:
    name = start(ledger, "control-group")
    other = sh("tapster add --bridge br0 --fin-wait 5").strip()
    sh(
        f"systemd-run --quiet --wait --collect --setenv TAPSTER_LEDGER={ledger} "
        f"tapster rm {other}"
    )
    sh("systemctl stop vm.service")
    wait_until(lambda: not {name, other} & links().keys(), "both are reaped")
