# SPDX-License-Identifier: Apache-2.0
"""Domains of a real libvirtd on Tapster's devices: started, stopped, killed, moved."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from lab import iproute, libvirt, shell
from lab.libvirt import (
    HeldHook,
    adopted,
    domain,
    kill,
    qemu_pid,
    virsh,
    wait_until_off,
)
from lab.reapers import kill_reapers, reapers, wait_for
from tests.libvirt.system import Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]

TIMEOUT = 60.0


WAYS = ("hook-alone", "with-tapsterd")
ALONE = pytest.mark.parametrize("host", WAYS[:1], indirect=True)
"""For what tapsterd has no part in."""


@pytest.fixture(scope="module", params=WAYS)
def host(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(daemon=request.param == WAYS[1]) as made:
        yield made


def start(host: Place, name: str, *nics: str) -> int:
    """Start a domain, whose guest does not run yet; the ifindex of its first device."""
    host.libvirt.define(adopted(name, *nics))
    virsh(f"start --paused {name}")
    return index_of(f"{name}0")


def index_of(device: str) -> int:
    return int(iproute.links()[device]["ifindex"])


def assert_on_the_network(host: Place, name: str) -> None:
    """The domain's QEMU has the device open, and the lease ends with QEMU."""
    lease = host.leases()[f"{name}0"]
    assert lease["state"] == "active"
    assert lease["owner"] == f"libvirt:{libvirt.uuid_of(name)}"
    assert lease["labels"] == {"domain": name}
    assert lease["pid"] == qemu_pid(name)
    assert "LOWER_UP" in iproute.links()[f"{name}0"]["flags"], "QEMU has it open"
    assert f"{name}0" in iproute.ports()


def test_a_guest_gets_an_address_and_its_end_ends_the_lease(host: Place) -> None:
    mac = "52:54:00:00:00:0a"
    boot = (
        "<interface type='ethernet'><target dev='dhcp0' managed='no'/>"
        f"<mac address='{mac}'/><model type='rtl8139'/><boot order='1'/></interface>"
    )
    nic = "<t:nic dev='dhcp0' bridge='br0' filter='yes'/>"
    host.libvirt.define(
        domain(
            "dhcp",
            boot,
            metadata="<metadata><t:nics xmlns:t='urn:tapster:libvirt:1'>"
            f"{nic}</t:nics></metadata>",
        )
    )
    virsh("start dhcp")
    assert host.lab.wire.wait_for_ack(mac, TIMEOUT)
    assert host.leases()["dhcp0"]["mac"] == mac, "it is the interface's"
    virsh("destroy dhcp")
    assert host.released("dhcp0")
    assert "dhcp0" not in iproute.ports()


def test_destroy_followed_at_once_by_start_waits_for_nothing(host: Place) -> None:
    # The hook gives up long before this FIN WAIT is over.
    first = start(host, "web", "dev='web0' bridge='br0' fin-wait='1h'")
    assert_on_the_network(host, "web")
    former = host.leases()["web0"]["id"]
    virsh("destroy web")
    assert host.released("web0")
    virsh("start --paused web")
    assert index_of("web0") != first, "it is another device"
    assert_on_the_network(host, "web")
    assert host.leases()["web0"]["id"] != former


def test_a_domain_starts_while_another_ends_and_starts(host: Place) -> None:
    host.libvirt.define(adopted("beside", "dev='beside0' bridge='br0'"))
    start(host, "turns", "dev='turns0' bridge='br0'")
    turn = ["sh", "-c", "virsh destroy turns && virsh start --paused turns"]
    for _ in range(4):
        turning = subprocess.Popen(turn, stdout=subprocess.DEVNULL)
        virsh("start --paused beside")
        assert turning.wait(TIMEOUT) == 0
        for name in ("turns", "beside"):
            assert_on_the_network(host, name)
        virsh("destroy beside")


def test_a_clone_with_the_same_device_is_refused(host: Place) -> None:
    start(host, "original", "dev='original0' bridge='br0'")
    host.libvirt.define(adopted("clone", "dev='original0' bridge='br0' mtu='1300'"))
    said = libvirt.refused("start clone")
    assert "device 'original0' belongs to domain 'original'" in said
    assert "tapster libvirt adopt" in said
    assert_on_the_network(host, "original")
    virsh("destroy original")
    said = libvirt.refused("start clone")
    assert "belongs to domain 'original'" in said, "in FIN WAIT too"
    virsh("start --paused original")


def test_a_device_that_cannot_be_had_refuses_the_start(host: Place) -> None:
    host.libvirt.define(
        adopted("two", "dev='two0' bridge='br0'", "dev='two1' bridge='br7'")
    )
    said = libvirt.refused("start two")
    assert "tapster: there is no bridge 'br7'" in said or "br7" in said
    assert host.leases().keys().isdisjoint({"two0", "two1"}), "all or none"
    assert iproute.links().keys().isdisjoint({"two0", "two1"})


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_libvirtd_changes_no_device(
    host: Place, how: signal.Signals
) -> None:
    name = f"stays{how:d}"
    index = start(host, name, f"dev='{name}0' bridge='br0'")
    host.libvirt.stop(how)
    host.tapster("ls")
    shell.sh(f"ip link set {name}0 nomaster")
    host.libvirt.start()
    host.libvirt.hooks.wait_for(name, "reconnect")
    assert index_of(f"{name}0") == index
    assert_on_the_network(host, name)


def test_no_failure_of_the_hook_ends_a_vm_when_libvirtd_restarts(host: Place) -> None:
    start(host, "tough", "dev='tough0' bridge='br0'")
    kept = libvirt.HOOK.read_text()
    libvirt.HOOK.write_text(kept.replace(" libvirt hook", " libvirt no-such-action"))
    try:
        host.libvirt.restart()
        host.libvirt.hooks.wait_for("tough", "reconnect")
        assert virsh("domstate tough") == "paused"
    finally:
        libvirt.HOOK.write_text(kept)


def wait_waiting(host: Place, name: str) -> None:
    """Wait until the lease of a process that has ended is released.

    The reaper or tapsterd may be at it: until then, the lease is shown as it was.
    """
    wait_for(lambda: host.released(name), f"{name} is released")


def test_the_death_of_qemu_ends_the_lease(host: Place) -> None:
    first = start(host, "crash", "dev='crash0' bridge='br0'")
    kill(qemu_pid("crash"))
    wait_waiting(host, "crash0")
    wait_until_off("crash")
    virsh("start --paused crash")
    assert index_of("crash0") != first
    assert_on_the_network(host, "crash")


def test_the_death_of_qemu_and_libvirtd_ends_the_lease(host: Place) -> None:
    start(host, "both", "dev='both0' bridge='br0'")
    pid = qemu_pid("both")
    host.libvirt.stop(signal.SIGKILL)
    kill(pid)
    wait_waiting(host, "both0")
    host.libvirt.start()
    wait_until_off("both")
    virsh("start --paused both")
    assert_on_the_network(host, "both")


@pytest.mark.parametrize("before", [True, False], ids=["before-tapster", "after-it"])
@pytest.mark.parametrize("phase", ["prepare", "start", "started", "release"])
def test_the_death_of_libvirtd_in_a_phase_leaves_the_right_lease(
    host: Place, phase: str, before: bool
) -> None:
    name = f"{phase}{before:d}-"
    ends, runs = phase == "release", phase == "started"
    host.libvirt.define(adopted(name, f"dev='{name}0' bridge='br0'"))
    if ends:
        virsh(f"start --paused {name}")
    held = HeldHook(phase, before_tapster=before)
    verb = ["destroy"] if ends else ["start", "--paused"]
    acting = subprocess.Popen(["virsh", *verb, name], stderr=subprocess.DEVNULL)
    hook = held.wait_reached()
    held.remove()
    if not ends and (phase, before) != ("prepare", True):
        assert host.state(f"{name}0") == "active"
    host.libvirt.stop(signal.SIGKILL)
    acting.wait(TIMEOUT)
    kill(hook)
    if (phase, before) == ("prepare", True):
        assert f"{name}0" not in host.leases()
    elif runs:
        assert host.state(f"{name}0") == "active"
    else:
        wait_waiting(host, f"{name}0")
    host.libvirt.start()
    if runs:
        host.libvirt.hooks.wait_for(name, "reconnect")
    else:
        wait_until_off(name)
        virsh(f"start --paused {name}")
    assert_on_the_network(host, name)


def test_the_death_of_the_hook_refuses_the_start_and_leaves_nothing(
    host: Place,
) -> None:
    host.libvirt.define(adopted("hooked", "dev='hooked0' bridge='br0'"))
    kept = libvirt.HOOK.read_text()
    kill_it = "strace -o /dev/null -e inject=sendto:signal=KILL:when=4"
    libvirt.HOOK.write_text(kept.replace("exec ", f"exec {kill_it} "))
    try:
        assert "fatal signal 9" in libvirt.refused("start hooked")
    finally:
        libvirt.HOOK.write_text(kept)
    active = [name for name, one in host.leases().items() if one["state"] == "active"]
    assert "hooked0" not in active
    virsh("start --paused hooked")
    assert_on_the_network(host, "hooked")


def test_a_saved_guest_comes_back_on_a_new_device(host: Place, tmp_path: Path) -> None:
    first = start(host, "nap", "dev='nap0' bridge='br0'")
    file = Path("/run/nap.save")
    virsh(f"save nap {file}")
    assert host.released("nap0")
    virsh(f"restore --paused {file}")
    assert index_of("nap0") != first
    assert_on_the_network(host, "nap")


@ALONE
@pytest.mark.parametrize("name", ["adopted", "bare"])
def test_a_device_that_was_plugged_in_comes_back_with_a_saved_guest(
    host: Place, name: str
) -> None:
    """libvirt would open the released device: it waits, and leads nowhere."""
    nic = f"dev='{name}0' bridge='br0'"
    xml = adopted(name, nic) if name == "adopted" else domain(name)
    # Without ACPI this QEMU's machine has no PCI slots to plug in to.
    acpi = "<features><acpi/></features><devices>"
    host.libvirt.define(xml.replace("<devices>", acpi))
    virsh(f"start --paused {name}")
    device = f"{name}1"
    host.tapster(f"libvirt attach {name} --name {device} --bridge br0 --isolated")
    first = index_of(device)
    file = Path(f"/run/{name}.save")
    virsh(f"save {name} {file}")
    assert host.released(device)
    virsh(f"restore --paused {file}")
    assert index_of(device) != first
    assert device in iproute.ports()
    assert (f"{name}0" in iproute.ports()) is (name == "adopted")
    lease = host.leases()[device]
    assert (lease["state"], lease["isolated"]) == ("active", True)
    assert lease["pid"] == qemu_pid(name)
    virsh(f"destroy {name}")
    assert host.released(device)
    virsh(f"start --paused {name}")
    assert host.released(device), "it was plugged in for the former run"
    virsh(f"destroy {name}")


@ALONE
def test_a_device_without_metadata_is_left_to_libvirt(host: Place) -> None:
    nic = "<interface type='bridge'><source bridge='br0'/></interface>"
    host.libvirt.define(domain("other", nic))
    before = host.leases().keys()
    virsh("start --paused other")
    assert host.leases().keys() == before


@pytest.fixture(params=WAYS)
def booting(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(daemon=request.param == WAYS[1]) as made:
        yield made


@pytest.mark.parametrize("saved", [False, True], ids=["after-a-cut", "saved-before"])
def test_domains_that_start_with_the_host_get_their_devices(
    booting: Place, saved: bool
) -> None:
    """A reboot: nothing runs, /run is empty, and the boot has another id.

    libvirt-guests saves guests before a shutdown; libvirt restores them.
    """
    start(booting, "auto", "dev='auto0' bridge='br0'")
    virsh("autostart auto")
    booting.libvirt.hooks.wait_for("auto", "started")
    former = booting.leases()["auto0"]["id"]
    guests = [qemu_pid("auto")]
    if saved:
        virsh("managedsave --paused auto")
        guests.clear()
    booting.libvirt.stop(signal.SIGKILL)
    if booting.tapsterd:
        booting.tapsterd.stop(signal.SIGKILL)
    kill(*reapers(booting.ledger), *guests)
    kill_reapers(booting.ledger)
    shell.sh("ip link del auto0")
    shutil.rmtree("/run/libvirt")
    boot_id = Path("/run/boot_id")
    boot_id.write_text(f"{uuid4()}\n")
    shell.sh(f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id")
    if booting.tapsterd:
        booting.tapsterd.start()
    booting.libvirt.start()
    booting.libvirt.hooks.wait_for("auto", "started")
    assert_on_the_network(booting, "auto")
    assert booting.leases()["auto0"]["id"] != former
    assert booting.tapster("recover") == ""
