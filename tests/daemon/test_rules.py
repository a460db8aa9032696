# SPDX-License-Identifier: Apache-2.0
"""Filters and limits that another program deletes: the daemon puts them back."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyroute2
import pytest

import tapster
from lab import iproute, shell
from lab.daemon import Daemon
from lab.library import close_all, no_reaper
from lab.nftables import table_of
from tapster import Action, Client, Host, Rate, Tap
from tapster.daemon.upkeep import ENTRY, RULES

pytestmark = pytest.mark.kernel

SPEC = Tap(bridge="br0", filter=True, inbound=Rate(1000), outbound=Rate(1000))


@pytest.fixture(params=[None, "blue"])
def netns(daemon: Daemon, request: pytest.FixtureRequest) -> str | None:
    """The daemon's own namespace, and another."""
    netns: str | None = request.param
    shutil.copytree(Path(pyroute2.__file__).parent, "/run/test/lib/pyroute2")
    if netns:
        shell.sh(f"ip netns add {netns}")
        shell.sh(f"ip -n {netns} link add br0 type bridge")
    return netns


@pytest.fixture
def root(daemon: Daemon, netns: str | None) -> Iterator[Client]:
    with tapster.connect(daemon.socket, netns=netns) as root:
        yield root


def rules(netns: str | None) -> tuple[object, ...]:
    """What nft and tc show of all devices, without handles and counters."""
    enter = f"ip netns exec {netns} " if netns else ""
    nft = json.loads(shell.sh(f"{enter}nft --json list ruleset"))["nftables"]
    chains = [each for each in nft if not {"set", "metainfo"} & each.keys()]
    for each in chains:
        for body in each.values():
            body.pop("handle")
    chains.sort(key=table_of)  # the order of the tables means nothing
    sets = {
        each["set"]["name"]: len(each["set"].get("elem", ()))
        for each in nft
        if "set" in each
    }
    qdiscs = json.loads(shell.sh(f"{enter}tc -json qdisc show dev vnet0"))
    filters = json.loads(shell.sh(f"{enter}tc -json filter show dev vnet0 ingress"))
    return chains, sets, [each["kind"] for each in qdiscs], len(filters)


@pytest.mark.parametrize(
    "deletion",
    [
        "nft flush ruleset",
        "nft delete table bridge {table}",
        "nft flush table bridge {table}",
        "nft flush set bridge {table} macs",
        "tc qdisc del dev vnet0 root",
        "tc qdisc replace dev vnet0 root pfifo",
        "tc qdisc del dev vnet0 clsact",
        "tc filter del dev vnet0 ingress",
    ],
)
def test_deleted_rules_are_put_back_at_once(
    daemon: Daemon, root: Client, netns: str | None, deletion: str
) -> None:
    lease, other = root.acquire(SPEC), root.acquire(SPEC)
    before = rules(netns)
    (table,) = {
        each["table"]["name"]
        for each in before[0]  # type: ignore[attr-defined]
        if each.get("table", {}).get("name", "").endswith("_filter")
    }
    events = daemon.events()
    enter = f"ip netns exec {netns} " if netns else ""
    shell.sh(enter + deletion.format(table=table))
    names = {"vnet0", "vnet1"} if "nft" in deletion else {"vnet0"}
    for _ in range(len(names)):
        told = next(events)
        assert (told.event, told.detail) == ("restored", RULES)
        names.remove(told.name or "")
    assert rules(netns) == before
    assert [item.event for item in root.events()] == ["repaired"] * (
        2 if "nft" in deletion else 1
    )
    close_all(lease, other)


@pytest.mark.parametrize("repair", [False, True])
def test_a_device_that_was_moved_away_and_back_is_filtered(
    world: None, repair: bool
) -> None:
    """The kernel takes the guard and the queue from a device that is moved."""
    policy = "[watch]\nrepair = true\n" if repair else ""
    with Daemon(policy=policy) as daemon, ExitStack() as stack:
        daemon.start()
        root = stack.enter_context(tapster.connect(daemon.socket))
        shutil.copytree(Path(pyroute2.__file__).parent, "/run/test/lib/pyroute2")
        shell.sh("ip netns add away")
        device = root.acquire(SPEC)
        before = rules(None)
        events = daemon.events()
        shell.sh("ip link set vnet0 netns away")
        assert next(events).event == "lost"
        shell.sh(f"ip -n away link set vnet0 netns {os.getpid()}")
        assert next(events).event == "down"
        if not repair:
            shell.sh("ip link set vnet0 master br0 up")
        told = {next(events).event}
        while not told >= {"sound", "restored"}:
            told.add(next(events).event)
        assert rules(None) == before
        with Host(daemon.ledger, reaper=no_reaper) as host:
            assert host.recover() == []
        device.close()


@pytest.mark.parametrize("spec", [SPEC, Tap(bridge="br0", learning=False)])
@pytest.mark.parametrize(
    "deletion", ["fdb flush dev br0", "fdb del {mac} dev vnet0 master"]
)
def test_a_deleted_static_entry_is_put_back_at_once(
    daemon: Daemon, root: Client, netns: str | None, deletion: str, spec: Tap
) -> None:
    """The bridge floods nothing to this port: without it the VM is cut off."""
    device, plain = root.acquire(spec), root.acquire(Tap(bridge="br0"))
    before = iproute.neighbours(netns)
    assert before["vnet0"] == {device.mac}
    events = daemon.events()
    enter = f"ip netns exec {netns} " if netns else ""
    shell.sh(f"{enter}bridge {deletion.format(mac=device.mac)}")
    told = next(events)
    assert (told.event, told.name, told.detail) == ("restored", "vnet0", ENTRY)
    assert iproute.neighbours(netns) == before
    close_all(device, plain)


def test_a_sticky_entry_that_is_made_another_one_is_put_back(
    daemon: Daemon, root: Client, netns: str | None
) -> None:
    """One frame from another port could take an entry that is not sticky."""
    device = root.acquire(Tap(bridge="br0", learning=False))
    before = iproute.neighbours(netns)
    events = daemon.events()
    enter = f"ip netns exec {netns} " if netns else ""
    shell.sh(f"{enter}bridge fdb replace {device.mac} dev vnet0 master static")
    told = next(events)
    assert (told.event, told.detail) == ("changed", "neighbour is off, not on")
    assert next(events).event == "sound"
    assert iproute.neighbours(netns) == before
    device.close()


def test_a_port_that_left_its_bridge_has_lost_no_entry(
    daemon: Daemon, root: Client, netns: str | None
) -> None:
    """Whether it is put back on its bridge, the configuration says."""
    device = root.acquire(Tap(bridge="br0", learning=False))
    events = daemon.events()
    enter = f"ip netns exec {netns} " if netns else ""
    shell.sh(f"{enter}ip link set vnet0 nomaster")
    assert next(events).event == "moved"
    last = root.acquire(Tap(bridge="br0"))
    assert next(events).event == "acquired"
    assert "master" not in iproute.links(netns)["vnet0"]
    close_all(device, last)


@pytest.mark.parametrize(
    "change",
    [
        "bridge link set dev vnet0 isolated off",
        "bridge link set dev vnet0 learning on",
        "sysctl -q -w net.ipv4.conf.vnet0.rp_filter=0",
    ],
)
def test_a_change_that_the_kernel_does_not_report_is_found(
    daemon: Daemon, root: Client, netns: str | None, change: str
) -> None:
    device = root.acquire(Tap(bridge="br0", isolated=True, learning=False))
    events = daemon.events()
    enter = f"ip netns exec {netns} " if netns else ""
    shell.sh(enter + change)
    told = next(events)
    assert (told.event, told.name) == ("changed", "vnet0")
    with Host(daemon.ledger, reaper=no_reaper) as host:
        assert [repair.action for repair in host.recover()] == [Action.REWIRE]
    assert next(events).event == "sound"
    device.close()


def test_what_tapster_does_to_rules_is_no_event(daemon: Daemon, root: Client) -> None:
    events = daemon.events()
    lease, other = root.acquire(SPEC), root.acquire(SPEC)
    root.set(lease.id, inbound=None, outbound=None, filter=False)
    root.set(lease.id, filter=True, outbound=Rate(500))
    close_all(lease, other)
    root.release(lease.id)
    last = root.acquire(Tap(bridge="br0"))
    heard = [next(events).event for _ in range(6)]
    assert heard == [*["acquired"] * 2, *["set"] * 2, "released", "acquired"]
    last.close()


def test_a_change_of_another_programs_table_is_no_event(
    daemon: Daemon, root: Client
) -> None:
    lease = root.acquire(SPEC)
    events = daemon.events()
    subprocess.run(
        ["nft", "--file", "-"],
        input="add table bridge theirs\ndelete table bridge theirs\n",
        text=True,
        check=True,
    )
    last = root.acquire(Tap(bridge="br0"))
    assert next(events).event == "acquired"
    close_all(lease, last)
