# SPDX-License-Identifier: Apache-2.0
"""A backup of the ledger is restored as docs/operation.md says, while VMs run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import iproute, nftables, openvswitch
from lab.openvswitch import OpenVswitch, switch, vsctl
from lab.shell import sh
from tapster import Host, Tap

__all__ = ["switch"]

pytestmark = pytest.mark.kernel

PAGE = Path(__file__).parents[2] / "docs" / "operation.md"


def back_up(ledger: Path, backup: Path) -> None:
    """Run the command of the page, with other paths."""
    (command,) = re.findall(r"# (python3 -c (?:.*\n)+?)```", PAGE.read_text())
    command = command.replace("/var/lib/tapster/ledger.db", str(ledger))
    command = command.replace("/srv/backup/ledger.db", str(backup))
    subprocess.run(shlex.split(command), check=True)


def test_a_restored_ledger_knows_its_leases_and_leaves_other_devices(
    world: None, tmp_path: Path
) -> None:
    ledger, backup = tmp_path / "ledger.db", tmp_path / "backup.db"
    with Host(ledger) as host:
        kept = host.acquire(Tap(bridge="br0"))
        ended = host.acquire(Tap(bridge="br0", fin_wait=0))
        back_up(ledger, backup)
        host.release(ended.id)
        later = host.acquire(Tap(bridge="br0", name="later"))
        before = sh("ip -j link show later")
    for file in tmp_path.glob("ledger.db-*"):
        file.unlink()
    shutil.copy(backup, ledger)
    with Host(ledger) as host:
        host.recover()
        assert [lease.id for lease in host.leases()] == [kept.id]
        assert sh("ip -j link show later") == before
        (problem,) = host.examine()
        assert "later carries this ledger's stamp" in problem.description
    later.close()
    kept.close()
    ended.close()


def test_a_restored_ledger_leaves_what_later_vms_are_connected_to(
    world: None, switch: OpenVswitch, tmp_path: Path
) -> None:
    """Each has a device with the ledger's stamp, so it is no leftover."""
    ledger, backup = tmp_path / "ledger.db", tmp_path / "backup.db"
    with Host(ledger) as host:
        back_up(ledger, backup)
        filtered = host.acquire(Tap(bridge="br0", filter=True))
        _, id, _ = iproute.links()[filtered.name]["ifalias"].split(":")
        switched = host.acquire(Tap(ovs="ovs0", name="switched"))
        gone = host.acquire(Tap(ovs="ovs0", name="gone", fin_wait=0))
        before = nftables.elements(f"tapster_{id}_filter")
        assert before["ports"]
    for file in tmp_path.glob("ledger.db-*"):
        file.unlink()
    shutil.copy(backup, ledger)
    gone.close()
    sh("ip link del gone")
    with Host(ledger) as host:
        host.recover()
        assert nftables.elements(f"tapster_{id}_filter") == before
        assert openvswitch.ports() == ["switched"]
        assert vsctl("get Interface switched link_state") == "up"
        for problem in host.examine():
            assert "carries this ledger's stamp" in problem.description
            assert problem.remedy.startswith("only if no VM uses it")
    filtered.close()
    switched.close()
