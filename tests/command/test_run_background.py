# SPDX-License-Identifier: Apache-2.0
"""The leases of `tapster run` last as long as the VM, not as long as the command."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import ExitStack
from errno import EACCES
from pathlib import Path

import pytest

from lab import iproute, shell
from lab.daemon import Daemon
from lab.library import no_reaper
from lab.reapers import Monitor, reapers, wait_dead, wait_for
from lab.strangers import foreign_tap
from tapster import Host, LeaseBusy, Tap
from tapster.cli import run as run_verb

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world", "own_ledger")]

TAPSTER = str(Path(sys.executable).with_name("tapster"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [TAPSTER, "run", "--bridge", "br0", "--fin-wait", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def states() -> dict[str, str]:
    shown = subprocess.run(
        [TAPSTER, "ls", "--all", "--json"], capture_output=True, check=True
    )
    return {
        lease["name"]: lease["state"] for lease in json.loads(shown.stdout)["leases"]
    }


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_command_in_the_background_keeps_its_device(ledger: Path) -> None:
    done = run("--", "sh", "-c", "sleep 1000 <&{fd} >/dev/null 2>&1 & echo $!")
    vm = int(done.stdout)
    assert done.returncode == 0
    assert f"goes on as process {vm}" in done.stderr
    link = iproute.links()["vnet0"]
    assert (link["master"], "UP" in link["flags"]) == ("br0", True)
    assert states() == {"vnet0": "active"}
    with Monitor() as monitor:
        kill(vm)
        monitor.wait_deleted("vnet0")  # no command was typed


def test_a_helper_that_was_started_before_keeps_no_device(ledger: Path) -> None:
    """A script starts it, and then becomes the command, as at the end of a wrapper."""
    helper = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
    tapster = f"exec {TAPSTER} run --bridge br0 -- true"
    done = subprocess.run(
        ["sh", "-c", f"{helper}; {tapster}"],
        capture_output=True,
        text=True,
        check=False,
    )
    kill(int(done.stdout))
    assert (done.returncode, done.stderr) == (0, "")
    assert states() == {"vnet0": "fin_wait"}


LEAVE = """
import os, select, sys, time
told, tell = os.pipe()
if not (child := os.fork()):
    if left := os.fork():
        os.write(tell, str(left).encode())
    os._exit(0)
os.waitpid(child, 0)
left = os.read(told, 16).decode()
end = time.monotonic() + 20
while os.path.exists(f"/proc/{left}"):
    if time.monotonic() > end:
        sys.exit(f"process {left} is a zombie")
    select.select([], [], [], 0.01)
"""
"""It leaves a process that ends, as a VMM may do for each connection for months."""


def test_no_zombie_stays_of_what_the_command_leaves(ledger: Path) -> None:
    done = run("--", sys.executable, "-c", LEAVE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("errors", ["/dev/full", "a pipe that is read no more"])
def test_a_command_in_the_background_keeps_its_device_whoever_hears_of_it(
    ledger: Path, errors: str
) -> None:
    if errors == "/dev/full":
        heard = os.open(errors, os.O_WRONLY)
    else:
        reader, heard = os.pipe()
        os.close(reader)
    background = "sleep 1000 <&{fd} >/dev/null 2>&1 & echo $!"
    done = subprocess.run(
        [TAPSTER, "run", "--bridge", "br0", "--", "sh", "-c", background],
        stdout=subprocess.PIPE,
        stderr=heard,
        text=True,
        check=False,
    )
    os.close(heard)
    assert done.returncode == 0
    assert states() == {"vnet0": "active"}
    kill(int(done.stdout))


@pytest.mark.parametrize("failing", ["bind", "device", "listdir"])
def test_a_device_stays_if_it_cannot_be_told_whether_a_process_has_it(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """As while another command works on the lease, or the daemon restarts."""

    def fail(*_: object) -> None:
        raise LeaseBusy("another process works on it")

    def children(_: object) -> list[int]:
        if failing == "listdir":
            raise PermissionError(EACCES, "Permission denied", "/proc/self/task")
        return [os.getpid()] if failing == "bind" else []

    monkeypatch.setattr("tapster.cli.run.living_children", children)
    with Host(ledger, reaper=no_reaper) as host, host.acquire(Tap()) as opened:
        monkeypatch.setattr(host, failing, fail, raising=failing != "listdir")
        assert run_verb.goes_on(host, [opened])


def test_a_look_of_a_reaper_is_not_taken_for_a_process(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reaper attaches to a tap for a moment to find out whether a process has it."""
    with Host(ledger, reaper=no_reaper) as host, host.acquire(Tap()) as opened:

        def bind(*_: object) -> None:
            opened.close()  # it stands for the reaper's descriptor

        monkeypatch.setattr("tapster.cli.run.living_children", lambda _: [])
        monkeypatch.setattr(host, "bind", bind)
        assert not run_verb.goes_on(host, [opened])


def test_a_daemon_that_opens_the_tap_by_name_keeps_it(ledger: Path) -> None:
    opener = (
        "import fcntl, os, struct, signal\n"
        "name = os.environ['TAPSTER_NAME'].encode()\n"
        "tun = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(tun, 0x400454CA, struct.pack('16sH22x', name, 0x5002))\n"
        "if pid := os.fork():\n"
        "    print(pid)\n"
        "else:\n"
        "    os.setsid()\n"
        "    null = os.open('/dev/null', os.O_RDWR)\n"
        "    [os.dup2(null, fd) for fd in (0, 1, 2)]\n"
        "    signal.pause()\n"
    )
    done = run("--", sys.executable, "-c", opener)
    assert done.returncode == 0, done.stderr
    assert states() == {"vnet0": "active"}
    with Monitor() as monitor:
        kill(int(done.stdout))
        monitor.wait_deleted("vnet0")


def test_a_device_stays_although_another_of_its_vm_was_lost(ledger: Path) -> None:
    nics = ["--nic", "bridge=br0", "--nic", "bridge=br0"]
    command = [TAPSTER, "run", "--no-vnet-hdr", *nics, "--", "sh", "-c", "echo; read _"]
    pipe = subprocess.PIPE
    started = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
    )
    assert started.stdout
    started.stdout.readline()
    shell.sh("ip link del vnet0")
    for verb in ("recover", "reap --now"):
        shell.sh(f"{TAPSTER} {verb}")
    assert states() == {"vnet1": "active"}
    held = foreign_tap("vnet1")
    _, said = started.communicate("\n")
    assert said.startswith("tapster: a process still has vnet1 open")
    assert iproute.links()["vnet1"]["master"] == "br0"
    with Monitor() as monitor:
        os.close(held)
        monitor.wait_deleted("vnet1")


@pytest.mark.parametrize("who", ["command", "daemon"])
def test_a_macvtap_stays_although_its_process_ends_before_run_sees_that(
    who: str, monkeypatch: pytest.MonkeyPatch, ledger: Path
) -> None:
    """`run` stands still, so somebody else is the first to look at the lease."""
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    with ExitStack() as stack:
        if who == "daemon":
            daemon = stack.enter_context(Daemon(root=True))
            daemon.start()
            monkeypatch.setenv("TAPSTER_LEDGER", str(daemon.ledger))
        command = [TAPSTER, "run", "--link", "low", "--fin-wait", "1", "--"]
        go_on = "sleep 1000 <&{fd} >/dev/null 2>&1 & echo $! $$; read go"
        run = stack.enter_context(
            subprocess.Popen(
                [*command, "sh", "-c", go_on],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert run.stdin
        assert run.stdout
        vm, parent = map(int, run.stdout.readline().split())
        ended = os.pidfd_open(parent)
        run.send_signal(signal.SIGSTOP)
        run.stdin.close()
        assert select.select([ended], [], [], 30)[0]
        os.close(ended)
        assert states() == {"vnet0": "active"}  # ls settles first
        run.kill()  # it never learns of the VM
        assert states() == {"vnet0": "active"}
        assert "UP" in iproute.links()["vnet0"]["flags"]
        with Monitor() as monitor:
            kill(vm)
            monitor.wait_deleted("vnet0")  # no command was typed


def test_a_lease_ends_with_the_vm_and_not_with_its_helper() -> None:
    starter = (
        "from subprocess import DEVNULL, Popen\n"
        "def start(*fds):\n"
        "    quiet = dict(stdout=DEVNULL, stderr=DEVNULL, pass_fds=fds)\n"
        "    print(Popen(['sleep', '1000'], **quiet).pid)\n"
        "start()\n"
        "start({fd})\n"
    )
    done = run("--", sys.executable, "-c", starter)
    pids = [int(word) for word in done.stdout.split()]
    assert f"goes on as process {pids[1]}" in done.stderr
    try:
        with Monitor() as monitor:
            kill(pids[1])
            monitor.wait_deleted("vnet0")
    finally:
        kill(pids[0])


def test_one_lost_device_leaves_the_others_to_a_vm_in_the_background() -> None:
    rm = f'{TAPSTER} rm "$TAPSTER_LEASE0"'
    lose = f"{rm}; sleep 1000 <&{{fd1}} >/dev/null 2>&1 & echo $!"
    nics = ["--nic", "bridge=br0", "--nic", "bridge=br0"]
    done = run(*nics, "--", "bash", "-c", lose)
    vm = int(done.stdout)
    try:
        assert states() == {"vnet0": "fin_wait", "vnet1": "active"}, done.stderr
        assert iproute.ports() == {"vnet1"}
    finally:
        kill(vm)


def test_the_lease_ends_although_run_was_killed_and_no_command_is_typed(
    ledger: Path,
) -> None:
    command = [TAPSTER, "run", "--bridge", "br0", "--fin-wait", "1", "--"]
    command += ["sh", "-c", "echo $$; exec sleep 1000 <&{fd}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        vm = int(process.stdout.readline())
        process.kill()
    with Monitor() as monitor:
        kill(vm)
        monitor.wait_deleted("vnet0")


def test_descriptors_are_open_only_where_the_command_names_them() -> None:
    listing = "ls -l /proc/self/fd | grep -c net/tun"
    assert run("--", "sh", "-c", f"{listing} # {{fd}}").stdout.strip() == "1"
    assert run("--", "sh", "-c", f"{listing} # {{name}}").stdout.strip() == "0"
    both = ["--nic", "bridge=br0", "--nic", "bridge=br0,queues=2"]
    assert run(*both, "--", "sh", "-c", f"{listing} # {{fds1}}").stdout.strip() == "2"


def test_the_environment_has_the_devices_properties() -> None:
    done = run(
        *("--nic", "mac=52:54:00:00:00:01", "--nic", "mac=52:54:00:00:00:02"),
        *("--", "sh", "-c", "env | grep ^TAPSTER_ | sort # {fd1}"),
    )
    shown = dict(line.split("=") for line in done.stdout.splitlines())
    assert shown["TAPSTER_NAME"] == shown["TAPSTER_NAME0"] == "vnet0"
    assert shown["TAPSTER_NAME1"] == "vnet1"
    assert shown["TAPSTER_MAC1"] == "52:54:00:00:00:02"
    assert shown["TAPSTER_IFINDEX0"].isdecimal()
    assert {"TAPSTER_LEASE0", "TAPSTER_LEASE1", "TAPSTER_FD1"} <= shown.keys()
    assert "TAPSTER_FD0" not in shown


def test_cloud_hypervisors_list_of_descriptors() -> None:
    done = run("--queues", "2", "--", "echo", "fd={fdlist}")
    first, second = json.loads(done.stdout.partition("=")[2])
    assert first != second


def test_a_waiting_device_that_another_program_deletes_is_replaced_at_once(
    ledger: Path,
) -> None:
    command = [TAPSTER, "add", "--bridge", "br0", "--name", "held", "--fin-wait", "60"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([TAPSTER, "rm", "held"], check=True)
    before = iproute.links()["held"]["ifindex"]
    with Monitor() as monitor:
        shell.sh("ip link delete held")
        monitor.wait_replaced("held")
    assert iproute.links()["held"]["ifindex"] != before
    both = reapers(ledger)
    # The reaper may still work on the lease; `reap` leaves it to the reaper then.
    reap = [TAPSTER, "reap", "--now"]
    wait_for(
        lambda: subprocess.check_output(reap, text=True) == "reaped 1\n",
        "the lease is reaped",
    )
    wait_dead(both)


def test_a_command_in_a_time_namespace_ends_no_lease() -> None:
    ready = subprocess.Popen(
        [TAPSTER, "run", "--bridge", "br0", "--", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert ready.stdout
    ready.stdout.readline()
    shifted = ["unshare", "--time", "--boottime=1000", TAPSTER]
    subprocess.run([*shifted, "recover"], check=True)
    assert states() == {"vnet0": "active"}
    assert "UP" in iproute.links()["vnet0"]["flags"]
    ready.communicate()
    subprocess.run([*shifted, "ls"], check=True, stdout=subprocess.DEVNULL)
    leases = json.loads(
        subprocess.run(
            [*shifted, "ls", "--all", "--json"], check=True, capture_output=True
        ).stdout
    )["leases"]
    assert 0 < leases[0]["fin_wait_left"] <= leases[0]["fin_wait"]
