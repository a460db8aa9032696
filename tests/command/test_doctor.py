# SPDX-License-Identifier: Apache-2.0
"""What doctor says of other programs and settings that may harm VMs."""

import os
import subprocess
from pathlib import Path

import pytest

from lab import iproute, nftables, reapers, shell
from lab.library import no_reaper
from lab.strangers import foreign_tap
from tapster import Host, Tap, doctor, hazards
from tapster.kernel import udev
from tapster.kernel.boot import boottime
from tapster.kernel.linux import LinuxNamespace
from tapster.model import Link

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture(autouse=True)
def environment(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_LEDGER", str(ledger))


def tapster(*words: str) -> str:
    return subprocess.run(
        [shell.TAPSTER, *words], check=False, stdout=subprocess.PIPE, text=True
    ).stdout


def problems() -> list[tuple[str, str]]:
    """Each problem with its remedy."""
    said = tapster("doctor")
    lines = [] if said == "nothing is wrong\n" else said.splitlines()
    return list(zip(lines[::2], [line.strip() for line in lines[1::2]], strict=True))


def test_each_fault_of_the_settings_is_a_problem() -> None:
    shell.write_settings("[defaults]\nbride = 'br0'\n[[allow]]\nbridges = ['br0']\n")
    said = problems()
    assert [remedy for _, remedy in said] == [
        "correct it, then: systemctl try-reload-or-restart tapsterd"
    ] * 2
    text = " ".join(problem for problem, _ in said)
    assert "tapster.toml: line 2: defaults.bride: " in text
    assert "tapster.toml: line 3: allow[0]: the rule is for nobody" in text


@pytest.mark.parametrize("part", ["ledger.db", "ledger.db.lock", ""])
def test_a_ledger_that_every_user_may_change(ledger: Path, part: str) -> None:
    tapster("ls")
    path = ledger.parent / part
    path.chmod(path.stat().st_mode | 0o022)
    ((problem, remedy),) = problems()
    assert problem.startswith(f"{path} can be changed by every user")
    shell.sh(remedy)
    assert problems() == []


def test_a_ledger_in_a_directory_as_tmp(ledger: Path) -> None:
    ledger.parent.chmod(0o1777)
    tapster("ls")
    assert problems() == []


def test_a_spanning_tree_keeps_a_new_vm_waiting() -> None:
    tapster("add", "--bridge", "br0")
    assert problems() == []
    shell.sh("ip link set br0 type bridge stp_state 1")
    ((problem, remedy),) = problems()
    assert "br0 takes part in the spanning tree" in problem
    assert "for 30 s" in problem
    shell.sh(remedy.partition(",")[0])
    ((problem, _),) = problems()
    assert "for 4 s" in problem
    shell.sh("ip link set br0 type bridge stp_state 0")
    assert problems() == []


def test_a_mac_that_two_devices_have_on_one_bridge() -> None:
    mac = "52:54:00:00:00:01"
    tapster("add", "--bridge", "br0", "--mac", mac)
    shell.sh(f"ip link add one address {mac} type veth peer name other")
    assert problems() == [], "it is on no bridge of a VM"
    shell.sh("ip link set one master br0")
    ((problem, _),) = problems()
    assert f"MAC {mac} is used more than once on br0" in problem
    assert "lease vnet0" in problem
    assert "device one" in problem
    shell.sh("ip link set one nomaster")
    tapster("add", "--mac", mac, "--bridge", "br0", "--standby")
    assert problems() == [], "a device on standby is connected to nothing"


@pytest.mark.skipif(
    not Path(f"{hazards.CALLS}iptables").exists(),
    reason="the kernel has no br_netfilter",
)
def test_a_firewall_that_drops_what_a_bridge_forwards() -> None:
    tapster("add", "--bridge", "br0")
    Path(f"{hazards.CALLS}iptables").write_text("1")
    chain = "chain ip filter FORWARD"
    shell.sh("nft add table ip filter")
    hook = "type filter hook forward priority 0"
    shell.sh(f"nft add {chain} {{ {hook}; policy accept; }}")
    assert problems() == []
    shell.sh(f"nft {chain} {{ policy drop; }}")
    ((problem, remedy),) = problems()
    assert chain in problem
    shell.sh(remedy.partition(",")[0])
    assert problems() == []


@pytest.mark.parametrize("table", ["iptables", "ip6tables"])
@pytest.mark.skipif(
    not Path(f"{hazards.CALLS}iptables").exists(),
    reason="the kernel has no br_netfilter",
)
def test_a_firewall_in_the_older_tables(table: str) -> None:
    """nftables does not list them: Docker uses them on some hosts."""
    tapster("add", "--bridge", "br0")
    Path(f"{hazards.CALLS}{table}").write_text("1")
    assert problems() == []
    shell.sh(f"{table}-legacy -A FORWARD -m mark --mark 1 -j DROP")
    assert problems() == []
    shell.sh(f"{table}-legacy -P FORWARD DROP")
    ((problem, remedy),) = problems()
    assert f"chain FORWARD of {table}-legacy drops" in problem
    shell.sh(remedy.partition(",")[0])
    assert problems() == []


def test_a_bridge_whose_mtu_another_port_has_lowered() -> None:
    shell.sh("ip link add lan type bridge")
    shell.sh("ip link set lan up address 02:00:00:00:00:01")
    shell.sh("ip link add port up type veth peer name far")
    shell.sh("ip link set port master lan")
    device = tapster("add", "--bridge", "lan").strip()
    assert problems() == []
    shell.sh("ip link set port mtu 1400")
    ((problem, remedy),) = problems()
    assert f"lease {device} (" in problem
    assert "has an MTU of 1500, but bridge lan of 1400" in problem
    shell.sh(remedy.partition(",")[0])
    assert problems() == []


@pytest.mark.skipif(
    not Path(f"{hazards.CALLS}iptables").exists(),
    reason="the kernel has no br_netfilter",
)
def test_a_firewall_that_judges_one_bridge_alone() -> None:
    tapster("add", "--bridge", "br0")
    for table in ("iptables", "ip6tables"):
        Path(f"{hazards.CALLS}{table}").write_text("0")
    shell.sh("ip link add br1 type bridge nf_call_iptables 1")
    shell.sh("nft add table ip filter")
    hook = "type filter hook forward priority 0; policy drop;"
    shell.sh(f"nft add chain ip filter FORWARD {{ {hook} }}")
    assert problems() == [], "no VM is on the bridge"
    shell.sh("ip link set br0 type bridge nf_call_iptables 1")
    ((problem, remedy),) = problems()
    assert "chain ip filter FORWARD" in problem
    shell.sh(remedy.partition(",")[0])
    assert problems() == []


@pytest.mark.parametrize(
    ("family", "hook", "policy", "rule"),
    [
        ("ip6", "forward", "drop", ""),
        ("ip", "prerouting", "drop", ""),
        ("inet", "forward", "drop", ""),
        ("inet", "postrouting", "drop", ""),
        (
            *("inet", "forward", "accept"),
            "counter reject with icmpx type admin-prohibited",
        ),
        ("inet", "forward", "accept", "drop"),
        ("bridge", "forward", "drop", ""),
        ("bridge", "prerouting", "drop", ""),
        ("bridge", "postrouting", "accept", "drop"),
    ],
)
@pytest.mark.skipif(
    not Path(f"{hazards.CALLS}iptables").exists(),
    reason="the kernel has no br_netfilter",
)
def test_a_firewall_of_any_family_that_drops_the_rest(
    family: str, hook: str, policy: str, rule: str
) -> None:
    """firewalld's chains accept by policy, and their last rule rejects."""
    tapster("add", "--bridge", "br0")
    for table in ("iptables", "ip6tables"):
        Path(f"{hazards.CALLS}{table}").write_text("1")
    place = f"type filter hook {hook} priority 0; policy {policy};"
    shell.sh(f"nft add table {family} wall")
    shell.sh(f"nft add chain {family} wall through {{ {place} }}")
    shell.sh(f"nft add rule {family} wall through meta mark 1 accept")
    if rule:
        assert problems() == []
        shell.sh(f"nft add rule {family} wall through {rule}")
    ((problem, _),) = problems()
    assert f"chain {family} wall through drops" in problem


@pytest.mark.parametrize(
    ("family", "hook", "policy", "device"),
    [
        ("netdev", "ingress", "drop", 'device "vnet0"'),
        ("netdev", "egress", "drop", "devices = { other, vnet0 }"),
        ("inet", "ingress", "drop", 'device "vnet0"'),
        ("netdev", "ingress", "accept", 'device "low"'),
    ],
)
def test_a_firewall_at_the_device_of_a_vm(
    family: str, hook: str, policy: str, device: str
) -> None:
    """nftables knows it by name: a former device of the name may have left it."""
    add_veth()
    shell.sh("ip link add other type veth peer name another")
    place = ("--link", "low") if "low" in device else ("--bridge", "br0")
    tapster("add", *place)
    assert problems() == []
    nftables.nft(
        f"table {family} wall {{ chain vm {{ type filter hook {hook} {device} "
        f"priority 0; policy {policy}; }}; }}"
    )
    if policy == "accept":
        assert problems() == []
        nftables.nft(f"add rule {family} wall vm counter drop")
    ((problem, remedy),) = problems()
    assert f"chain {family} wall vm drops what it does not accept" in problem
    assert "the VM of lease vnet0" in problem
    nftables.nft(f"flush chain {family} wall vm")
    shell.sh(remedy.partition(": ")[2])
    assert problems() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("bridge link set dev {} state 0", "is blocked, so its VM is cut off"),
        ("bridge link set dev {} locked on", "is locked"),
        ("bridge link set dev {} bcast_flood off", "gets no broadcasts"),
        ("bridge link set dev {} mcast_flood off", "gets no multicast that its VM has"),
        ("bridge link set dev {} hairpin on", "sends its VM's frames back to it"),
        (
            "ip link set dev {} type bridge_slave proxy_arp on",
            "has proxy ARP: the bridge floods nothing to it",
        ),
    ],
)
def test_a_port_that_another_program_has_blocked(change: str, said: str) -> None:
    device = tapster("add", "--bridge", "br0").strip()
    fd = foreign_tap(device)
    try:
        reapers.wait_for(lambda: state_of(device) == "forwarding", "the port is up")
        assert problems() == []
        shell.sh(change.format(device))
        ((problem, remedy),) = problems()
        assert f"port {device} of bridge br0 {said}" in problem
        shell.sh(remedy)
        assert problems() == []
    finally:
        os.close(fd)


@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_whose_carrier_a_program_has_switched_off(queues: int) -> None:
    idle = tapster("add", "--bridge", "br0").strip()
    with Host(reaper=no_reaper) as host:
        device = host.acquire(Tap(bridge="br0", queues=queues))
    with device:
        assert problems() == [], f"no process has {idle} open"
        shell.sh(f"ip link set dev {device.name} carrier off")
        ((problem, remedy),) = problems()
        assert f"lease {device.name} (" in problem
        assert "has no carrier, although a process has its device open" in problem
        shell.sh(remedy)
        assert problems() == []


@pytest.mark.parametrize("place", ["port", "br0"])
def test_a_static_entry_that_sends_a_vms_frames_elsewhere(place: str) -> None:
    """As one that is left of a VM that has moved here."""
    shell.sh("ip link add port up type veth peer name far")
    shell.sh("ip link set port master br0")
    device = tapster("add", "--bridge", "br0", "--mac", "52:54:00:00:00:09").strip()
    assert problems() == []
    where = "self local" if place == "br0" else "master static"
    shell.sh(f"bridge fdb add 52:54:00:00:00:09 dev {place} {where}")
    ((problem, remedy),) = problems()
    assert problem.startswith(
        f"bridge br0 has a static entry for MAC 52:54:00:00:00:09 of lease {device} ("
    )
    assert f"at {place}: frames to its VM go there" in problem
    shell.sh(remedy)
    assert problems() == []


def state_of(port: str) -> object:
    data = iproute.links()[port]["linkinfo"]["info_slave_data"]
    return data["state"]


@pytest.mark.parametrize("of", ["the bridge", "another tap"])
def test_a_guest_that_has_the_mac_of_a_device_of_the_host(of: str) -> None:
    """The bridge keeps frames to this MAC for the host."""
    device = tapster("add", "--bridge", "br0").strip()
    place = "br0" if of == "the bridge" else device
    mac = iproute.links()[place]["address"]
    tapster("add", "--bridge", "br0", "--mac", mac)
    ((problem, _),) = problems()
    assert f"MAC {mac} is used more than once on br0: lease vnet1" in problem
    assert f"device {place}" in problem


def test_a_mac_that_a_vm_of_another_ledger_has() -> None:
    """libvirt's own taps have such a MAC, too."""
    mac = "52:54:00:00:00:01"
    tapster("add", "--bridge", "br0", "--mac", mac)
    shell.sh("ip tuntap add other mode tap")
    shell.sh("ip link set other address fe:54:00:00:00:01")
    assert problems() == [], "it is on no bridge of a VM"
    shell.sh("ip link set other master br0")
    ((problem, _),) = problems()
    assert f"MAC {mac} is used more than once on br0: lease vnet0" in problem
    assert "the VM of device other" in problem


def add_veth() -> None:
    shell.sh("ip link add low up type veth peer name far")
    shell.sh("ip link set far up")


def test_a_macvtap_that_a_program_keeps_down() -> None:
    """As a program for redundant switches does: the device stays up."""
    add_veth()
    device = tapster("add", "--link", "low").strip()
    assert problems() == []
    shell.sh(f"ip link set dev {device} protodown on")
    ((problem, remedy),) = problems()
    assert f"lease {device} (" in problem
    assert "has no carrier, although the device that it is on has" in problem
    shell.sh(remedy)
    assert problems() == []


def test_a_macvtap_without_a_queue_for_broadcasts() -> None:
    add_veth()
    device = tapster("add", "--link", "low").strip()
    assert problems() == []
    shell.sh(f"ip link set dev {device} type macvtap bcqueuelen 0")
    ((problem, remedy),) = problems()
    assert f"lease {device} (" in problem
    assert "gets no broadcasts, so its VM hears no ARP request" in problem
    shell.sh(remedy)
    assert problems() == []


def test_a_bridge_that_has_the_mac_of_a_vms_port() -> None:
    """It takes the lowest of its ports', so the stop of one VM changes it."""
    shell.sh("ip link add lan up type bridge")
    shell.sh("ip link add veth0 address 02:00:00:00:00:05 type veth peer name veth1")
    shell.sh("ip link set veth0 master lan")
    tapster("add", "--bridge", "lan", "--owner", "a", "--mac", "52:54:00:00:00:01")
    tapster("add", "--bridge", "lan", "--mac", "52:54:00:00:00:02")
    assert problems() == [], "a device of the host has a lower one"
    shell.sh("ip link del veth0")
    assert iproute.links()["lan"]["address"] == "fe:54:00:00:00:01"
    ((problem, remedy),) = problems()
    assert "bridge lan has the MAC of a VM's port, fe:54:00:00:00:01" in problem
    shell.sh(remedy.partition(": ")[2])
    assert problems() == []
    tapster("rm", "--owner", "a")
    assert iproute.links()["lan"]["address"] == "02:54:00:00:00:01"


def test_a_lower_device_that_is_down() -> None:
    add_veth()
    tapster("add", "--link", "low")
    assert problems() == []
    shell.sh("ip link set low name lan0")
    shell.sh("ip link set lan0 down")
    (found,) = problems()
    assert found == ("device lan0 is down, with VMs on it", "ip link set lan0 up")
    shell.sh(found[1])
    shell.sh("ip link set far down")
    ((problem, _),) = problems()
    assert problem == "device lan0 has no carrier, with VMs on it"


def test_a_lower_device_that_was_moved_away() -> None:
    """The kernel takes a device down that it moves."""
    add_veth()
    shell.sh("ip netns add pod")
    tapster("add", "--link", "low")
    shell.sh("ip link set low netns pod")
    ((problem, _),) = problems()
    assert "vnet0" in problem
    assert "low, is in another network namespace, and passes no frames" in problem
    shell.sh("ip -n pod link set low up")
    assert problems() == []


def test_a_lower_device_that_carries_shorter_frames() -> None:
    add_veth()
    tapster("add", "--link", "low")
    shell.sh("ip link set low mtu 1300")
    ((problem, remedy),) = problems()
    assert "has an MTU of 1500, but the device that it is on, low, of 1300" in problem
    raised, recover = remedy.split(" && ")
    shell.sh(raised)
    tapster(*recover.split()[1:])
    assert iproute.links()["vnet0"]["mtu"] == 1500
    assert problems() == []


def test_a_bridge_that_is_deleted_during_the_look_is_no_problem(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bridges of containers, which come and go."""
    ports = LinuxNamespace.ports

    def count(namespace: LinuxNamespace, bridge: Link) -> int:
        if bridge.name == "brief":
            shell.sh("ip link del brief")
        return ports(namespace, bridge)

    shell.sh("ip link add brief type bridge")
    with Host(ledger, reaper=no_reaper) as host:
        before = host.examine()
        monkeypatch.setattr(LinuxNamespace, "ports", count)
        assert host.examine() == before
    assert "brief" not in iproute.links()


def test_udev_that_is_not_told_to_keep_its_hands_off() -> None:
    for directory in ("/etc", "/run"):
        shell.sh(f"mount -t tmpfs tmpfs {directory}")
    assert problems() == []
    Path(udev.CONTROL).parent.mkdir()
    Path(udev.CONTROL).touch()
    if any(Path(f"{one}/{udev.HANDS_OFF}").exists() for one in udev.LIBRARIES):
        assert problems() == []
        return
    ((problem, remedy),) = problems()
    assert "udev is not told" in problem
    assert remedy == "tapster install-service"
    hands_off = Path(f"/etc/{udev.HANDS_OFF}")
    hands_off.parent.mkdir(parents=True)
    hands_off.touch()
    assert problems() == []


def test_another_ledger_is_one_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(7):
        tapster("add")
    monkeypatch.setenv("TAPSTER_LEDGER", str(tmp_path / "another.db"))
    ((problem, remedy),) = problems()
    assert problem.startswith(
        "7 devices (vnet0, vnet1, vnet2, vnet3, vnet4, ...) belong to"
    )
    other = problem.rpartition(" ")[2]
    assert remedy.endswith(f"tapster doctor --remove {other}")
    assert tapster("doctor", "--remove", other, "vnet1", "vnet3") == (
        "deleted vnet1\ndeleted vnet3\n"
    )
    ((problem, _),) = problems()
    assert problem.startswith("5 devices (vnet0, vnet2, ")
    own = tapster("add").strip()
    for stays in ("lo", own, "nothing"):
        assert tapster("doctor", "--remove", other, "vnet0", stays) == ""
        assert "vnet0" in iproute.links(), f"{stays} must stay, so nothing goes"
    removed = tapster("doctor", "--remove", other)
    assert removed.count("deleted ") == 5
    assert tapster("doctor", "--remove", other) == ""
    assert problems() == []


def test_a_device_that_the_reaper_is_about_to_delete(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Host(ledger, reaper=no_reaper) as host:
        device = host.acquire(Tap(fin_wait=0.001))
        device.close()
        host.release(device)
        (lease,) = host.leases()
        assert lease.deadline
        due = lease.deadline
        reapers.wait_for(lambda: due < boottime(), "FIN WAIT ends")
        assert problems() == []
        monkeypatch.setattr(doctor, "LATE", 0.0)
        (problem,) = doctor.examine(host.operations)
        assert "recover would close it" in problem.description


def test_a_waiting_device_that_a_process_has_opened(ledger: Path) -> None:
    tapster("add", "--name", "web0", "--no-vnet-hdr")
    tapster("rm", "web0")
    opened = foreign_tap("web0")
    ((problem, _),) = problems()
    assert "web0 was released, and then a process opened it" in problem
    os.close(opened)
    assert problems() == []
