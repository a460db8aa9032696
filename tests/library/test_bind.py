# SPDX-License-Identifier: Apache-2.0
"""A lease ends with the process that it is bound to, however soon that ends."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import iproute, library
from lab.daemon import Daemon
from tapster import Host, RequestError, State, Tap, connect
from tapster.api import AnyHost

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture(params=["library", "daemon"])
def host(request: pytest.FixtureRequest, ledger: Path) -> Iterator[AnyHost]:
    if request.param == "library":
        with Host(ledger, reaper=library.no_reaper) as host:
            yield host
        return
    with Daemon() as daemon:
        daemon.start()
        with connect(str(daemon.socket)) as client:
            yield client


@pytest.fixture
def ended() -> Iterator[int]:
    """The pid of a child that has ended, and that nobody has waited for."""
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield child.pid


def test_a_child_that_has_ended_releases_the_lease(host: AnyHost, ended: int) -> None:
    device = host.acquire(Tap(bridge="br0"))
    device.close()
    host.bind([device], ended)
    assert host.find(device.id).state is State.FIN_WAIT
    assert iproute.ports() == set()


def test_a_child_that_has_ended_releases_no_tap_that_another_process_has_open(
    host: AnyHost, ended: int
) -> None:
    """It may have started the VM, as QEMU's -daemonize does."""
    device = host.acquire(Tap(bridge="br0"))
    host.bind([device], ended)
    assert host.find(device.id).state is State.ACTIVE
    assert iproute.ports() == {device.name}
    device.close()
    if isinstance(host, Host):
        host.settle()
        assert host.find(device.id).state is State.FIN_WAIT


def test_a_lease_without_fin_wait_ends(host: AnyHost, ended: int) -> None:
    device = host.acquire(Tap(bridge="br0", fin_wait=0))
    device.close()
    host.bind([device], ended)
    assert host.leases() == []
    assert device.name not in iproute.links()


def test_a_pid_of_no_process_is_refused(host: AnyHost) -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    device = host.acquire(Tap(bridge="br0"))
    device.close()
    with pytest.raises(RequestError, match=f"there is no process {child.pid}"):
        host.bind([device], child.pid)
    assert host.find(device.id).state is State.ACTIVE
    host.release(device)
