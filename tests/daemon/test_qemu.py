# SPDX-License-Identifier: Apache-2.0
"""Real QEMU, run by a user without privileges, through what looks like its helper."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster
from lab import iproute, shell
from lab.daemon import ALICE, BOB, Daemon, as_user
from lab.vm_network import FILES, VmNetwork, open_lab

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MAC = "52:54:00:00:00:0a"
TIMEOUT = 30.0

POLICY = f"""
[[allow]]
users = ["{ALICE}"]
bridges = ["br0"]
devices = 1
"""


@pytest.fixture
def world() -> None:
    """The lab is a world of its own."""


@pytest.fixture
def lab() -> Iterator[VmNetwork]:
    with open_lab() as lab:
        yield lab


@pytest.fixture
def daemon(lab: VmNetwork) -> Iterator[Daemon]:
    # An /etc of its own, with the files of the host's.
    for folder in ("upper", "work"):
        (FILES / folder).mkdir()
    layers = f"lowerdir=/etc,upperdir={FILES}/upper,workdir={FILES}/work"
    shell.sh(f"mount -t overlay overlay -o {layers} /etc")
    Path("/etc/qemu").mkdir(exist_ok=True)
    Path("/etc/qemu/bridge.conf").unlink(missing_ok=True)
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        yield daemon


def qemu(daemon: Daemon, bridge: str, uid: int = ALICE) -> subprocess.Popen[str]:
    """A VM without a disk, which asks for an address as soon as it starts."""
    vm = ["-no-user-config", "-nodefaults", "-display", "none", "-m", "32"]
    helper = daemon.programs / "qemu-bridge-helper"
    nic = f"bridge,br={bridge},helper={helper},model=rtl8139,mac={MAC}"
    return subprocess.Popen(
        [
            *as_user(uid),
            *("qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", *vm),
            *("-nic", nic),
        ],
        env={**os.environ, "TAPSTER_SOCKET": str(daemon.socket)},
        stderr=subprocess.PIPE,
        text=True,
    )


def complaint(vm: subprocess.Popen[str]) -> str:
    """Why QEMU could not start."""
    _, said = vm.communicate(timeout=TIMEOUT)
    assert vm.returncode == 1, said
    return said


def assert_hers(lab: VmNetwork, daemon: Daemon) -> None:
    """One device is leased: Alice's, on br0, until its last close."""
    with daemon.connect() as root:
        (lease,) = root.leases()
    assert (lease.name, lease.caller_uid, lease.on_close) == ("vnet0", ALICE, True)
    assert lab.bridge_of("vnet0") == "br0"


def helped(
    daemon: Daemon, *arguments: str, uid: int = ALICE
) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    """Run the helper as QEMU does; what it said, and what it handed over."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [
                *as_user(uid),
                str(daemon.programs / "qemu-bridge-helper"),
                *arguments,
                f"--fd={theirs.fileno()}",
            ],
            env={**os.environ, "TAPSTER_SOCKET": str(daemon.socket)},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        theirs.close()
        _, control, _, _ = ours.recvmsg(1, 64, socket.MSG_CMSG_CLOEXEC)
    fds = [
        int.from_bytes(data[at : at + 4], sys.byteorder)
        for _, _, data in control
        for at in range(0, len(data), 4)
    ]
    return done, fds


@pytest.mark.e2e
@pytest.mark.timeout(120)
def test_a_users_vm_gets_an_address_and_its_end_ends_the_lease(
    lab: VmNetwork, daemon: Daemon
) -> None:
    shell.sh("ip link add br1 type bridge")
    vm = qemu(daemon, "br0")
    assert lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert_hers(lab, daemon)

    quota = complaint(qemu(daemon, "br0"))
    assert "has 1 of 1 devices" in quota
    refused = complaint(qemu(daemon, "br1"))
    assert 'bridges = ["br1"]' in refused
    assert "no rule" in complaint(qemu(daemon, "br0", BOB))

    events = daemon.events()
    vm.send_signal(signal.SIGKILL)
    vm.communicate()
    said = next(events)
    assert (said.event, said.name) == ("released", "vnet0")
    assert lab.bridge_of("vnet0") is None
    assert "vnet0" in iproute.links(), "in FIN WAIT it holds its name"
    assert next(events).event == "ended"
    assert "vnet0" not in iproute.links()


def test_the_helper_hands_over_a_tap_as_qemus_own_does(daemon: Daemon) -> None:
    done, (fd,) = helped(daemon, "--use-vnet", "--br=br0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert iproute.ports() == {"vnet0"}
    flags = int(Path("/sys/class/net/vnet0/tun_flags").read_text(), 16)
    assert flags & 0x4000, "with a vnet header"
    events = daemon.events()
    os.close(fd)
    assert next(events).event == "released"


@pytest.mark.parametrize("arguments", [[], ["--no-vnet-hdr", "--use-vnet"]])
def test_without_use_vnet_there_is_no_vnet_header(
    daemon: Daemon, arguments: list[str]
) -> None:
    _, (fd,) = helped(daemon, *arguments, "--br", "br0")
    flags = int(Path("/sys/class/net/vnet0/tun_flags").read_text(), 16)
    assert not flags & 0x4000
    os.close(fd)


@pytest.mark.parametrize(
    "arguments", [[], ["--br="], ["--br"], ["--bridge=br0"], ["--br=br0", "more"]]
)
def test_wrong_arguments_are_refused_as_qemus_own_does(
    daemon: Daemon, arguments: list[str]
) -> None:
    done, fds = helped(daemon, *arguments)
    assert (done.returncode, fds) == (1, [])
    assert done.stderr.startswith("Usage: qemu-bridge-helper [--use-vnet] --br=bridge")


@pytest.mark.parametrize("fd", ["99", "0", "99999999999999999999"])
def test_a_descriptor_that_is_no_socket_is_refused_before_a_tap_is_made(
    daemon: Daemon, fd: str
) -> None:
    done = subprocess.run(
        [str(daemon.programs / "qemu-bridge-helper"), "--br=br0", f"--fd={fd}"],
        env={**os.environ, "TAPSTER_SOCKET": str(daemon.socket)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"qemu-bridge-helper: --fd={fd} is no socket: ")
    with daemon.connect() as root:
        assert root.leases() == []


def test_qemus_own_file_is_heeded_too(daemon: Daemon) -> None:
    conf = Path("/etc/qemu/bridge.conf")
    conf.write_text("allow all\ndeny br0\n")
    done, fds = helped(daemon, "--br=br0")
    assert (done.returncode, fds) == (1, [])
    assert "access denied by acl file" in done.stderr
    conf.write_text("allow br0\n")
    done, (fd,) = helped(daemon, "--br=br0")
    assert done.returncode == 0, done.stderr
    os.close(fd)


def test_qemus_own_file_can_be_the_policy(daemon: Daemon) -> None:
    conf = Path("/etc/qemu/bridge.conf")
    conf.write_text("allow br0\n")
    shell.sh("ip link add br1 type bridge")
    daemon.reload(f'[qemu]\nbridge_conf = "{conf}"\n')
    done, (fd,) = helped(daemon, "--br=br0", uid=BOB)
    assert done.returncode == 0, done.stderr
    os.close(fd)
    with daemon.connect(BOB) as bob, pytest.raises(Exception, match="no rule"):
        bob.acquire(tapster.Tap(bridge="br0"))
    conf.unlink()
    done, fds = helped(daemon, "--br=br1", uid=BOB)
    assert fds == []
    assert "no rule" in done.stderr


SESSION = Path(__file__).parent / "session.py"


@pytest.fixture
def session(daemon: Daemon) -> Iterator[dict[str, str]]:
    """The environment of a user with a libvirt of their own, and Tapster's helper."""
    home = daemon.socket.parent / "home"
    config = home / ".config" / "libvirt"
    config.mkdir(parents=True)
    helper = daemon.programs / "qemu-bridge-helper"
    (config / "qemu.conf").write_text(
        f'bridge_helper = "{helper}"\nsecurity_driver = "none"\n'
        'namespaces = []\nstdio_handler = "file"\n'
    )
    for path, rest in (("/etc/passwd", f"{ALICE}::{home}:/bin/sh"), ("/etc/group", "")):
        with Path(path).open("a") as accounts:
            accounts.write(f"alice:x:{ALICE}:{rest}\n")
    shell.sh(f"chown -R {ALICE}:{ALICE} {home}")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "TAPSTER_SOCKET": str(daemon.socket),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(home / "ready"))
        (home / "ready").chmod(0o777)
        ready.settimeout(TIMEOUT)
        libvirtd = subprocess.Popen(
            [*as_user(ALICE), "libvirtd"],
            env=environment | {"NOTIFY_SOCKET": str(home / "ready")},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ready.recv(64)
    yield environment
    libvirtd.terminate()
    libvirtd.wait()


def guest(environment: dict[str, str], bridge: str) -> subprocess.Popen[str]:
    program = SESSION.read_text()  # the user may not read where it lies
    return subprocess.Popen(
        [*as_user(ALICE), "/usr/bin/python3", "-c", program, bridge, MAC],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",  # its libraries write there too
    )


@pytest.mark.e2e
@pytest.mark.timeout(120)
def test_a_guest_of_libvirts_session_mode_gets_an_address(
    lab: VmNetwork, daemon: Daemon, session: dict[str, str]
) -> None:
    shell.sh("ip link add br1 type bridge")
    started = guest(session, "br0")
    assert lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert_hers(lab, daemon)

    events = daemon.events()
    out, err = started.communicate(timeout=TIMEOUT)
    assert (started.returncode, out) == (0, "runs\nover\n"), err
    assert next(events).event == "released"

    refused = guest(session, "br1")
    _, err = refused.communicate(timeout=TIMEOUT)
    assert 'bridges = ["br1"]' in err
