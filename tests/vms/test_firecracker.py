# SPDX-License-Identifier: Apache-2.0
"""A real Firecracker starts, is jailed and restored on Tapster's taps.

`test_microvms` makes Firecracker's system calls where the program does not run.
"""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab import iproute, shell
from lab.daemon import as_user, let_everybody_open_tun
from lab.lines import Lines
from lab.shell import sh
from tests.vms import firecracker

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.usefixtures("world"),
    pytest.mark.skipif(
        not firecracker.runs(), reason="Firecracker starts no VM on this kernel"
    ),
]

USER = 61001
MAC = "52:54:00:00:00:01"
NIC = {"iface_id": "eth0", "guest_mac": "{mac}", "host_dev_name": "{name}"}


@pytest.fixture
def folder(world: None) -> Path:
    """A folder that every user can reach, and devices that every user can open."""
    folder = Path("/run/vms")
    folder.mkdir()
    let_everybody_open_tun(folder)
    node = folder / "kvm"
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
    node.chmod(0o666)
    sh(f"mount --bind {node} /dev/kvm")
    return folder


@pytest.fixture
def template(folder: Path) -> Path:
    """A configuration with one NIC, to fill in."""
    path = folder / "vm.json"
    machine = firecracker.machine(folder, **{"network-interfaces": [NIC]})
    path.write_text(json.dumps(machine))
    return path


@contextmanager
def running(
    ledger: Path, options: list[str], command: list[str | Path], until: str
) -> Iterator[None]:
    """Run a VMM by `tapster run` until its output has a text, and for a block."""
    words = [shell.TAPSTER, "run", "--fin-wait", "0", *options, "--", *command]
    environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            Lines(process.stdout).wait_for(until, firecracker.TIMEOUT)
            yield
        finally:
            process.terminate()
    assert process.returncode in (-15, 128 + 15)


def is_open(name: str, netns: str | None = None) -> bool:
    return "LOWER_UP" in iproute.links(netns)[name]["flags"]


def nic(socket: Path) -> dict[str, str]:
    """Return the NIC of a VM, as Firecracker reports it."""
    (found,) = firecracker.call(socket, "GET", "/vm/config")["network-interfaces"]
    return dict(found)


def state(socket: Path) -> str:
    return str(firecracker.call(socket, "GET", "/")["state"])


@pytest.mark.parametrize("unprivileged", [False, True], ids=["root", "user"])
def test_one_command_starts_a_vm(
    folder: Path, template: Path, ledger: Path, unprivileged: bool
) -> None:
    filled = folder / "vm1.json"
    options = ["--bridge", "br0", "--mac", MAC, "--template", f"{template}={filled}"]
    prefix: list[str] = []
    sockets = folder / "sockets"
    sockets.mkdir()
    if unprivileged:
        options += ["--user", str(USER)]
        prefix = as_user(USER)
        os.chown(sockets, USER, USER)
        shutil.copy(firecracker.FIRECRACKER, folder)  # .venv may be in a home
    program = folder / "firecracker" if unprivileged else firecracker.FIRECRACKER
    socket = sockets / "vm1"
    command: list[str | Path] = [
        *prefix,
        program,
        "--api-sock",
        socket,
        "--config-file",
        filled,
    ]
    with running(ledger, options, command, firecracker.STARTED):
        assert state(socket) == "Running"
        assert (nic(socket)["host_dev_name"], nic(socket)["guest_mac"]) == (
            "vnet0",
            MAC,
        )
        assert is_open("vnet0")
        assert iproute.ports() == {"vnet0"}
    assert "vnet0" not in iproute.links()
    assert not filled.exists()


def test_the_jailer_and_snapshots_under_other_names(
    folder: Path, template: Path, ledger: Path
) -> None:
    sh("ip netns add jail1")
    root = folder / "jailer/firecracker/vm1/root"
    root.mkdir(parents=True)
    shutil.copy(folder / "vmlinux", root)
    configuration = json.loads(template.read_text())
    configuration["boot-source"]["kernel_image_path"] = "vmlinux"
    template.write_text(json.dumps(configuration))
    options = ["--netns", "jail1", "--name", "tap0", "--user", str(USER)]
    options += ["--template", f"{template}={root / 'vm.json'}"]
    jailer: list[str | Path] = [firecracker.JAILER, "--id", "vm1"]
    jailer += ["--exec-file", firecracker.FIRECRACKER, "--uid", str(USER)]
    jailer += ["--gid", str(USER), "--chroot-base-dir", folder / "jailer"]
    jailer += ["--netns", "/run/netns/jail1", "--", "--config-file", "vm.json"]
    socket = root / "run/firecracker.socket"
    with running(ledger, options, jailer, firecracker.STARTED):
        assert is_open("tap0", "jail1")
        firecracker.call(socket, "PATCH", "/vm", {"state": "Paused"})
        files = {"snapshot_path": "vm.snapshot", "mem_file_path": "vm.memory"}
        firecracker.call(socket, "PUT", "/snapshot/create", files)
    assert "tap0" not in iproute.links("jail1")

    load = folder / "load.json"
    override = {"iface_id": "eth0", "host_dev_name": "{name}"}
    memory = {"backend_path": str(root / "vm.memory"), "backend_type": "File"}
    load.write_text(
        json.dumps(
            {
                "snapshot_path": str(root / "vm.snapshot"),
                "mem_backend": memory,
                "resume_vm": True,
                "network_overrides": [override],
            }
        )
    )
    with ExitStack() as running_vms:
        for number, name in enumerate(("vnet0", "vnet1")):
            filled, socket = folder / f"load{number}.json", folder / f"{number}.sock"
            options = ["--bridge", "br0", "--template", f"{load}={filled}"]
            command: list[str | Path] = [firecracker.FIRECRACKER, "--api-sock", socket]
            vm = running(ledger, options, command, "API server started")
            running_vms.enter_context(vm)
            firecracker.call(
                socket, "PUT", "/snapshot/load", json.loads(filled.read_text())
            )
            assert nic(socket)["host_dev_name"] == name
            assert state(socket) == "Running"
            assert is_open(name)
        assert iproute.ports() == {"vnet0", "vnet1"}
