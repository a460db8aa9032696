# SPDX-License-Identifier: Apache-2.0
"""The hook by itself: called as libvirt calls it, killed anywhere, and out of time."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, shell
from lab.crashes import Crashes
from lab.library import abandon, close
from lab.libvirt import adopted, domain, uuid_of
from lab.reapers import wait_for
from lab.shell import TAPSTER
from lab.strangers import foreign_tap
from tapster import Host, Lease, LedgerDamaged, LedgerError, Tap
from tapster.libvirt import arrival, hooks
from tapster.libvirt.hook import leases_of

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MOST = 100
"""System calls of a shell that does nothing else."""
WEB = adopted("web", "dev='web0' bridge='br0'", "dev='web1' bridge='br0'")
IFF_VNET_HDR = 0x4000
OWNER = f"libvirt:{uuid_of('web')}"


@pytest.fixture
def script(tmp_path: Path, ledger: Path) -> Path:
    """The hook as `install` writes it."""
    path = tmp_path / "50-tapster"
    path.write_text(hooks.text(TAPSTER, str(ledger)))
    path.chmod(0o755)
    return path


def call(script: Path, phase: str, xml: str) -> "subprocess.CompletedProcess[str]":
    """Call the hook as libvirt does."""
    return subprocess.run(
        [script, "web", phase, "begin", "-"],
        input=xml,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"LC_ALL": "C", "PATH": os.environ["PATH"], "HOME": "/root"},
    )


def another_s(nic: str = "") -> str:
    """Return metadata of another program, and a NIC in it if one is given."""
    return f"""
  <metadata>
    <app:x xmlns:app="urn:app" note="&lt;memory">
      <memory/>
    </app:x>{nic}
  </metadata>"""


@pytest.mark.parametrize("metadata", ["", "\n  <metadata/>", another_s()])
@pytest.mark.parametrize("phase", ["prepare", "stopped", "attach"])
def test_it_costs_little_for_a_domain_that_is_not_tapsters(
    script: Path, phase: str, metadata: str, ledger: Path, tmp_path: Path
) -> None:
    nic = "<interface type='user'/>"
    xml = domain("web", *[nic] * 200, metadata=metadata)
    done = call(script, phase, xml)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not ledger.exists(), "Python did not start"
    seen = tmp_path / "calls"
    command = f"strace -f -o {seen} {script} web {phase} begin -"
    subprocess.run(command.split(), input=xml, text=True, check=True)
    calls = seen.read_text().splitlines()
    assert sum("execve(" in call for call in calls) == 1, "no further program"
    assert not any("clone" in call or "fork" in call for call in calls)
    # The shell reads byte by byte, but not the 200 NICs.
    assert len(calls) < MOST + xml.index("<devices>")


@pytest.mark.parametrize(
    "metadata",
    [
        "<metadata>{}</metadata>",
        "\n  <metadata>{}\n  </metadata>",
        "\n  <metadata><a xmlns='urn:a'><metadata>\n</metadata></a>\n{}</metadata>",
        "\n  <metadata><a xmlns='urn:a'>\n<metadata>\n</metadata></a>\n{}</metadata>",
        another_s("{}"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_it_finds_its_metadata_wherever_that_stands(
    script: Path, host: Host, metadata: str, end: str
) -> None:
    line = "<metadata>"
    nics = WEB[WEB.index(line) + len(line) : WEB.index("</metadata>")]
    xml = WEB.replace(f"{line}{nics}</metadata>", metadata.format(nics))
    done = call(script, "prepare", xml.rstrip() + end)
    assert (done.returncode, done.stderr) == (0, "")
    assert [lease.name for lease in leases(host)] == ["web0", "web1"]


def leases(host: Host) -> list[Lease]:
    return host.leases(all=False)


def test_the_phases_of_a_domains_life(script: Path, host: Host) -> None:
    assert call(script, "prepare", WEB).returncode == 0
    first = leases(host)
    assert [(lease.name, lease.owner) for lease in first] == [
        ("web0", OWNER),
        ("web1", OWNER),
    ]
    assert first[0].process is not None
    assert first[0].process.pid == os.getpid(), "the caller's, as is libvirtd"
    assert call(script, "start", WEB).returncode == 0
    assert call(script, "started", WEB).returncode == 0
    assert call(script, "release", WEB).returncode == 0
    assert leases(host) == []
    assert call(script, "release", WEB).returncode == 0, "it may be repeated"
    assert call(script, "prepare", WEB).returncode == 0
    second = leases(host)
    assert [lease.name for lease in second] == ["web0", "web1"]
    assert {lease.ifindex for lease in second}.isdisjoint(
        {lease.ifindex for lease in first}
    )


def test_a_users_lease_with_the_owner_of_a_domain_is_left_alone(
    script: Path, host: Host
) -> None:
    """A user who acquired and released such leases made a domain's start fail, if one
    was released between being listed and being bound."""
    spec = Tap(bridge="br0", name="m%d", owner=OWNER)
    ((planted, fds, _),) = host.operations.acquire([spec], caller_uid=1000)
    close(fds)
    for phase in ("prepare", "start", "started"):
        assert call(script, phase, WEB).returncode == 0
        names = [lease.name for lease in leases_of(host, OWNER)]
        assert names == ["web0", "web1"]
    assert call(script, "release", WEB).returncode == 0
    assert leases(host) == [planted]


@pytest.mark.parametrize("name", ["-x", "--help", "--ledger", "a b", "${x}", "ü"])
def test_a_domain_may_have_any_name(script: Path, host: Host, name: str) -> None:
    xml = WEB.replace("<name>web</name>", f"<name>{name}</name>")
    for phase, leases in (("prepare", 2), ("release", 0)):
        done = subprocess.run(
            [script, name, phase, "begin", "-"], input=xml.encode(), check=False
        )
        assert done.returncode == 0
        assert len(host.leases(all=False)) == leases


def test_what_a_former_start_left_is_replaced(script: Path, host: Host) -> None:
    for _ in range(2):
        assert call(script, "prepare", WEB).returncode == 0
    assert len(leases(host)) == 2


def test_a_device_that_was_deleted_while_the_domain_starts(
    script: Path, host: Host
) -> None:
    call(script, "prepare", WEB)
    shell.sh("ip link del web1")
    done = call(script, "start", WEB)
    assert done.returncode == 1
    assert "another program deleted web1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_waiting_device_that_a_vm_has_opened_is_not_deleted(
    script: Path, host: Host
) -> None:
    call(script, "prepare", WEB)
    call(script, "release", WEB)
    fd = foreign_tap("web0", flags=IFF_VNET_HDR)
    done = call(script, "prepare", WEB)
    assert done.returncode == 1
    assert "then a process opened it" in done.stderr
    os.close(fd)
    assert call(script, "prepare", WEB).returncode == 0


def test_the_host_that_a_vm_comes_to_has_its_devices_on_standby(
    script: Path, host: Host
) -> None:
    done = call(script, "migrate", WEB)
    assert (done.returncode, done.stdout) == (0, ""), "the XML stays as it is"
    waiting = leases(host)
    assert [lease.wiring.standby for lease in waiting] == [True, True]
    assert iproute.ports() == set()
    assert call(script, "prepare", WEB).returncode == 0
    assert leases(host) == waiting, "prepare takes them over"


def test_a_host_without_virsh_cannot_see_a_vm_arrive(
    script: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(programs))
    assert call(script, "migrate", WEB).returncode == 0
    assert leases(host) == []
    assert call(script, "prepare", WEB).returncode == 0
    assert [lease.wiring.standby for lease in leases(host)] == [False, False]


def test_a_lease_that_cannot_be_repaired_hinders_no_domain(
    script: Path, host: Host, ledger: Path
) -> None:
    abandon(ledger)
    assert call(script, "prepare", WEB).returncode == 0
    assert {"web0", "web1"} <= {lease.name for lease in leases(host)}


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virsh that says that each domain runs. The test adds what else it does."""
    path = tmp_path / "virsh"
    path.write_text('#!/bin/sh\ncase "$*" in *domstate*) echo running; exit ;; esac\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def test_the_devices_of_a_vm_that_arrives_are_taken_off_standby(
    script: Path, host: Host, virsh: Path
) -> None:
    """They are in the hook's ledger. The default ledger has no such lease."""
    for phase in ("migrate", "prepare", "start"):
        assert call(script, phase, WEB).returncode == 0
    assert iproute.ports() == set()
    assert call(script, "started", WEB).returncode == 0
    wait_for(lambda: iproute.ports() == {"web0", "web1"}, "the VM is connected")


def test_a_device_that_cannot_be_taken_off_standby_is_tried_again(
    script: Path, host: Host, ledger: Path, virsh: Path
) -> None:
    call(script, "migrate", WEB)
    shell.sh("ip link set br0 name away")
    with virsh.open("a") as file:  # while no event comes
        file.write("exec ip link set away name br0\n")
    arrival.wait(uuid_of("web"), str(ledger))
    assert iproute.ports() == {"web0", "web1"}


def fail_once(patch: pytest.MonkeyPatch, error: LedgerError) -> None:
    """Let the next change of a lease fail."""
    errors = iter([error])
    plain = Host.set

    def fail_or_set(*arguments: Any, **changes: Any) -> Lease:
        for error in errors:
            raise error
        return plain(*arguments, **changes)

    patch.setattr(Host, "set", fail_or_set)


def test_a_vm_that_arrives_while_the_disk_is_full_is_connected_later(
    script: Path,
    host: Host,
    ledger: Path,
    virsh: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call(script, "migrate", WEB)
    fail_once(monkeypatch, LedgerError("the disk is full"))
    arrival.wait(uuid_of("web"), str(ledger))
    assert iproute.ports() == {"web0", "web1"}


def test_the_wait_for_a_vm_ends_if_the_ledger_is_damaged(
    script: Path,
    host: Host,
    ledger: Path,
    virsh: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call(script, "migrate", WEB)
    fail_once(monkeypatch, LedgerDamaged("the file is not a ledger"))
    with pytest.raises(LedgerDamaged):
        arrival.wait(uuid_of("web"), str(ledger))
    assert iproute.ports() == set()


@pytest.mark.parametrize("change", ["", " '", " /usr/bin/tapster"])
def test_a_hook_that_somebody_has_changed_calls_no_known_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    hook = tmp_path / "hook"
    hook.write_text(hooks.CALL + change)
    monkeypatch.setattr(hooks, "HOOK", str(hook))
    assert hooks.program() == (change.strip() if "/" in change else None)


def test_it_never_calls_libvirt(
    script: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = tmp_path / "called"
    virsh = tmp_path / "virsh"
    virsh.write_text(f"#!/bin/sh\necho $* >>{called}\n")
    virsh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for phase in ("prepare", "start", "started", "reconnect", "stopped", "release"):
        done = call(script, phase, WEB)
        assert (done.returncode, done.stderr) == (0, ""), phase
    assert not called.exists()


@pytest.mark.parametrize("phase", ["started", "reconnect"])
def test_it_never_fails_where_libvirt_would_kill_the_vm(
    script: Path, phase: str
) -> None:
    broken = WEB.replace("dev='web0' bridge='br0'/>", "bridge='br0'/>")
    assert call(script, phase, broken).returncode == 0
    script.write_text(script.read_text().replace(TAPSTER, "/no/such/program"))
    assert call(script, phase, WEB).returncode == 0


@pytest.mark.parametrize(
    ("xml", "wrong"),
    [
        (WEB.replace("bridge='br0'/>", "switch='br0'/>"), "attribute 'switch'"),
        (WEB.replace("bridge='br0'/>", "bridge='br0' isolated='1'/>"), "yes or no"),
        (WEB.replace("bridge='br0'/>", "bridge='br0' mtu='big'/>"), "mtu: "),
        (WEB.replace("bridge='br0'/>", "bridge='br9'/>"), "br9"),
        (WEB.replace("managed='no'", ""), "managed='no'"),
        ("<domain>urn:tapster:libvirt:1", "not well-formed"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(script: Path, xml: str, wrong: str) -> None:
    done = call(script, "prepare", xml)
    assert done.returncode in (1, 2)
    assert wrong in done.stderr
    assert len(done.stderr.splitlines()) == 1


IMPATIENT = """
import sys
from tapster.cli import libvirt, main
libvirt.HOOK_SECONDS = libvirt.GRACE_SECONDS = 1
sys.exit(main(sys.argv[1:]))
"""
"""The command, whose hook gives up after a second, or two."""


@pytest.mark.parametrize("stuck", ["while-it-waits-for-libvirt", "in-a-call"])
def test_it_ends_in_time_and_says_so(host: Host, ledger: Path, stuck: str) -> None:
    command = [sys.executable, "-c", IMPATIENT, "--ledger", str(ledger)]
    command += ["libvirt", "hook", "web", "prepare", "begin", "-"]
    pipe = subprocess.PIPE
    with (
        closing(sqlite3.connect(ledger, isolation_level=None)) as other,
        subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True) as hook,
    ):
        assert hook.stdin
        assert hook.stderr
        if stuck == "in-a-call":
            # SQLite waits longer, and runs no signal handler of Python's.
            other.execute("BEGIN IMMEDIATE")
            hook.stdin.write(WEB)
            hook.stdin.close()
        said = hook.stderr.read()
    assert hook.returncode == 1
    late = "tapster: prepare took longer than 1 s; tapster doctor may say why\n"
    assert said == late


class HookCrashes(Crashes):
    """Kill the hook at few of its system calls: other tests kill its operations."""

    def __init__(self, ledger: Path) -> None:
        super().__init__(ledger)
        self.calls = {"sendto": 2, "ioctl": 2, "pwrite64": 20}


@pytest.fixture
def crashes(ledger: Path, tmp_path: Path) -> Iterator[HookCrashes]:
    crashes = HookCrashes(ledger)
    crashes.input = tmp_path / "web.xml"
    crashes.input.write_text(WEB)
    yield crashes
    crashes.host.close()


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_a_hook_that_is_killed_anywhere_can_be_called_again_I5(
    crashes: HookCrashes, script: Path
) -> None:
    for where in crashes.killed("libvirt", "hook", "web", "prepare", "begin", "-"):
        crashes.repair(where)
        assert call(script, "prepare", WEB).returncode == 0, where
        active = [one.name for one in leases(crashes.host)]
        assert active == ["web0", "web1"], where
        crashes.clear()
    assert crashes.kills > 9


@pytest.mark.crash
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", ["start", "started", "release"])
def test_a_later_phase_that_is_killed_anywhere_can_be_called_again_I5(
    crashes: HookCrashes, script: Path, phase: str
) -> None:
    pids = Path("/run/libvirt/qemu")
    pids.mkdir(parents=True)
    (pids / "web.pid").write_text(str(os.getpid()))
    assert call(script, "prepare", WEB).returncode == 0
    for where in crashes.killed("libvirt", "hook", "web", phase, "begin", "-"):
        crashes.repair(where)
        assert call(script, phase, WEB).returncode == 0, where
        active = [one.name for one in leases(crashes.host)]
        if phase == "release":
            assert active == [], where
            assert call(script, "prepare", WEB).returncode == 0, where
        else:
            assert active == ["web0", "web1"], where
    assert crashes.kills
