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
from tapster.api import Manager

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture(params=["library", "daemon"])
def manager(request: pytest.FixtureRequest, ledger: Path) -> Iterator[Manager]:
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


def test_a_child_that_has_ended_releases_the_lease(
    manager: Manager, ended: int
) -> None:
    device = manager.acquire(Tap(bridge="br0"))
    device.close()
    manager.bind([device], ended)
    assert manager.find(device.id).state is State.FIN_WAIT
    assert iproute.ports() == set()


def test_a_child_that_has_ended_releases_no_tap_that_another_process_has_open(
    manager: Manager, ended: int
) -> None:
    """It may have started the VM, as QEMU's -daemonize does."""
    device = manager.acquire(Tap(bridge="br0"))
    manager.bind([device], ended)
    assert manager.find(device.id).state is State.ACTIVE
    assert iproute.ports() == {device.name}
    device.close()
    if isinstance(manager, Host):
        manager.settle()
        assert manager.find(device.id).state is State.FIN_WAIT


def test_a_lease_without_fin_wait_ends(manager: Manager, ended: int) -> None:
    device = manager.acquire(Tap(bridge="br0", fin_wait=0))
    device.close()
    manager.bind([device], ended)
    assert manager.leases() == []
    assert device.name not in iproute.links()


def test_a_pid_of_no_process_is_refused(manager: Manager) -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    device = manager.acquire(Tap(bridge="br0"))
    device.close()
    with pytest.raises(RequestError, match=f"there is no process {child.pid}"):
        manager.bind([device], child.pid)
    assert manager.find(device.id).state is State.ACTIVE
    manager.release(device)
