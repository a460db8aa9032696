# SPDX-License-Identifier: Apache-2.0
"""A backup of the ledger is restored as docs/operation.md says, while VMs run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.shell import sh
from tapster import Host, Tap

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
