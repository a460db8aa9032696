# SPDX-License-Identifier: Apache-2.0
"""Firecracker and Cloud Hypervisor, by the calls with which they open devices."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, shell
from lab.daemon import as_user, let_everybody_open_tun
from lab.shell import sh
from tests.vms import microvm

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

USER = 61001
PYTHON = "/usr/bin/python3"
"""An interpreter that every user can run."""
MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"

VM = """{
  "boot-source": {"kernel_image_path": "vmlinux"},
  "network-interfaces": [
    {"iface_id": "eth0", "guest_mac": "{mac}", "host_dev_name": "{name}"}
  ]
}
"""
LOAD = """{
  "snapshot_path": "vm.snapshot",
  "network_overrides": [{"iface_id": "eth0", "host_dev_name": "{name}"}]
}
"""


class Lab:
    """Files that every user can reach, in the test's own /run."""

    def __init__(self, ledger: Path) -> None:
        self.folder = Path("/run/vms")
        self.folder.mkdir()
        let_everybody_open_tun(self.folder)
        self.program = self.folder / "microvm.py"
        shutil.copy(microvm.__file__, self.program)
        self.program.chmod(0o755)
        self.environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    @contextmanager
    def run(
        self, options: list[str], vmm: list[str], prefix: list[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Run a VMM; yield what it says when its devices are open."""
        command = [shell.TAPSTER, "run", "--fin-wait", "0", *options, "--"]
        command += [*(prefix or []), PYTHON, str(self.program), *vmm]
        with subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            said: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
            assert said, "the VMM could not open its devices"
            yield said
            process.stdin.close()
            assert process.wait(30) == 0


@pytest.fixture
def lab(world: None, ledger: Path) -> Lab:
    return Lab(ledger)


def carrier(name: str, netns: str | None = None) -> bool:
    """Say whether a process has the tap open, as `ip` shows it."""
    return "LOWER_UP" in iproute.links(netns)[name]["flags"]


def learned() -> set[str]:
    """Return the MACs of guests whose frames the bridge has seen."""
    entries = json.loads(sh("bridge -j fdb show br br0"))
    return {entry["mac"] for entry in entries if entry.get("state") != "permanent"}


def test_one_command_starts_firecracker_on_a_device(lab: Lab) -> None:
    source, output = lab.write("vm.json", VM), lab.folder / "vm1.json"
    options = ["--bridge", "br0", "--mac", MAC, "--template", f"{source}={output}"]
    vmm = ["firecracker", "--no-api", "--config-file", str(output)]
    with lab.run(options, vmm) as said:
        assert [device["name"] for device in said["devices"]] == ["vnet0"]
        assert carrier("vnet0")
        assert MAC in learned()
    assert not output.exists()


def test_firecracker_needs_no_privilege(lab: Lab) -> None:
    source, output = lab.write("vm.json", VM), lab.folder / "vm1.json"
    options = ["--bridge", "br0", "--user", str(USER)]
    options += ["--template", f"{source}={output}"]
    vmm = ["firecracker", "--no-api", "--config-file", str(output)]
    with lab.run(options, vmm, as_user(USER)) as said:
        assert said["uid"] == USER
        assert carrier("vnet0")


def test_firecracker_in_the_namespace_that_the_jailer_enters(lab: Lab) -> None:
    sh("ip netns add jail")
    source, output = lab.write("vm.json", VM), lab.folder / "vm1.json"
    options = ["--netns", "jail", "--name", "tap0", "--user", str(USER)]
    options += ["--template", f"{source}={output}"]
    vmm = ["firecracker", "--no-api", "--config-file", str(output)]
    jailer = ["ip", "netns", "exec", "jail", *as_user(USER)]
    with lab.run(options, vmm, jailer) as said:
        assert said["uid"] == USER
        assert carrier("tap0", "jail")


def test_a_snapshot_is_restored_twice_at_the_same_time(lab: Lab) -> None:
    source = lab.write("load.json", LOAD)
    names = []
    with ExitStack() as running:
        for number in range(2):
            output = lab.folder / f"load{number}.json"
            options = ["--bridge", "br0", "--template", f"{source}={output}"]
            vmm = ["firecracker", "--load-snapshot", str(output)]
            said = running.enter_context(lab.run(options, vmm))
            names += [device["name"] for device in said["devices"]]
        assert names == ["vnet0", "vnet1"]
        assert all(map(carrier, names))


@pytest.mark.parametrize("queues", [1, 4])
def test_cloud_hypervisor_opens_a_tap_by_name(lab: Lab, queues: int) -> None:
    options = ["--bridge", "br0", "--queues", str(queues), "--user", str(USER)]
    net = f"tap={{name}},mac={{mac}},num_queues={2 * queues}"
    vmm = ["cloud-hypervisor", "--net", net]
    with lab.run(options, vmm, as_user(USER)) as said:
        (device,) = said["devices"]
        assert len(device["fds"]) == queues
        assert carrier("vnet0")
        assert device["mac"] in learned()


@pytest.mark.parametrize("queues", [1, 4])
@pytest.mark.parametrize("link", [False, True])
def test_cloud_hypervisor_takes_descriptors(lab: Lab, queues: int, link: bool) -> None:
    sh("ip link add low type veth peer name far")
    sh("ip link set low up")
    sh("ip link set far up")
    options = ["--link", "low"] if link else ["--bridge", "br0"]
    options += ["--queues", str(queues)]
    net = f"fd={{fdlist}},mac={{mac}},num_queues={2 * queues}"
    vmm = ["cloud-hypervisor", "--net", net]
    # The user needs no right on the device: it is open.
    with lab.run(options, vmm, as_user(USER)) as said:
        (device,) = said["devices"]
        assert len(device["fds"]) == queues
        if not link:
            assert device["mac"] in learned()


def test_two_devices_of_one_vm(lab: Lab) -> None:
    nics = ["--nic", f"bridge=br0,mac={MAC}", "--nic", f"bridge=br0,mac={OTHER_MAC}"]
    vmm = ["cloud-hypervisor", "--net", "tap={name0},mac={mac0}"]
    vmm += ["--net", "fd={fdlist1},mac={mac1}"]
    with lab.run(nics, vmm) as said:
        assert [device["name"] for device in said["devices"]] == ["vnet0", None]
        assert learned() >= {MAC, OTHER_MAC}
