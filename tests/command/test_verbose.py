# SPDX-License-Identifier: Apache-2.0
"""`tapster -v` prints commands that have the same result as the verb itself."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import openvswitch as ovs
from lab.iproute import neighbours
from lab.namespaces import namespaces
from lab.openvswitch import OpenVswitch
from lab.reapers import kill_reapers
from lab.redirect import filters, kernel_redirects
from lab.shell import TAPSTER, sh

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

BRIDGES = """
ip link add br0 address 02:00:00:00:00:01 type bridge
ip link set br0 up mtu 1400
ip link add br1 type bridge
ip link set br1 up
ip link add eth0 type veth peer name eth1
ip link set eth0 up
"""


def verbose(*arguments: str, ledger: Path) -> tuple[str, str]:
    """Run a verb with -v and return its output and the commands it printed."""
    done = subprocess.run(
        [TAPSTER, "-v", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TAPSTER_LEDGER": str(ledger)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


KEPT = {"ifname", "mtu", "address", "master", "link", "ifalias", "num_tx_queues"}
KEPT |= {"inet6_addr_gen_mode"}
PORT_FLAGS = {"isolated", "learning", "flood"}


def devices(netns: str = "") -> list[dict[str, Any]]:
    """Return what iproute2 says of Tapster's devices, but their ifindexes."""
    found = []
    for link in json.loads(sh(f"ip {netns} -j -d link")):
        if link["ifname"].startswith(("vnet", "br")):
            info = link["linkinfo"]
            kept = {key: value for key, value in link.items() if key in KEPT}
            kept["up"] = "UP" in link["flags"]
            kept["kind"] = info["info_kind"]
            if kept["inet6_addr_gen_mode"] != "none":
                del kept["address"]  # the kernel's choice: of bridges and placeholders
            if kept["kind"] != "bridge":
                kept["data"] = info.get("info_data")
                port = info.get("info_slave_data", {})
                kept["port"] = {key: port.get(key) for key in PORT_FLAGS}
            found.append(kept)
    return sorted(found, key=lambda link: str(link["ifname"]))


def rules() -> list[str]:
    """Return the rules and elements of nftables, with names in place of ifindexes."""
    text = sh("nft list ruleset")
    for link in json.loads(sh("ip -j link")):
        if link["ifname"] == "vnet0":
            text = re.sub(rf"\b{link['ifindex']}\b", '"vnet0"', text)
    # An nftables set shows its elements in no order.
    return sorted(part.strip(" \t}") for part in re.split(r"[,{\n]", text))


def rates() -> list[str]:
    """Return the queues and classes of vnet0."""
    if not any(link["ifname"] == "vnet0" for link in devices()):
        return []
    queues = re.sub(r"refcnt \d+", "", sh("tc qdisc show dev vnet0"))
    shaped = [line for line in queues.splitlines() if " 1: " in line or " 2: " in line]
    return [*shaped, sh("tc class show dev vnet0")]


def state() -> dict[str, Any]:
    """Return everything that should be equal, read with other tools."""
    return {
        "devices": devices(),
        "blue": devices("-n blue"),
        "neighbours": neighbours(),
        "rules": rules(),
        "rates": rates(),
        "redirections": [
            without_index(entry)
            for link in devices()
            for entry in filters(link["ifname"])
            if entry["kind"] == "matchall"
        ],
    }


def without_index(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a filter without the numbers of its actions: the kernel gives a number
    again some time after its last action has ended."""
    for action in entry["options"].get("actions", ()):
        del action["index"]
    return entry


@pytest.fixture
def here(world: None) -> None:
    sh("ip link del br0")
    for line in BRIDGES.strip().splitlines():
        sh(line)


STEPS = {
    "a tap": ["add --bridge br0 --owner web --mac 52:54:00:00:00:01"],
    "queues and a user": ["add --queues 4 --user 1000 --group 5 --down"],
    "a port that learns nothing": ["add --bridge br0 --isolated --no-learning"],
    "a filter and rates": [
        "add --bridge br0 --address 192.0.2.1 --address fe80::1 "
        "--inbound 1000:2000:512 --outbound 500:600:64"
    ],
    "a change": [
        "add --bridge br0 --filter --inbound 1000",
        "set vnet0 --bridge br1 --inbound= --outbound 300 --mtu 1300",
    ],
    "another change": [
        "add --bridge br0 --no-learning",
        "set vnet0 --learning --isolated",
        "set vnet0 --no-isolated --bridge=",
    ],
    "a release": ["add --bridge br0 --filter --inbound 1000", "rm vnet0"],
    "an end": ["add --bridge br0 --outbound 1000", "rm vnet0", "reap --now"],
    "a macvtap": ["add --link eth0 --mac 52:54:00:00:00:01 --queues 2"],
    "a placeholder": ["add --link eth0 --mode passthru", "rm vnet0"],
    "another namespace": ["add --netns blue"],
}
REDIRECT_STEPS = {
    "a redirection": ["add --redirect eth0"],
    "another redirection": ["add --redirect eth0", "set vnet0 --redirect eth1"],
    "the end of a redirection": ["add --redirect eth0", "rm vnet0"],
}
redirecting = pytest.mark.skipif(
    not kernel_redirects(), reason="this kernel has no act_mirred: make host-test"
)


@pytest.mark.parametrize(
    "verbs",
    [
        *(pytest.param(verbs, id=title) for title, verbs in STEPS.items()),
        *(
            pytest.param(verbs, id=title, marks=redirecting)
            for title, verbs in REDIRECT_STEPS.items()
        ),
    ],
)
def test_the_printed_commands_have_the_same_result(
    here: None, ledger: Path, verbs: list[str]
) -> None:
    sh("mount -t tmpfs tmpfs /run")
    sh("ip netns add blue")
    commands = ""
    for verb in verbs:
        # Long enough that no device is reaped before it is looked at.
        wait = ["--fin-wait", "600"] if verb.startswith("add") else []
        commands += verbose(*verb.split(), *wait, ledger=ledger)[1]
    made = state()
    with namespaces():
        sh("mount -t tmpfs tmpfs /run")
        sh("ip netns add blue")
        subprocess.run(["sh", "-euc", "ip link set lo up" + BRIDGES], check=True)
        subprocess.run(["sh", "-eu"], input=commands, text=True, check=True)
        replayed = state()
    assert replayed == made


PORT = {"tag", "trunks", "vlan_mode", "external_ids", "other_config", "name"}
INTERFACE = {"external_ids", "ingress_policing_rate", "ingress_policing_burst", "name"}


def rows() -> list[Any]:
    """Return the rows of Open vSwitch that should be equal."""
    kept = [("Port", PORT), ("Interface", INTERFACE)]
    kept += [("Queue", {"other_config", "external_ids"})]
    kept += [("QoS", {"other_config", "external_ids", "type"})]
    found: list[Any] = [
        sorted(
            (
                {key: value for key, value in row.items() if key in columns}
                for row in ovs.rows(table)
            ),
            key=repr,
        )
        for table, columns in kept
    ]
    return [*found, ovs.ports("ovs0"), ovs.ports("ovs1")]


OVS_STEPS = {
    "a port": ["add --ovs ovs0 --vlan 5 --trunk 7 --trunk 9 --external-id iface-id=x"],
    "rates": ["add --ovs ovs0 --inbound 1000:2000:512 --outbound 500"],
    "a change": [
        "add --ovs ovs0 --inbound 1000 --vlan 5",
        "set vnet0 --ovs ovs1 --inbound 2000 --vlan=",
    ],
    "a release": ["add --ovs ovs0 --inbound 1000", "rm vnet0"],
}


@pytest.mark.parametrize("verbs", OVS_STEPS.values(), ids=OVS_STEPS)
def test_the_commands_for_open_vswitch_have_the_same_result(
    here: None, switch: OpenVswitch, ledger: Path, verbs: list[str]
) -> None:
    commands = ""
    for verb in verbs:
        wait = ["--fin-wait", "600"] if verb.startswith("add") else []
        commands += verbose(*verb.split(), *wait, ledger=ledger)[1]
    made = rows()
    # The same switch, emptied: the device goes, and whatever OVSDB has of it. A reaper
    # would replace a waiting device that is deleted.
    kill_reapers(ledger)
    sh("ip link del vnet0")
    subprocess.run(
        ["sh", "-eu"],
        input="ovs-vsctl --if-exists del-port vnet0\n"
        "ovs-vsctl -- --all destroy QoS -- --all destroy Queue\n",
        text=True,
        check=True,
    )
    subprocess.run(["sh", "-eu"], input=commands, text=True, check=True)
    assert rows() == made


def test_nothing_is_printed_for_a_verb_that_changes_nothing(
    here: None, ledger: Path
) -> None:
    verbose("add", ledger=ledger)
    for verb in ("ls", "show vnet0", "recover", "who vnet0"):
        assert verbose(*verb.split(), ledger=ledger)[1] == ""


def test_the_option_may_follow_the_verb(here: None, ledger: Path) -> None:
    done = subprocess.run(
        [TAPSTER, "add", "-v"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TAPSTER_LEDGER": str(ledger)},
    )
    assert done.stdout == "vnet0\n"
    assert done.stderr.startswith("ip tuntap add dev vnet0 mode tap vnet_hdr user 0\n")


def test_a_daemons_changes_cannot_be_printed(here: None) -> None:
    done = subprocess.run(
        [TAPSTER, "-v", "--socket", "nowhere", "ls"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the daemon" in done.stderr
