# SPDX-License-Identifier: Apache-2.0
"""Plugging devices into a domain, with a virsh that does nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import iproute
from lab.library import abandon
from lab.libvirt import domain
from lab.shell import TAPSTER
from tapster import HostError
from tapster.libvirt import virsh

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

VIRSH = """#!/bin/sh
case "$*" in
    *domstate*) echo running ;;
    *dumpxml*) echo "{xml}" ;;
esac
"""


@pytest.fixture(autouse=True)
def running(
    world: None, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Domain web runs."""
    monkeypatch.setenv("TAPSTER_LEDGER", str(ledger))
    program = tmp_path / "virsh"
    program.write_text(VIRSH.format(xml=domain("web").replace('"', "'")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pids = Path("/run/libvirt/qemu")
    pids.mkdir(parents=True)
    (pids / "web.pid").write_text(str(os.getpid()))


def attach(*command: str) -> "subprocess.CompletedProcess[str]":
    words = [*command, TAPSTER, "libvirt", "attach", "web", "--bridge", "br0"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_lease_that_cannot_be_repaired_hinders_no_other_domain(ledger: Path) -> None:
    abandon(ledger)
    attached = attach()
    assert attached.returncode == 0, attached.stderr
    assert iproute.ports() == {attached.stdout.strip()}
    command = [TAPSTER, "libvirt", "detach", "web", attached.stdout.strip()]
    subprocess.run(command, check=True)
    assert iproute.ports() == set()


def test_a_libvirtd_that_is_stopped_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virsh waits for it without end."""
    (tmp_path / "virsh").write_text("#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(virsh, "ANSWER_SECONDS", 0.1)
    with pytest.raises(HostError, match=r"virsh list: no answer in 0\.1 s"):
        virsh.domains()


def test_the_caller_may_ignore_its_children() -> None:
    """The command inherits that, and still gets the status of virsh."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    attached = attach(sys.executable, "-c", code)
    assert attached.returncode == 0, attached.stderr
