# SPDX-License-Identifier: Apache-2.0
"""A tap whose carrier somebody switched off is still its VM's."""

import subprocess

import pytest

from lab import iproute, shell
from lab.daemon import Daemon
from tapster import Host, State, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.mark.parametrize("queues", [1, 2])
def test_a_lease_without_its_process_lasts_while_its_tap_is_open(
    host: Host, queues: int
) -> None:
    with subprocess.Popen(["sleep", "1000"]) as starter:
        opened = host.acquire(Tap(bridge="br0", queues=queues), pid=starter.pid)
        starter.kill()
    shell.sh(f"ip link set {opened.name} carrier off")
    for _ in range(2):
        host.settle()
        assert host.recover() == []
        assert host.find(opened.id).state is State.ACTIVE
        assert "UP" in iproute.links()[opened.name]["flags"]
    opened.close()
    host.settle()
    assert host.find(opened.id).state is State.FIN_WAIT


def test_the_daemon_ends_no_lease_whose_tap_is_open() -> None:
    with Daemon(root=True) as daemon:
        daemon.start()
        with daemon.connect() as root:
            opened = root.acquire(Tap(bridge="br0"), on_close=True)
            shell.sh(f"ip link set {opened.name} carrier off")
            root.recover()
            assert root.find(opened.id).state is State.ACTIVE
            events = daemon.events()
            shell.sh(f"ip link set {opened.name} carrier on")
            shell.sh(f"ip link set {opened.name} carrier off")
            root.recover()
            assert root.find(opened.id).state is State.ACTIVE
            opened.close()
            root.recover()
            while (event := next(events)).event != "released":
                assert event.event == "sound", "it has a carrier again"
            assert root.find(opened.id).state is State.FIN_WAIT
