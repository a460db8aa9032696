# SPDX-License-Identifier: Apache-2.0
"""A VM moves between two libvirtd: its device waits on standby, and is taken."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest

from lab import libvirt, ping, shell
from lab.libvirt import HeldHook, Libvirt, SecondHost, domain, second_host, virsh
from lab.shell import TAPSTER
from tests.libvirt.system import LEDGER, Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]

MAC = "52:54:00:00:00:0a"
FAR = "192.0.2.2"
TIMEOUT = 60.0

# It boots from the network, stays there, and answers pings.
GUEST = domain(
    "mover",
    "<interface type='ethernet'><target dev='mover0' managed='no'/>"
    f"<mac address='{MAC}'/><model type='rtl8139'/><boot order='1'/></interface>",
    metadata="<metadata><t:nics xmlns:t='urn:tapster:libvirt:1'>"
    "<t:nic dev='mover0' bridge='br0'/></t:nics></metadata>",
).replace("<devices>", "<features><acpi/></features><devices>")  # it can be plugged


class Far(NamedTuple):
    """The other host, and its libvirt."""

    host: SecondHost
    libvirt: Libvirt

    def leases(self) -> list[dict[str, Any]]:
        found = json.loads(self.host.sh(f"{TAPSTER} ls --all --json"))
        return list(found["leases"])

    def link(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.host.sh(f"ip -d -j link show {name}"))
        return dict(found)


@pytest.fixture(params=[False, True], ids=["hook-alone", "with-tapsterd"])
def daemon(request: pytest.FixtureRequest) -> bool:
    """Whether tapsterd runs on both hosts."""
    return bool(request.param)


@pytest.fixture
def near(daemon: bool) -> Iterator[Place]:
    with place(daemon=daemon) as made:
        yield made


@pytest.fixture
def far(near: Place, daemon: bool) -> Iterator[Far]:
    with second_host(FAR) as host, ExitStack() as stack:
        libvirtd = Libvirt(host)
        stack.callback(libvirtd.close)
        host.sh(f"{TAPSTER} libvirt install")
        libvirtd.start()
        if daemon:
            stack.enter_context(tapsterd(host))
        yield Far(host, libvirtd)


@contextmanager
def tapsterd(host: SecondHost) -> Iterator[None]:
    """Have the daemon on the other host, on the ledger that the hook uses."""
    address = "run/tapsterd.ready"
    host.sh(f"mkdir -p {LEDGER.parent}")
    host.sh("touch /run/tapster.toml")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(host.root / address))
        ready.settimeout(TIMEOUT)
        process = subprocess.Popen(
            [
                *(*host.inside, f"{TAPSTER}d", "--socket", "/run/tapster.sock"),
                *("--ledger", str(LEDGER), "--config", "/run/tapster.toml"),
            ],
            env=os.environ | {"NOTIFY_SOCKET": f"/{address}"},
        )
        assert ready.recv(100) == b"READY=1"
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0


def migrate(to: Far) -> "subprocess.Popen[bytes]":
    uri = ["--connect", "qemu:///system"]
    way = ["--live", "mover", to.libvirt.uri, "--migrateuri", f"tcp://{FAR}"]
    return subprocess.Popen(["virsh", *uri, "migrate", *way])


def test_a_vm_that_arrives_takes_its_device_and_leaves_the_other(
    near: Place, far: Far
) -> None:
    near.libvirt.define(GUEST)
    virsh("start mover")
    address = near.lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert address
    held = HeldHook("started", far.host.root)

    # A migration that fails: nothing is left there, and the VM stays here.
    moving = migrate(far)
    held.wait_reached()
    (lease,) = far.leases()
    assert (lease["state"], lease["standby"]) == ("active", True)
    link = far.link("mover0")
    assert "UP" not in link["flags"]
    assert "master" not in link, "no frame for the VM goes there"
    libvirt.kill(int((far.host.root / libvirt.PIDS / "mover.pid").read_text()))
    held.let_go()
    assert moving.wait(TIMEOUT) != 0
    assert {lease["state"] for lease in far.leases()} <= {"fin_wait"}
    assert near.state("mover0") == "active"
    assert ping.answers(address)

    # A migration that succeeds.
    moving = migrate(far)
    held.wait_reached()
    held.let_go()
    held.remove()
    assert moving.wait(TIMEOUT) == 0
    assert near.released("mover0")
    assert virsh("domstate mover", far.libvirt.uri) == "running"
    wait_taken(far)
    # The guest itself says nothing, and QEMU may have announced it too early.
    assert port_of_guest(shell.sh("bridge -j fdb show br br0")) == "cable"
    assert port_of_guest(far.host.sh("bridge -j fdb show br br0")) == "mover0"
    assert ping.answers(address, TIMEOUT), "it is on the network there"


def test_a_device_that_was_plugged_in_arrives_too(near: Place, far: Far) -> None:
    near.libvirt.define(GUEST)
    virsh("start mover")
    plugged = near.tapster("libvirt attach mover --bridge br0 --isolated").strip()
    assert migrate(far).wait(TIMEOUT) == 0
    wait_for_arrival()
    assert near.released(plugged)
    taken = {
        lease["name"]: (lease["state"], lease["standby"]) for lease in far.leases()
    }
    assert taken == {"mover0": ("active", False), plugged: ("active", False)}
    shown = far.host.sh(f"bridge -j -d link show dev {plugged}")
    (port,) = json.loads(shown)
    assert (port["master"], port["isolated"]) == ("br0", True)


def port_of_guest(fdb: str) -> str:
    """Return the port to which a bridge sends frames for the guest."""
    (port,) = [entry["ifname"] for entry in json.loads(fdb) if entry["mac"] == MAC]
    return str(port)


def wait_taken(far: Far) -> None:
    """Wait until the device that was on standby is in use."""
    wait_for_arrival()
    (lease,) = [one for one in far.leases() if one["state"] == "active"]
    assert not lease["standby"]
    assert far.link("mover0")["master"] == "br0"


def wait_for_arrival() -> None:
    """Wait until the hook's program that takes the devices has ended."""
    program = f"tapster.libvirt.arrival {libvirt.uuid_of('mover')}"
    found = subprocess.run(
        ["pgrep", "-f", program], capture_output=True, text=True, check=False
    )
    for pid in found.stdout.split():
        libvirt.wait_ended(int(pid))
