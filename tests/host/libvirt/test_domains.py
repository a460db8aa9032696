# SPDX-License-Identifier: Apache-2.0
"""Debian's own libvirt under systemd and AppArmor, with domains on Tapster's devices.

QEMU runs inside a host that QEMU runs, both without KVM: the guest is its network
card's firmware, which gets an address, stays, and answers pings.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab import libvirt
from lab.host import cache, image, product
from lab.host.cable import cable
from lab.host.debian import DebianHost, Failed
from lab.host.image import Image
from lab.vm_network import DNSMASQ, FILES, STAY
from tests.host.outside.ground import add_bridge, enable, leases, wait_output

SLOW = 300
"""Seconds in which firmware in a guest in a host, both without KVM, has its address."""
GUESTS = """\
ON_SHUTDOWN=suspend
"""
"""Settings of libvirt-guests: a guest without an operating system cannot shut down."""
LISTEN = """
echo 'auth_tcp = "none"' >>/etc/libvirt/libvirtd.conf
systemctl enable --quiet libvirtd-tcp.socket
"""
DISK = "installed.qcow2"
LEFT, RIGHT = "192.0.2.1", "192.0.2.2"
WEB, MOVER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"

ADDRESS = """\
[Unit]
After=bridge.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip link set br0 address 02:00:00:00:01:{last:02x}
ExecStart=/bin/ip address add {address}/24 dev br0
[Install]
WantedBy=multi-user.target
"""
DHCP = """\
[Unit]
After=address.service
[Service]
ExecStartPre=/bin/mkdir -p {files}
ExecStartPre=/bin/cp /srv/stay.ipxe {files}
ExecStart={command} --keep-in-foreground
[Install]
WantedBy=multi-user.target
"""


def guest(name: str, mac: str) -> str:
    """Return a domain as people write it, whose tap libvirt would make."""
    return libvirt.domain(
        name,
        f"<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/>"
        "<model type='rtl8139'/><boot order='1'/></interface>",
    )


def install(made: Image, folder: Path) -> None:
    """Make a disk with Tapster, its hook, AppArmor on, and libvirt open to the net."""
    with DebianHost(made) as host:
        host.boot()
        product.install(host)
        add_bridge(host)
        host.write("/etc/default/libvirt-guests", GUESTS)
        host.sh(LISTEN)
        host.sh("tapster libvirt install; systemctl enable --quiet --now apparmor")
        host.sh("systemctl restart libvirtd; virsh domcapabilities >/dev/null")
        host.power_off()
        shutil.copy(host.disk, folder / DISK)


def prepare(host: DebianHost, address: str) -> None:
    """Boot the host, and give its bridge an address."""
    host.boot()
    unit = ADDRESS.format(address=address, last=int(address.rpartition(".")[2]))
    enable(host, "address.service", unit)


def serve_addresses(host: DebianHost) -> None:
    """Give addresses to guests, now and at every boot."""
    host.write("/srv/stay.ipxe", STAY)
    command = shlex.join(["/usr/sbin/dnsmasq", *DNSMASQ[1:]])
    enable(host, "dhcp.service", DHCP.format(command=command, files=FILES))


def define(host: DebianHost, xml: str) -> None:
    host.run("virsh", "define", "/dev/stdin", input=xml.encode())


def adopt(host: DebianHost, name: str) -> str:
    """Adopt a domain; return the name of its device."""
    said = host.run("tapster", "libvirt", "adopt", name).stdout
    device, on = said.removeprefix(f"{name}: ").split()
    assert on == "bridge=br0"
    return device


def link(host: DebianHost, device: str) -> dict[str, Any]:
    (shown,) = json.loads(host.sh(f"ip -j -d link show {device}"))
    return dict(shown)


def assert_on_the_network(host: DebianHost, name: str, device: str) -> str:
    """The domain's QEMU has the device open, and the lease ends with QEMU; its id."""
    lease = leases(host)[device]
    assert lease["state"] == "active"
    assert lease["owner"] == f"libvirt:{libvirt.uuid_of(name)}"
    assert lease["pid"] == int(host.read(f"/run/libvirt/qemu/{name}.pid"))
    shown = link(host, device)
    assert shown["ifindex"] == lease["ifindex"]
    assert shown["master"] == "br0"
    assert "LOWER_UP" in shown["flags"], "QEMU has it open"
    return str(lease["id"])


def has_ended(host: DebianHost, lease: str) -> bool:
    """Return whether a lease has been released, by the history."""
    (entry,) = json.loads(host.sh(f"tapster who --json --lease {lease}"))["entries"]
    return entry["released"] is not None


def address_of(host: DebianHost, mac: str) -> str:
    """Wait until a guest has an address, and return it."""
    wait_output(host, f"cat {FILES}/leases", mac, SLOW)
    (line,) = [one for one in host.read(f"{FILES}/leases").splitlines() if mac in one]
    return line.split()[2]


def wait_answers(host: DebianHost, address: str) -> None:
    wait_output(host, f"ping -c 1 {address}", " 1 received", SLOW)


def wait_runs(host: DebianHost, name: str) -> None:
    """Wait until a domain runs with its lease; if it does not, say what libvirt did."""
    try:
        wait_output(host, "tapster libvirt ls", f"{name} .*running.*active", SLOW)
    except Failed as error:
        shown = "virsh list --all --managed-save; tapster ls --all; journalctl --boot "
        shown += "--no-pager | grep -iE 'libvirt|tapster|denied' | tail -n 60"
        error.add_note(host.run("bash", "-c", shown, check=False).stdout)
        raise


def confinement(host: DebianHost, pid: int) -> str:
    """Return the AppArmor profile of a process, and its mode."""
    return host.read(f"/proc/{pid}/attr/current").strip("\0\n")


def assert_nothing_is_wrong(host: DebianHost) -> None:
    found = host.run("tapster", "doctor", "--json", check=False).stdout
    assert json.loads(found)["problems"] == []
    assert host.sh("journalctl --quiet --boot --grep='apparmor=\"DENIED\"' || :") == ""


class Installed(NamedTuple):
    """What a host boots from, and the disk over it."""

    image: Image
    disk: Path


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Installed:
    """Debian with libvirt and Tapster; it stays in the cache."""
    suite = request.config.getoption("--suite")
    made = image.build(suite, "libvirt")
    source = [path for path in product.TREE.glob("src/**/*") if path.suffix != ".pyc"]
    files = [path.read_bytes() for path in sorted(source) if path.is_file()]
    key = cache.digest([made.disk.parent.name, *files])
    folder = cache.made(f"libvirt-{suite}", key, lambda new: install(made, new))
    return Installed(made, folder / DISK)


@pytest.fixture
def host(installed: Installed) -> Iterator[DebianHost]:
    with DebianHost(installed.image, disk=installed.disk) as host:
        prepare(host, LEFT)
        serve_addresses(host)
        yield host


def start_adopted(host: DebianHost) -> tuple[str, str]:
    """Define a domain, adopt it and start it; return its device and its lease."""
    define(host, guest("web", WEB))
    device = adopt(host, "web")
    host.sh("virsh start web")
    return device, assert_on_the_network(host, "web", device)


def test_a_domain_is_adopted_and_starts_and_ends_and_starts(host: DebianHost) -> None:
    define(host, guest("web", WEB))
    before = host.run("virsh", "dumpxml", "web").stdout
    device, first = start_adopted(host)
    wait_answers(host, address_of(host, WEB))
    libvirtd = int(host.read("/run/libvirtd.pid"))
    qemu = int(host.read("/run/libvirt/qemu/web.pid"))
    assert confinement(host, libvirtd) == "libvirtd (enforce)"
    assert confinement(host, qemu) == f"libvirt-{libvirt.uuid_of('web')} (enforce)"
    assert_nothing_is_wrong(host)

    # libvirtd restarts, as in an upgrade.
    host.sh("systemctl restart libvirtd")
    wait_output(host, "virsh domstate web", "running")
    assert assert_on_the_network(host, "web", device) == first

    # The domain ends, and starts again at once.
    index = link(host, device)["ifindex"]
    host.sh("virsh destroy web; virsh start web")
    assert link(host, device)["ifindex"] != index
    assert_on_the_network(host, "web", device)
    assert has_ended(host, first)

    host.sh("virsh destroy web; tapster libvirt release web")
    assert host.run("virsh", "dumpxml", "web").stdout == before


def test_a_domain_starts_with_the_host(host: DebianHost) -> None:
    """Once after a shutdown, once after a power cut.

    In the first libvirt saves the guest, and restores it; after the second the guest
    starts again.
    """
    device, former = start_adopted(host)
    address = address_of(host, WEB)
    # Firmware that is saved while it asks for its boot file may ask in vain later.
    wait_answers(host, address)
    host.sh("virsh autostart web")
    for end in (host.power_off, host.power_cut):
        host.sh("sync")
        end()
        host.boot()
        wait_runs(host, "web")
        now = assert_on_the_network(host, "web", device)
        assert has_ended(host, former)
        former = now
        wait_answers(host, address)
        assert_nothing_is_wrong(host)


@pytest.fixture
def hosts(
    installed: Installed, tmp_path: Path
) -> Iterator[tuple[DebianHost, DebianHost]]:
    """Two hosts with libvirt, whose bridges a cable joins."""

    def start(host: DebianHost, address: str) -> None:
        prepare(host, address)
        host.sh("ip link set $(basename /sys/class/net/en*) up master br0")

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        left, right = (
            stack.enter_context(
                DebianHost(
                    installed.image, name=name, disk=installed.disk, cables=[end]
                )
            )
            for name, end in zip(("left", "right"), cable(tmp_path), strict=True)
        )
        list(pool.map(start, (left, right), (LEFT, RIGHT)))
        serve_addresses(left)
        yield left, right


def test_a_vm_moves_to_another_host_and_back(
    hosts: tuple[DebianHost, DebianHost],
) -> None:
    left, right = hosts
    define(left, guest("mover", MOVER))
    device = adopt(left, "mover")
    left.sh("virsh start mover")
    lease = assert_on_the_network(left, "mover", device)
    address = address_of(left, MOVER)
    wait_answers(left, address)
    for here, there, to in ((left, right, RIGHT), (right, left, LEFT)):
        here.sh(
            f"virsh migrate --live mover qemu+tcp://{to}/system --migrateuri tcp://{to}"
        )
        assert has_ended(here, lease)
        wait_output(there, "tapster ls --json", '"standby": *false')
        lease = assert_on_the_network(there, "mover", device)
        wait_answers(left, address)
        wait_answers(right, address)
        behind_the_cable = f"^{MOVER} dev en"
        wait_output(here, "bridge fdb show br br0", behind_the_cable)
        assert_nothing_is_wrong(here)
        assert_nothing_is_wrong(there)
        # The way back is with the daemon.
        for host in hosts:
            host.sh("systemctl start tapsterd")
