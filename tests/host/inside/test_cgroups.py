# SPDX-License-Identifier: Apache-2.0
"""`tapster run` in units of its own: what systemd kills, and what goes with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.inside.world import leases, links, run, sh, state, wait_until

UNIT = "tapster-vm@web.service"
VM = "tapster run --bridge br0 --fin-wait 3 -- sleep infinity"


@pytest.fixture(autouse=True)
def _clean_units() -> None:
    sh("systemctl reset-failed")


@pytest.fixture
def vm_file() -> Iterator[None]:
    """What tapster-vm@web.service reads."""
    file = Path("/etc/tapster/vms/web.conf")
    file.parent.mkdir(exist_ok=True)
    file.write_text("NICS=--bridge br0 --name web --fin-wait 1\nCOMMAND=sleep infinity")
    yield
    sh(f"systemctl stop {UNIT}")
    wait_until(lambda: "web" not in links(), "web is reaped")
    file.unlink()


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
def test_a_vm_that_outlives_its_unit_keeps_its_lease(ledger: Path) -> None:
    name = start(ledger, "none")
    pid = state("vm.service", "MainPID")
    sh("systemctl stop vm.service")
    assert set(leases()) == {name}
    assert leases()[name]["state"] == "active"
    sh(f"kill {pid}")
    wait_until(lambda: name not in links(), f"{name} is reaped")


@pytest.mark.usefixtures("bridge", "vm_file")
def test_systemd_does_not_stop_a_vm_that_restarts_at_once() -> None:
    seen: list[str] = []

    def started() -> bool:
        vm = run(f"pgrep -x sleep -P {state(UNIT, 'MainPID')}").stdout.strip()
        if vm in ("", *seen):
            return False
        seen.append(vm)
        return True

    sh(f"systemctl start {UNIT}")
    assert state(UNIT, "StartLimitIntervalUSec") == "0"  # else the sixth start fails
    for _ in range(2):
        wait_until(started, "the VM runs")
        assert links()["web"]["master"] == "br0"
        sh(f"kill -KILL {seen[-1]}")
    wait_until(started, "the VM runs")
    assert state(UNIT, "NRestarts") == "2"
    assert set(leases()) == {"web"}


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


def reapers(ledger: Path) -> list[int]:
    """The pids of the standby and the leader."""
    return sorted(map(int, run(f"pgrep -f tapster.reaper.*{ledger}").stdout.split()))


@pytest.mark.parametrize("how", ["KILL", "STOP"])
@pytest.mark.parametrize("which", [0, 1], ids=["standby", "leader"])
@pytest.mark.usefixtures("bridge")
def test_a_reaper_in_a_unit_of_its_own_outlives_the_loss_of_a_process(
    ledger: Path, how: str, which: int
) -> None:
    name = sh("tapster add --bridge br0 --fin-wait 20").strip()
    sh(
        f"systemd-run --quiet --wait --collect --setenv TAPSTER_LEDGER={ledger} "
        f"tapster rm {name}"
    )
    wait_until(lambda: len(reapers(ledger)) == 2, "a leader and a standby run")
    both = reapers(ledger)
    assert ".service" in Path(f"/proc/{both[0]}/cgroup").read_text()
    sh(f"kill -{how} {both[which]}")
    wait_until(lambda: name not in links(), f"{name} is reaped")
    run(f"kill -CONT {both[0]}")
    wait_until(lambda: not reapers(ledger), "the reapers end")
