# SPDX-License-Identifier: Apache-2.0
"""The reaper works in every network namespace, and keeps none of them in use."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from lab import iproute, library, shell
from lab.reapers import Monitor, kill_reapers, reapers, wait_for, wait_reaping
from tapster import Host, Tap, reaper
from tapster.kernel.port import WatchReport
from tapster.kernel.watch import LinkWatch
from tapster.model import Netns
from tapster.operations.followed import FollowedNamespaces
from tapster.operations.look import Look

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture(autouse=True)
def no_reaper_is_left(ledger: Path) -> Iterator[None]:
    yield
    kill_reapers(ledger)


@pytest.fixture
def begun_in_a_pod(world: None, ledger: Path) -> None:
    """A pod in which somebody started the reaper, which a lease of the host keeps."""
    shell.sh("ip netns add pod")
    shell.sh("ip link add outer type veth peer name eth0 netns pod")
    tapster = f"{shell.TAPSTER} --ledger {ledger}"
    with Host(ledger, reaper=library.no_reaper) as host:
        library.acquire(host, Tap(bridge="br0"), pid=os.getpid())
    shell.sh(f"ip netns exec pod {tapster} run --fin-wait 0 -- true {{fd}}")
    wait_reaping(ledger)


@pytest.mark.usefixtures("begun_in_a_pod")
def test_a_pod_in_which_the_reaper_began_can_end(ledger: Path) -> None:
    with Monitor() as monitor:
        shell.sh("ip netns del pod")
        monitor.wait_deleted("outer")  # with the pod's end of it
    assert len(reapers(ledger)) == 2


@pytest.mark.usefixtures("begun_in_a_pod")
def test_a_reaper_that_began_in_a_pod_hears_of_the_host(ledger: Path) -> None:
    with Host(ledger) as host:
        lease = library.acquire(host, Tap(bridge="br0", fin_wait=600))
        host.release(lease.id)
        wait_held(lease.name)


@pytest.mark.parametrize("pods", [1, 3])
def test_the_reaper_hears_of_pods(ledger: Path, pods: int) -> None:
    with ExitStack() as stack:
        hosts = []
        for number in range(pods):
            shell.sh(f"ip netns add pod{number}")
            host = Host(ledger, netns=f"pod{number}", reaper=None)
            hosts.append(stack.enter_context(host))
        active = [library.acquire(host, Tap()) for host in hosts]
        waiting = [library.acquire(host, Tap(fin_wait=600)) for host in hosts]
        for host, lease in zip(hosts, waiting, strict=True):
            host.release(lease.id)
        wait_reaping(ledger)
        for number in range(pods):
            pod = f"pod{number}"
            wait_held(waiting[number].name, pod)
            name, mac = active[number].name, "fe" + active[number].mac[2:]
            shell.sh(f"ip -n {pod} link set {name} address 02:00:00:00:00:99")
            wait_for(partial(has_mac, pod, name, mac), "the MAC is put back")


def has_mac(netns: str, name: str, mac: str) -> bool:
    return bool(iproute.links(netns)[name]["address"] == mac)


def test_leases_end_with_their_namespace(ledger: Path) -> None:
    shell.sh("ip netns add pod")
    with Host(ledger, netns="pod") as pod, Host(ledger) as host:
        library.acquire(pod, Tap())
        library.acquire(host, Tap(), pid=os.getpid())
        wait_reaping(ledger)
        pod.close()
        shell.sh("ip netns del pod")
        wait_for(lambda: len(host.leases()) == 1, "the lease in the pod ends")


def test_leases_end_with_a_namespace_whose_end_was_reported_among_lost_reports(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.sh("ip netns add pod")
    with Host(ledger, netns="pod", reaper=library.no_reaper) as pod:
        library.acquire(pod, Tap(), pid=os.getpid())
    changes, follow_all = LinkWatch.changes, FollowedNamespaces.follow_all

    def overrun(watch: LinkWatch) -> WatchReport | None:
        report = changes(watch)
        return None if report is None or report.ended else report

    def end(followed: FollowedNamespaces, look: Look) -> list[Netns]:
        new = follow_all(followed, look)
        if new and followed.others():
            shell.sh("ip netns del pod")
        return new

    monkeypatch.setattr(LinkWatch, "changes", overrun)
    monkeypatch.setattr(FollowedNamespaces, "follow_all", end)
    standby = os.pidfd_open(os.getpid())
    assert not reaper.lead(str(ledger), standby), "it ends: there is no work left"
    os.close(standby)
    with Host(ledger, reaper=library.no_reaper) as host:
        assert host.leases() == []


def wait_held(name: str, netns: str | None = None) -> None:
    """Delete a waiting device, and wait until a placeholder holds its name."""
    inside = f"-n {netns} " if netns else ""

    def held() -> bool:
        found = iproute.links(netns).get(name)
        return found is not None and found["ifindex"] not in deleted

    deleted = {iproute.links(netns)[name]["ifindex"]}
    shell.sh(f"ip {inside}link del {name}")
    wait_for(held, "a placeholder holds the name")
