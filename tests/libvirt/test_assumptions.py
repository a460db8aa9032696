# SPDX-License-Identifier: Apache-2.0
"""What libvirt does, on which the hook is built; and what happens without the hook."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, libvirt, shell
from lab.libvirt import adopted, domain, virsh, wait_until_off
from lab.reapers import wait_for
from tests.libvirt.system import Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]

TWO_QUEUES = "<driver queues='2'/>"


@pytest.fixture(scope="module")
def machine() -> Iterator[Place]:
    with place(daemon=False) as made:
        yield made


@pytest.fixture
def host(machine: Place) -> Iterator[Place]:
    """A host on which no domain runs, at the end either."""
    yield machine
    for name in libvirt.running():
        virsh(f"destroy {name}")


@contextmanager
def hook(script: str) -> Iterator[None]:
    """Have another hook, which libvirt calls after Tapster's."""
    path = libvirt.HOOK.with_name("60-other")
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()


def define(host: Place, name: str, nic: str, more: str = "") -> None:
    host.libvirt.define(adopted(name, nic, more=more))


def opened(name: str) -> str:
    """Return the device that a domain has open, as libvirt says."""
    return virsh(f"domiflist {name}").split()[0]


def test_libvirt_calls_the_hook_in_this_order(host: Place) -> None:
    phases = host.libvirt.hooks.phases
    define(host, "order", "dev='order0' bridge='br0'")
    virsh("start --paused order")
    assert phases("order") == ["prepare", "start", "started"]
    host.tapster("libvirt attach order --bridge br0 --model usb-net --name order1")
    host.tapster("libvirt detach order order1")
    assert phases("order") == [], "none for a device that is plugged in or out"
    virsh("save order /run/order.save")
    assert phases("order") == ["stopped", "release"]
    virsh("restore --paused /run/order.save")
    assert phases("order") == ["restore", "prepare", "start", "started"]
    virsh("destroy order")
    assert phases("order") == ["stopped", "release"]


@pytest.mark.parametrize(
    ("script", "nic", "more", "called"),
    [
        ("exit 0", "bridge='br7'", "", ["prepare", "stopped", "release"]),
        (
            "exit 0",
            "bridge='br0'",
            "<vlan><tag id='7'/></vlan>",
            ["prepare", "stopped", "release"],
        ),
        (
            "[ $2 != start ]",
            "bridge='br0'",
            "",
            ["prepare", "start", "stopped", "release"],
        ),
    ],
    ids=["in-prepare", "in-libvirt", "in-start"],
)
def test_a_start_that_fails_ends_with_release(
    host: Place, script: str, nic: str, more: str, called: list[str]
) -> None:
    define(host, "fails", f"dev='fails0' {nic}", more)
    with hook(script):
        libvirt.refused("start fails")
    assert host.libvirt.hooks.phases("fails") == called
    assert host.released("fails0")


def test_a_name_that_a_hook_prints_counts_only_in_restore(host: Place) -> None:
    define(host, "former", "dev='former0' bridge='br0'")
    with hook("case $2 in prepare | start | restore) sed s/former0/later0/ ;; esac"):
        virsh("start --paused former")
        assert opened("former") == "former0"
        virsh("save former /run/former.save")
        virsh("restore --paused /run/former.save")
        assert opened("former") == "later0"
    assert host.state("later0") == "active"
    assert host.released("former0")


def test_libvirt_keeps_a_name_that_looks_like_its_own(host: Place) -> None:
    define(host, "own", "dev='vnet7' bridge='br0'")
    assert "dev='vnet7'" in virsh("dumpxml --inactive own")
    virsh("start --paused own")
    assert opened("own") == "vnet7"


def test_metadata_can_be_set_by_virsh(host: Place) -> None:
    nic = "<interface type='ethernet'><target dev='set0' managed='no'/></interface>"
    host.libvirt.define(domain("set", nic))
    done = libvirt.call(
        *("metadata", "set", "--config", "--uri", "urn:tapster:libvirt:1"),
        *("--key", "tapster", "--set", "<nics><nic dev='set0' bridge='br0'/></nics>"),
    )
    assert done.returncode == 0, done.stderr
    virsh("start --paused set")
    assert "set0" in iproute.ports()


@pytest.mark.parametrize(
    "element",
    [
        "<virtualport type='openvswitch'/>",
        "<port isolated='yes'/>",
        "<coalesce><rx><frames max='7'/></rx></coalesce>",
    ],
)
def test_elements_that_libvirt_refuses_in_an_unmanaged_interface(
    host: Place, element: str
) -> None:
    xml = adopted("refused", "dev='refused0' bridge='br0'", more=element)
    assert libvirt.call("define", "/dev/stdin", xml=xml).returncode != 0


def test_libvirt_drops_a_bridge_of_an_unmanaged_interface(host: Place) -> None:
    define(host, "drops", "dev='drops0' bridge='br0'", "<source bridge='br0'/>")
    assert "<source" not in virsh("dumpxml --inactive drops")


def test_virsh_cannot_plug_in_an_unmanaged_interface(host: Place) -> None:
    define(host, "plain", "dev='plain0' bridge='br0'")
    virsh("start --paused plain")
    said = libvirt.refused("attach-interface plain ethernet --source hp0")
    assert "No support for ethernet" in said


def test_libvirt_kills_a_vm_whose_hook_fails_in_reconnect(host: Place) -> None:
    define(host, "killed", "dev='killed0' bridge='br0'")
    virsh("start --paused killed")
    with hook("[ $2 != reconnect ]"):
        host.libvirt.restart()
        wait_until_off("killed")
    assert host.released("killed0")


def test_libvirt_does_not_answer_a_hook(host: Place) -> None:
    define(host, "asks", "dev='asks0' bridge='br0'")
    answer = Path("/run/asked")
    ask = f"timeout 1 virsh --connect qemu:///system domstate asks; echo $? >{answer}"
    with hook(f"[ $2 != prepare ] || {{ {ask}; }}"):
        virsh("start --paused asks")
    assert answer.read_text() == "124\n", "the time was over"


def test_a_domain_does_not_start_without_the_hook(host: Place) -> None:
    define(host, "without", "dev='without0' bridge='br0'")
    libvirt.HOOK.chmod(0o644)
    try:
        said = libvirt.refused("start without")
    finally:
        libvirt.HOOK.chmod(0o755)
    assert "target managed='no' but specified dev doesn't exist" in said


def test_a_waiting_device_that_libvirt_opens_without_the_hook_is_kept(
    host: Place,
) -> None:
    """The domain was just destroyed: its former device is there, and is nobody's."""
    define(host, "again", "dev='again0' bridge='br0'")
    virsh("start --paused again")
    virsh("destroy again")
    libvirt.HOOK.chmod(0o644)
    try:
        virsh("start --paused again")
    finally:
        libvirt.HOOK.chmod(0o755)
    assert "a process opened it" in host.refused("reap --now")
    assert "LOWER_UP" not in iproute.links()["again0"]["flags"]
    assert "again0" not in iproute.ports()
    found = subprocess.run(
        [shell.TAPSTER, "--ledger", str(host.ledger), "doctor"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "again0 was released, and then a process opened it" in found.stdout
    virsh("destroy again")
    host.tapster("reap --now")
    assert "again0" not in iproute.links()


def test_two_domains_can_share_a_device_that_is_not_tapsters(host: Place) -> None:
    """The kernel joins them without a word."""
    shell.sh("ip tuntap add shared0 mode tap multi_queue vnet_hdr")
    nic = (
        "<interface type='ethernet'><target dev='shared0' managed='no'/>"
        f"<model type='virtio'/>{TWO_QUEUES}<rom enabled='no'/></interface>"
    )
    for name in ("joins", "joined"):
        host.libvirt.define(domain(name, nic))
        virsh(f"start --paused {name}")
    assert queues("shared0") == 4
    shown: dict[str, Any] = json.loads(host.tapster("ls --json"))
    assert "shared0" not in {lease["name"] for lease in shown["leases"]}


def queues(device: str) -> int:
    data = iproute.links()[device]["linkinfo"]["info_data"]
    return int(data["numqueues"] + data.get("numdisabled", 0))


def test_what_a_hook_is_given(host: Place) -> None:
    """The process, its environment, and the whole domain at every phase."""
    define(host, "given", "dev='given0' bridge='br0'")
    folder = Path("/run/given")
    folder.mkdir()
    note = "{ id -u; echo $PPID; pwd; env; cat; }"
    with hook(f"{note} >{folder}/$2"):
        virsh("start --paused given")
        virsh("destroy given")
    phases = {"prepare", "start", "started", "stopped", "release"}
    assert {path.name for path in folder.iterdir()} == phases
    for phase in phases:
        uid, parent, place, *rest = (folder / phase).read_text().splitlines()
        libvirtd = Path("/proc", parent)
        assert (libvirtd / "comm").read_text() == "libvirtd\n", phase
        assert (uid, place) == ("0", str((libvirtd / "cwd").readlink())), phase
        begin = next(n for n, line in enumerate(rest) if line.startswith("<domain"))
        names = {line.partition("=")[0] for line in rest[:begin]}
        assert names - {"PWD", "SHLVL", "_"} == {"LC_ALL", "PATH", "HOME"}, phase
        xml = "\n".join(rest[begin:])
        assert "urn:tapster:libvirt:1" in xml, phase
        assert "given0" in xml, phase


def test_virsh_shows_the_last_line_that_a_hook_writes(host: Place) -> None:
    define(host, "says", "dev='says0' bridge='br0'")
    with hook("[ $2 != prepare ] || { seq 2000 >&2; echo the reason >&2; exit 1; }"):
        assert "the reason" in libvirt.refused("start says")


def test_libvirt_cannot_open_a_device_of_another_number_of_queues(host: Place) -> None:
    shell.sh("ip tuntap add single0 mode tap vnet_hdr")
    nic = (
        "<interface type='ethernet'><target dev='single0' managed='no'/>"
        f"<model type='virtio'/>{TWO_QUEUES}<rom enabled='no'/></interface>"
    )
    host.libvirt.define(domain("mismatch", nic))
    assert "Invalid argument" in libvirt.refused("start mismatch")


def test_a_device_that_was_plugged_in_ends_with_the_domain(host: Place) -> None:
    """libvirt calls no hook for it, and it is not in the XML that has the domain's."""
    define(host, "more", "dev='more0' bridge='br0'")
    virsh("start --paused more")
    host.tapster("libvirt attach more --bridge br0 --model usb-net --name more1")
    nic = "<interface type='ethernet'><target dev='more1' managed='no'/>"
    mac = f"<mac address='{host.leases()['more1']['mac']}'/></interface>"
    done = libvirt.call("detach-device", "more", "/dev/stdin", xml=nic + mac)
    assert done.returncode == 0, done.stderr
    wait_for(
        lambda: "NO-CARRIER" in iproute.links()["more1"]["flags"], "QEMU closes it"
    )
    assert host.state("more1") == "active", "nobody told Tapster"
    virsh("destroy more")
    assert host.released("more0")
    assert host.released("more1")


def test_virt_install_accepts_an_unmanaged_target_but_no_metadata(
    host: Place,
) -> None:
    create = (
        "virt-install --print-xml --name made --memory 64 --disk none --pxe "
        "--virt-type qemu --osinfo detect=off,require=off --graphics none "
    )
    network = "--network type=ethernet,target.dev=made0,model=virtio"
    assert "managed" in shell.refused(f"{create} {network},target.managed=no")
    told = shell.sh(f"{create} {network} --xml ./devices/interface/target/@managed=no")
    assert '<target dev="made0" managed="no"/>' in told
    nics = "--xml ./metadata/tapster:nics/tapster:nic/@dev=made0"
    assert "xmlXPathEval" in shell.refused(f"{create} {network} {nics}")
