# SPDX-License-Identifier: Apache-2.0
"""`tapster libvirt`, with a real libvirtd behind it."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from lab import iproute, libvirt, shell
from lab.libvirt import domain, qemu_pid, virsh
from tests.command.test_json import check
from tests.libvirt.system import Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]

TIMEOUT = 60.0
BRIDGE = """\
    <interface type='bridge'>
      <mac address='52:54:00:00:01:01'/>
      <source bridge='br0'/>
      <bandwidth><outbound average='1000'/></bandwidth>
      <filterref filter='clean-traffic'>
        <parameter name='IP' value='192.0.2.7'/>
      </filterref>
      <model type='virtio'/>
    </interface>"""
NETWORK = """\
    <interface type='network'>
      <mac address='52:54:00:00:01:02'/>
      <source network='lan'/>
      <model type='e1000'/>
    </interface>"""
DIRECT = """\
    <interface type='direct'>
      <mac address='52:54:00:00:01:03'/>
      <source dev='low' mode='bridge'/>
      <model type='virtio'/>
    </interface>"""
USER = "<interface type='user'><mac address='52:54:00:00:01:04'/></interface>"
LEARNING = """\
    <interface type='bridge'>
      <source bridge='br0'/>
      <bandwidth><inbound average='1000'/></bandwidth>
      <filterref filter='clean-traffic'/>
    </interface>"""
LAN = "<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>"


@pytest.fixture(scope="module")
def host() -> Iterator[Place]:
    with place(daemon=False) as made:
        shell.sh("ip link add low type veth peer name far")
        shell.sh("ip link set low up")
        done = libvirt.call("net-define", "/dev/stdin", xml=LAN)
        assert done.returncode == 0, done.stderr
        yield made


def xml_of(name: str) -> str:
    return virsh(f"dumpxml --inactive {name}")


def test_adopt_and_release_change_a_domain_and_restore_it(host: Place) -> None:
    host.libvirt.define(domain("web", BRIDGE, NETWORK, DIRECT, USER))
    before = xml_of("web")
    shown = host.tapster("libvirt adopt --dry-run web")
    assert xml_of("web") == before
    assert host.tapster("libvirt adopt web") == shown
    assert shown.splitlines() == [
        "web: tv77656200-0 bridge=br0 outbound=1000 filter=yes address=192.0.2.7",
        "web: tv77656200-1 bridge=br0",
        "web: tv77656200-2 link=low mode=bridge",
    ]
    virsh("start --paused web")
    ports = iproute.ports()
    assert {"tv77656200-0", "tv77656200-1"} <= ports
    macvtap = iproute.links()["tv77656200-2"]
    assert (macvtap["link"], macvtap["address"]) == ("low", "52:54:00:00:01:03")
    leases = host.leases()
    assert [leases[f"tv77656200-{n}"]["mac"][-5:] for n in range(3)] == [
        "01:01",
        "01:02",
        "01:03",
    ]
    assert not leases["tv77656200-1"]["vnet_hdr"], "its model knows no virtio header"
    virsh("destroy web")
    host.tapster("libvirt release web")
    assert xml_of("web") == before


def test_adopted_guests_get_addresses_on_a_bridge_and_on_a_macvtap(host: Place) -> None:
    shell.sh("ip link set far master br0 up")
    boot = "<model type='rtl8139'/><boot order='1'/></interface>"
    bridged = (
        f"<interface type='bridge'><mac address='{{}}'/><source bridge='br0'/>{boot}"
    )
    direct = (
        "<interface type='direct'><mac address='{}'/><source dev='low' mode='bridge'/>"
        + boot
    )
    for name, interface in (("bridged", bridged), ("direct", direct)):
        mac = f"52:54:00:00:02:{len(name):02x}"
        host.libvirt.define(domain(name, interface.format(mac)))
        host.tapster(f"libvirt adopt {name}")
        virsh(f"start {name}")
        assert host.lab.wire.wait_for_ack(mac, TIMEOUT), name
    assert host.tapster("doctor") == ""
    for name in ("bridged", "direct"):
        virsh(f"destroy {name}")
        virsh(f"undefine {name}")


def test_what_would_be_lost_is_listed_and_nothing_changes(host: Place) -> None:
    host.libvirt.define(domain("lossy", LEARNING))
    before = xml_of("lossy")
    said = host.refused("libvirt adopt lossy")
    assert "give it IP" in said
    assert "--force" in said
    assert xml_of("lossy") == before
    assert "inbound=1000" in host.tapster("libvirt adopt --force lossy")
    host.tapster("libvirt release lossy")
    assert xml_of("lossy") == before


def test_adopt_converts_all_domains_at_once(host: Place) -> None:
    before = {name: xml_of(name) for name in virsh("list --all --name").split()}
    host.tapster("libvirt adopt --all --force")
    assert all("urn:tapster:libvirt:1" in xml_of(name) for name in before)
    host.tapster("libvirt release --all")
    assert {name: xml_of(name) for name in before} == before


def test_a_device_is_plugged_in_and_out_while_the_domain_runs(host: Place) -> None:
    host.libvirt.define(domain("plug"))
    said = host.refused("libvirt attach plug --bridge br0")
    assert "does not run" in said
    virsh("start --paused plug")
    name = host.tapster("libvirt attach plug --bridge br0 --model usb-net").strip()
    lease = host.leases()[name]
    assert (lease["pid"], lease["labels"]) == (qemu_pid("plug"), {"domain": "plug"})
    assert name in iproute.ports()
    assert name in virsh("domiflist plug")
    (row,) = [row for row in listed(host) if row["domain"] == "plug"]
    assert row == {
        "domain": "plug",
        "state": "paused",
        "nic": name,
        "on": "br0",
        "mac": lease["mac"],
        "lease": "active",
        "id": lease["id"],
    }
    said = host.refused("libvirt detach plug tv0-0")
    assert f"it has: {name}" in said
    host.tapster(f"libvirt detach plug {lease['mac']}")
    assert name not in virsh("domiflist plug")
    assert host.released(name)


def test_an_attach_that_fails_leaves_nothing(host: Place) -> None:
    host.libvirt.define(domain("unplugged"))
    virsh("start --paused unplugged")
    before = host.leases().keys()
    said = host.refused("libvirt attach unplugged --bridge br0 --model no-such-model")
    assert "virsh attach-device" in said
    active = [n for n, one in host.leases().items() if one["state"] == "active"]
    assert set(active) <= set(before)


def listed(host: Place) -> list[dict[str, object]]:
    output = json.loads(host.tapster("libvirt ls --json"))
    check("libvirt_ls", output)
    return list(output["nics"])


def test_ls_shows_what_a_domain_wants_before_it_starts(host: Place) -> None:
    host.libvirt.define(libvirt.adopted("idle", "dev='idle0' bridge='br0'"))
    (row,) = [row for row in listed(host) if row["domain"] == "idle"]
    assert (row["state"], row["nic"], row["on"], row["lease"]) == (
        "shut off",
        "idle0",
        "br0",
        None,
    )


def test_uninstall_removes_what_install_made(host: Place) -> None:
    made = host.tapster("libvirt uninstall").split()
    assert made == [str(libvirt.HOOK)], "its folder has a hook of another's"
    assert not libvirt.HOOK.exists()
    host.tapster("libvirt install")
    assert libvirt.HOOK.stat().st_mode & 0o777 == 0o755

    other = libvirt.HOOK.with_name("98-log")
    kept = shutil.move(other, "/run/other")
    removed = host.tapster("libvirt uninstall").split()
    folders = [libvirt.HOOK.parent.parent, libvirt.HOOK.parent]
    assert removed == [str(path) for path in (libvirt.HOOK, *reversed(folders))]
    assert not folders[0].exists()
    done = subprocess.run(
        [shell.TAPSTER, "libvirt", "install"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(path) for path in (*folders, libvirt.HOOK)]
    assert "next: systemctl restart libvirtd" in done.stderr, "it had other hooks"
    shutil.move(kept, other)


@pytest.mark.parametrize("action", ["adopt", "release"])
def test_no_domain_or_an_unknown_one_is_an_error(host: Place, action: str) -> None:
    assert "give one or more DOMAINs" in host.refused(f"libvirt {action}")
    assert "failed to get domain" in host.refused(f"libvirt {action} nobody")
