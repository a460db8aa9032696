# SPDX-License-Identifier: Apache-2.0
"""What asks virsh, with a virsh that does as the real one does, and changes nothing."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from select import select

import pytest

from lab import iproute, library
from lab.library import abandon
from lab.libvirt import adopted, domain, uuid_of
from lab.shell import TAPSTER, sh
from tapster import Host, HostError, Tap
from tapster.libvirt import doctor, listing, virsh
from tapster.libvirt.hook import owner_of

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

PIDS = Path("/run/libvirt/qemu")

VIRSH = """#!/bin/sh
case "$*" in
    *list*--uuid*) echo "{web} web"; echo "{seven} 7"; exit ;;
    *list*) echo web; echo 7; exit ;;
    *"--domain web"* | *"--domain 7"* | *{web}*) name=web ;;
    *{seven}*) name=7 ;;
    *) exit 1 ;;
esac
case "$*" in
    *domstate*) echo running ;;
    *dumpxml*) exec cat {folder}/$name.xml ;;
    *metadata*) echo "$*" > {folder}/metadata ;;
esac
"""
"""A number is an id before it is a name: domain web has the id 7."""


@pytest.fixture(autouse=True)
def running(
    world: None, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Domains web and 7 run."""
    monkeypatch.setenv("TAPSTER_LEDGER", str(ledger))
    program = tmp_path / "virsh"
    uuids = {"web": uuid_of("web"), "seven": uuid_of("7")}
    program.write_text(VIRSH.format(folder=tmp_path, **uuids))
    (tmp_path / "web.xml").write_text(domain("web"))
    (tmp_path / "7.xml").write_text(adopted("7", "dev='seven0' bridge='br0'"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    PIDS.mkdir(parents=True)
    (PIDS / "web.pid").write_text(str(os.getpid()))


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


def test_two_devices_that_are_attached_at_once_are_both_in_the_metadata(
    tmp_path: Path,
) -> None:
    """The second attach took the first one's nic for one that was unplugged."""
    with (PIDS / "web.pid").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as the first attach does
        words = [TAPSTER, "libvirt", "attach", "web", "--bridge", "br0"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as second:
            wait_until_it_waits(second)
            first = adopted("web", "dev='first' plugged='yes' bridge='br0'")
            (tmp_path / "web.xml").write_text(first)
            fcntl.flock(held, fcntl.LOCK_UN)
            (name,) = second.communicate()[0].decode().split()
    metadata = (tmp_path / "metadata").read_text()
    assert metadata.count("plugged=") == 2
    assert name in metadata
    assert "first" in metadata


def wait_until_it_waits(process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process waits for a lock, or has ended."""
    ended = os.pidfd_open(process.pid)
    try:
        while not select([ended], [], [], 0.01)[0]:
            for line in Path("/proc/locks").read_text().splitlines():
                if "->" in line and f" {process.pid} " in line:
                    return
    finally:
        os.close(ended)


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


@pytest.fixture
def leased(ledger: Path) -> Iterator[Host]:
    """A Host with the device of domain 7, which nobody has open."""
    with Host(ledger, reaper=library.no_reaper) as host:
        spec = Tap(bridge="br0", name="seven0", owner=owner_of(uuid_of("7")))
        library.acquire(host, spec)
        yield host


def test_a_domain_whose_name_is_a_number_is_not_taken_for_an_id(leased: Host) -> None:
    """doctor said to release the device, and another domain was adopted."""
    found = [problem.description for problem in doctor.examine(leased)]
    assert found == ["libvirt's hook is missing: adopted domains do not start"]
    rows = [(row.domain, row.nic, row.lease) for row in listing.rows(leased)]
    assert rows == [("7", "seven0", "active")]
    released = subprocess.run(
        [TAPSTER, "libvirt", "release", "--dry-run", "7"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "seven0" in released.stdout + released.stderr


def test_a_domain_of_which_libvirt_does_not_tell_keeps_its_device(
    leased: Host, tmp_path: Path
) -> None:
    """As during a job that holds the domain's lock."""
    (tmp_path / "7.xml").unlink()
    for problem in doctor.examine(leased):
        assert "libvirt lacks" not in problem.description


def test_a_mistake_in_a_domains_metadata_hides_nothing_else(
    leased: Host, tmp_path: Path
) -> None:
    right = adopted("web", "dev='web0' bridge='br0'")
    (tmp_path / "web.xml").write_text(right.replace("nic dev='web0'", "nic"))
    found = [problem.description for problem in doctor.examine(leased)]
    assert found == [
        "libvirt's hook is missing: adopted domains do not start",
        "domain web: a tapster:nic of the metadata has no dev",
    ]
    assert [(row.domain, row.nic) for row in listing.rows(leased)] == [("7", "seven0")]


def test_a_problem_with_libvirt_does_not_hide_those_of_the_host(
    leased: Host, tmp_path: Path
) -> None:
    (tmp_path / "web.xml").write_text("<domain>urn:tapster:libvirt:1")
    sh("ip link set br0 down")
    done = subprocess.run(
        [TAPSTER, "doctor"], check=False, capture_output=True, text=True
    )
    assert "bridge br0 is down, with VMs on it" in done.stdout
