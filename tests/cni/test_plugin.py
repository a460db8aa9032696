# SPDX-License-Identifier: Apache-2.0
"""The plugin, started as a container runtime starts it, on real devices."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import iproute
from lab.daemon import ALICE, Daemon, as_user, install, let_everybody_open_tun
from lab.library import abandon
from lab.redirect import kernel_redirects, redirections
from lab.shell import sh
from tapster import Host, Tap
from tapster.cni.protocol import Code
from tests.cni.plugin import PLUGINS, POD, Plugin, pod

pytestmark = [pytest.mark.kernel]

GUEST = "52:54:00:00:00:01"
HOST_SIDE = "fe:54:00:00:00:01"


def in_pod(name: str = POD) -> dict[str, dict[str, Any]]:
    """Return the devices of a pod beside its `lo`."""
    return {key: link for key, link in iproute.links(name).items() if key != "lo"}


def bridged() -> set[str]:
    return iproute.ports("br0")


def valid(*containers: str) -> dict[str, Any]:
    """Return the list of valid attachments, for GC."""
    listed = [{"containerID": name, "ifname": "eth0"} for name in containers]
    return {"cni.dev/valid-attachments": listed}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_a_tap_in_the_pod(plugin: Plugin, version: str) -> None:
    network = plugin.configuration(
        cniVersion=version, uid=61001, gid=61002, queues=2, mtu=1400, mac=GUEST
    )
    network["ipam"] = plugin.ipam()
    result = plugin.add(network)
    device = {"name": "eth0", "mac": HOST_SIDE, "sandbox": f"/run/netns/{POD}"}
    address = {"address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 1}
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {**device, "mtu": 1400} if version == "1.1.0" else device,
            {"name": "eth0", "mac": GUEST, "sandbox": "c1"},
        ],
        "ips": [{**address, "version": "4"} if version == "0.4.0" else address],
        "dns": {},
    }
    link = in_pod()["eth0"]
    assert (link["address"], link["mtu"]) == (HOST_SIDE, 1400)
    tap = link["linkinfo"]["info_data"]
    assert (tap["user"], tap["group"], tap["multi_queue"]) == (61001, 61002, True)
    assert plugin.reserved() == {"192.0.2.2"}

    plugin.succeed("CHECK", {**network, "prevResult": result})
    plugin.succeed("DEL", {**network, "prevResult": result})
    assert not in_pod()
    assert not plugin.reserved()
    plugin.succeed("DEL", network)  # again, without the result


def test_a_lease_that_cannot_be_repaired_hinders_no_pod(plugin: Plugin) -> None:
    abandon(plugin.ledger)
    plugin.add(plugin.configuration())
    assert in_pod()["eth0"]


def test_a_tap_on_a_bridge_of_the_host(plugin: Plugin) -> None:
    network = plugin.configuration(
        bridge="br0", filter=True, finWait=0, mac=GUEST, ipam=plugin.ipam()
    )
    result = plugin.add(network)
    assert bridged() == {"vnet0"}
    assert not in_pod()
    assert result["interfaces"] == [
        {"name": "vnet0", "mac": HOST_SIDE, "mtu": 1400},
        {"name": "vnet0", "mac": GUEST, "sandbox": "c1"},
    ]
    with Host(plugin.ledger) as host:
        (lease,) = host.leases()
        assert lease.wiring.addresses == ("192.0.2.2",), "the filter knows the address"
    plugin.succeed("CHECK", {**network, "prevResult": result})
    plugin.succeed("DEL", network)
    assert not bridged()


def test_a_name_on_the_host_waits_unless_the_network_says_otherwise(
    plugin: Plugin,
) -> None:
    network = plugin.configuration(bridge="br0", device="vm1")
    plugin.add(network)
    plugin.succeed("DEL", network)
    assert "vm1" in iproute.links()
    error = plugin.fail("ADD", network)
    assert error["code"] == 11, "try again later"


@pytest.mark.parametrize("inside", [False, True])
def test_a_macvtap_in_the_pod(plugin: Plugin, inside: bool) -> None:
    sh("ip link add low type veth peer name far")
    sh("ip link set low up")
    sh("ip link set far up")
    if inside:
        sh(f"ip link set low netns {POD}")
        sh(f"ip -n {POD} link set low up")
    network = plugin.configuration(link="low", mode="private", mac=GUEST)
    if inside:
        network["linkInContainer"] = True
    result = plugin.add(network)
    link = in_pod()["eth0"]
    assert link["linkinfo"]["info_kind"] == "macvtap"
    assert link["linkinfo"]["info_data"]["mode"] == "private"
    assert link["address"] == GUEST
    assert ("link_netnsid" in link) != inside
    assert result["interfaces"] == [
        {"name": "eth0", "mac": GUEST, "mtu": 1500, "sandbox": f"/run/netns/{POD}"}
    ]
    plugin.succeed("CHECK", {**network, "prevResult": result})
    plugin.succeed("DEL", network)
    assert "eth0" not in in_pod()
    assert "low" in (in_pod() if inside else iproute.links())


def test_an_attachment_of_the_same_name_in_each_pod(plugin: Plugin) -> None:
    other = pod("other")
    plugin.add()
    plugin.add(container="c2", netns=other)
    assert in_pod().keys() == in_pod("other").keys() == {"eth0"}
    plugin.succeed("DEL", container="c2", netns=other)
    assert in_pod().keys() == {"eth0"}
    assert not in_pod("other")


def test_an_attachment_can_be_added_once(plugin: Plugin) -> None:
    network = plugin.configuration(ipam=plugin.ipam())
    plugin.add(network)
    error = plugin.fail("ADD", network)
    assert error["code"] == 4
    assert "CNI_IFNAME 'eth0'" in error["msg"]
    assert in_pod().keys() == {"eth0"}
    assert plugin.reserved() == {"192.0.2.2"}


def test_an_attachment_to_a_bridge_can_be_added_once(plugin: Plugin) -> None:
    """The second ADD gave the address back that the first one had got."""
    network = plugin.configuration(bridge="br0", ipam=plugin.ipam())
    plugin.add(network)
    before = bridged()
    error = plugin.fail("ADD", network)
    assert error["code"] == 4
    assert "container 'c1' has device 'vnet0' on network 'net' already" in error["msg"]
    assert bridged() == before
    assert plugin.reserved() == {"192.0.2.2"}
    plugin.succeed("DEL", network)
    assert not plugin.reserved()
    plugin.add(network)


def test_a_runtime_may_ignore_its_children(plugin: Plugin) -> None:
    """The plugin inherits that, and still gets the status of the IPAM plugin."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-m', 'tapster.cni'])"
    )
    plugin.command = [sys.executable, "-c", code]
    network = plugin.configuration(ipam=plugin.ipam())
    plugin.add(network)
    plugin.succeed("DEL", network)


def test_a_closed_standard_input_is_named(plugin: Plugin) -> None:
    plugin.command = ["sh", "-c", 'exec "$@" <&-', "sh", *plugin.command]
    error = plugin.fail("ADD")
    assert error["code"] == 5  # "I/O failure"
    assert "standard input is closed" in error["msg"]


def test_without_standard_output_nothing_is_made(plugin: Plugin) -> None:
    """The plugin could not tell the runtime what it has made."""
    plugin.command = ["sh", "-c", 'exec "$@" >&-', "sh", *plugin.command]
    process = plugin.start("ADD")
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"standard output is closed" in complaint
    assert not plugin.ledger.exists()


def test_a_foreign_device_with_the_name_is_left_alone(plugin: Plugin) -> None:
    sh(f"ip -n {POD} tuntap add eth0 mode tap")
    before = in_pod()
    assert plugin.fail("ADD")["code"] == 4
    plugin.succeed("DEL")
    assert in_pod() == before


def test_del_succeeds_when_the_pod_is_gone(plugin: Plugin) -> None:
    network = plugin.configuration(ipam=plugin.ipam())
    plugin.add(network)
    sh(f"ip netns del {POD}")
    plugin.succeed("DEL", network)
    assert not plugin.reserved()
    with Host(plugin.ledger) as host:
        assert not host.leases()
    plugin.succeed("DEL", network, netns="")


def test_del_needs_no_configuration_that_add_would_take(plugin: Plugin) -> None:
    network = plugin.configuration(bridge="br0", finWait=0)
    plugin.add(network)
    wrong = {"bridge": 7, "nonsense": True, "ledger": 5, "socket": [], "dataDir": 7}
    plugin.succeed("DEL", {**network, **wrong, "ipam": {"type": 5}})
    assert not bridged()


def test_a_failure_of_ipam_leaves_nothing(plugin: Plugin) -> None:
    network = plugin.configuration(ipam=plugin.ipam("192.0.2.0/30"))
    plugin.add(network)
    other = pod("other")
    error = plugin.fail("ADD", network, container="c2", netns=other)
    assert error["msg"].startswith("/usr/lib/cni/host-local: ")
    assert "no IP addresses available" in error["msg"]
    assert not in_pod("other")
    assert plugin.reserved() == {"192.0.2.2"}


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ('{"ips": [5]}', "result's ips must be a list of objects, not [5]"),
        ('{"ips": {"address": "x"}}', "result's ips must be a list of objects"),
        ('{"ips": [{"gateway": "x"}]}', "without address"),
        ('{"ips": [{"address": 5}]}', "without address"),
        ('{"ips": [{"address": "x"}], "routes": "y"}', "result's routes must be"),
        ("[" * 50000, "gave no address"),
    ],
)
def test_a_wrong_answer_of_ipam_is_its_fault_and_leaves_nothing(
    plugin: Plugin, printed: str, said: str
) -> None:
    program = plugin.folder / "odd"
    (plugin.folder / "printed").write_text(printed)
    program.write_text(f"#!/bin/sh\ncat {plugin.folder}/printed\n")
    program.chmod(0o755)
    network = plugin.configuration(ipam={"type": "odd"})
    error = plugin.fail("ADD", network, CNI_PATH=str(plugin.folder))
    assert error["code"] == Code.IPAM
    assert said in error["msg"]
    assert not in_pod()


def test_a_chained_plugin_keeps_what_came_before(plugin: Plugin) -> None:
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": f"/run/netns/{POD}"}],
        "ips": [{"address": "198.51.100.7/24", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["198.51.100.1"]},
    }
    network = plugin.configuration(device="tap0", mac=GUEST, prevResult=before)
    result = plugin.add(network)
    assert result == {
        **before,
        "interfaces": [
            *before["interfaces"],
            {"name": "tap0", "mac": HOST_SIDE, "sandbox": f"/run/netns/{POD}"},
            {"name": "tap0", "mac": GUEST, "sandbox": "c1"},
        ],
    }
    network["prevResult"] = result
    plugin.succeed("CHECK", network)
    plugin.succeed("DEL", network)
    assert not in_pod()


@pytest.mark.skipif(
    not kernel_redirects(), reason="this kernel has no act_mirred: make host-test"
)
def test_a_tap_in_the_place_of_an_interface_of_debians_plugin(plugin: Plugin) -> None:
    network = plugin.configuration(type="bridge", bridge="br0", ipam=plugin.ipam())
    network["cniVersion"] = "1.0.0"
    del network["dataDir"]
    command, plugin.command = plugin.command, [f"{PLUGINS}/bridge"]
    before = plugin.add(network)
    plugin.command = command
    chained = plugin.configuration(cniVersion="1.0.0", redirect=True, prevResult=before)
    result = plugin.add(chained)
    *others, device, guest = result["interfaces"]
    assert others == before["interfaces"]
    assert (device["name"], device["sandbox"]) == ("tap0", f"/run/netns/{POD}")
    inner = in_pod()["eth0"]["address"]
    assert guest == {"name": "tap0", "mac": inner, "sandbox": "c1"}
    assert [ip["interface"] for ip in result["ips"]] == [len(others) + 1]
    assert set(redirections("eth0", POD).values()) == {"tap0"}
    assert set(redirections("tap0", POD).values()) == {"eth0"}
    chained["prevResult"] = result
    plugin.succeed("CHECK", chained)
    sh(f"tc -n {POD} qdisc del dev eth0 clsact")
    assert "redirect: redirections" in plugin.fail("CHECK", chained)["msg"]
    plugin.succeed("DEL", chained)
    assert in_pod().keys() == {"eth0"}
    assert not redirections("eth0", POD)


def test_check_says_what_is_wrong(plugin: Plugin) -> None:
    network = plugin.configuration(bridge="br0", finWait=0)
    assert plugin.fail("CHECK", network)["code"] == 7, "prevResult is missing"
    network["prevResult"] = {"cniVersion": "1.1.0"}
    error = plugin.fail("CHECK", network)
    assert "container 'c1' has no lease for 'eth0' on network 'net'" in error["msg"]
    del network["prevResult"]
    result = plugin.add(network)
    network["prevResult"] = {**result, "interfaces": []}
    error = plugin.fail("CHECK", network)
    assert error["msg"] == "prevResult has no interface 'vnet0'"
    network["prevResult"] = result
    sh("ip link set vnet0 nomaster")
    error = plugin.fail("CHECK", network)
    assert error["code"] == 100
    assert error["msg"] == "device 'vnet0' differs: link: bridge is None, not br0"
    sh("ip link del vnet0")
    assert plugin.fail("CHECK", network)["msg"] == "device 'vnet0' is gone"


def test_check_asks_the_ipam_plugin(plugin: Plugin) -> None:
    network = plugin.configuration(ipam=plugin.ipam())
    network["prevResult"] = plugin.add(network)
    for file in (plugin.addresses / "net").glob("192.*"):
        file.unlink()
    error = plugin.fail("CHECK", network)
    assert error["msg"].startswith("/usr/lib/cni/host-local: ")


def test_gc_ends_what_no_valid_attachment_has_and_nothing_else(plugin: Plugin) -> None:
    network = plugin.configuration(bridge="br0", finWait=0, ipam=plugin.ipam())
    for number in range(1, 5):
        plugin.add(network, container=f"c{number}")
    other = plugin.configuration(name="other", bridge="br0")
    plugin.add(other, container="c9")
    sh("ip tuntap add vnet9 mode tap")
    sh("ip link set vnet9 master br0")
    with Host(plugin.ledger) as host:
        host.acquire(Tap(bridge="br0", owner="c1")).close()
        before = {lease.id: lease for lease in host.leases()}
        kept = [lease for lease in before.values() if lease.owner not in ("c2", "c4")]
        assert len(kept) == 4
    reserved = plugin.reserved()

    plugin.succeed("GC", {**network, **valid("c1", "c3")})
    with Host(plugin.ledger) as host:
        assert host.leases() == kept
    assert bridged() == {lease.name for lease in kept} | {"vnet9"}
    assert plugin.reserved() == reserved - {"192.0.2.3", "192.0.2.5"}
    plugin.succeed("GC", {**network, **valid("c1", "c3")})
    with Host(plugin.ledger) as host:
        assert host.leases() == kept


def test_gc_gives_back_the_address_of_a_pod_that_is_gone(plugin: Plugin) -> None:
    network = plugin.configuration(ipam=plugin.ipam())
    plugin.add(network)
    sh(f"ip netns del {POD}")
    with Host(plugin.ledger) as host:
        host.recover()
        assert not host.leases()
    plugin.succeed("GC", {**network, **valid()})
    assert not plugin.reserved()


def test_gc_goes_on_after_a_failure(plugin: Plugin) -> None:
    network = plugin.configuration(bridge="br0", finWait=0, ipam=plugin.ipam())
    plugin.add(network)
    plugin.add(network, container="c2")
    broken = {**network, "ipam": {"type": "absent"}, **valid()}
    error = plugin.fail("GC", broken)
    assert "there is no IPAM plugin 'absent'" in error["msg"]
    assert not bridged()
    assert plugin.reserved() == {"192.0.2.2", "192.0.2.3"}
    plugin.succeed("GC", {**network, **valid()})
    assert not plugin.reserved()


def test_status_says_whether_add_can_work(plugin: Plugin) -> None:
    plugin.succeed("STATUS", plugin.configuration(ipam=plugin.ipam()))
    plugin.succeed("STATUS", plugin.configuration(bridge="br0"))
    error = plugin.fail("STATUS", plugin.configuration(bridge="br1"))
    assert error["code"] == 51
    assert "there is no bridge 'br1'" in error["msg"]
    error = plugin.fail("STATUS", plugin.configuration(link="br1"))
    assert error["code"] == 51
    error = plugin.fail("STATUS", plugin.configuration(ipam={"type": "absent"}))
    assert error["code"] == 50
    error = plugin.fail("STATUS", plugin.configuration(socket="/nowhere"))
    assert error["code"] == 50


def test_a_pod_that_is_not_there_is_named(plugin: Plugin) -> None:
    error = plugin.fail("ADD", netns="/run/netns/absent")
    assert error["code"] == 4
    assert error["msg"].startswith("CNI_NETNS: ")
    (plugin.folder / "file").touch()
    error = plugin.fail("ADD", netns=str(plugin.folder / "file"))
    assert error["code"] == 4
    assert str(plugin.folder / "file") in error["msg"]


@pytest.fixture
def daemon(plugin: Plugin) -> Iterator[Daemon]:
    with Daemon() as daemon:
        daemon.start()
        yield daemon


@pytest.mark.parametrize("key", ["", "bridge", "link"])
def test_the_same_through_the_daemon(plugin: Plugin, daemon: Daemon, key: str) -> None:
    sh("ip link add low type veth peer name far")
    sh("ip link set low up")
    sh("ip link set far up")
    network = plugin.configuration(socket=str(daemon.socket), finWait=0)
    network["ipam"] = plugin.ipam()
    if key:
        network[key] = {"bridge": "br0", "link": "low"}[key]
    result = plugin.add(network)
    assert bool(in_pod()) == (key != "bridge")
    assert bool(bridged()) == (key == "bridge")
    plugin.succeed("CHECK", {**network, "prevResult": result})
    plugin.succeed("DEL", network)
    assert not in_pod()
    assert not bridged()
    plugin.add(network)
    plugin.succeed("GC", {**network, **valid()})
    assert not in_pod()
    assert not bridged()
    assert not plugin.reserved()
    plugin.succeed("STATUS", network)
    assert not plugin.ledger.exists(), "the daemon has a ledger of its own"


def test_gc_leaves_a_users_lease_that_has_the_same_labels(
    plugin: Plugin, daemon: Daemon
) -> None:
    labels = {"cni-network": "net", "cni-container": "c1", "cni-ifname": "eth0"}
    with daemon.connect(ALICE) as alice:
        alice.acquire(Tap(bridge="br0", labels=tuple(labels.items()))).close()
        network = plugin.configuration(socket=str(daemon.socket))
        plugin.succeed("GC", {**network, **valid()})
        plugin.succeed("DEL", network)
        assert [lease.state for lease in alice.leases()] == ["active"]


def test_a_daemon_that_does_not_answer_may_answer_later(plugin: Plugin) -> None:
    network = plugin.configuration(socket="/nowhere")
    for verb in ("ADD", "DEL"):
        assert plugin.fail(verb, network)["code"] == 11


def test_every_answer_is_one_line_of_json(plugin: Plugin) -> None:
    process = plugin.start("VERSION")
    output, _ = process.communicate(timeout=60)
    assert output.count(b"\n") == 1
    assert json.loads(output)["cniVersion"] == "1.1.0"


ROOTLESS = """
set -e
mount -t tmpfs tmpfs /run/netns
ip netns add pod
export CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/pod CNI_PATH=/usr/lib/cni
run() { CNI_COMMAND=$1 python3 -P -m tapster.cni <network.json; }
run ADD >result.json
ip -n pod -j link show eth0 >link.json
run DEL
! ip -n pod link show eth0 2>/dev/null
run DEL
"""


def test_a_user_in_a_user_namespace_needs_no_root(plugin: Plugin) -> None:
    folder = Path("/run/rootless")
    folder.mkdir()
    let_everybody_open_tun(folder)
    install(folder)
    os.chown(folder, ALICE, ALICE)
    network = plugin.configuration(
        ledger=str(folder / "ledger.db"),
        dataDir=str(folder / "reservations"),
        mac=GUEST,
        ipam={**plugin.ipam(), "dataDir": str(folder / "addresses")},
    )
    (folder / "network.json").write_text(json.dumps(network))
    namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    done = subprocess.run(
        [*as_user(ALICE), *namespaces, "sh", "-c", ROOTLESS],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    result = json.loads((folder / "result.json").read_text())
    assert result["interfaces"][1]["mac"] == GUEST
    assert result["ips"][0]["address"] == "192.0.2.2/24"
    (link,) = json.loads((folder / "link.json").read_text())
    assert link["address"] == HOST_SIDE
