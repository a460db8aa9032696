# SPDX-License-Identifier: Apache-2.0
"""Run Open vSwitch in a test's own namespaces, and read it through ovs-vsctl."""

import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lab.shell import sh

RUNDIR = Path("/run/openvswitch")
"""The usual place of its sockets: in a test /run is the test's own."""
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DAEMON_SECONDS = 20.0


class OpenVswitch:
    """ovsdb-server and ovs-vswitchd, with bridges in userspace."""

    def __init__(self) -> None:
        RUNDIR.mkdir()
        sh(f"ovsdb-tool create {RUNDIR}/conf.db {SCHEMA}")
        self.start_database()
        vsctl("--no-wait init")
        self.start()

    def start_database(self) -> None:
        _start("ovsdb-server", f"--remote=punix:{RUNDIR}/db.sock {RUNDIR}/conf.db")

    def stop_database(self, how: signal.Signals = signal.SIGTERM) -> None:
        _stop("ovsdb-server", how)

    def signal_database(self, what: signal.Signals) -> None:
        os.kill(_pid("ovsdb-server"), what)

    def start(self) -> None:
        _start("ovs-vswitchd", "--disable-system")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        _stop("ovs-vswitchd", how)

    def signal(self, what: signal.Signals) -> None:
        os.kill(_pid("ovs-vswitchd"), what)

    def end(self) -> None:
        for daemon in ("ovs-vswitchd", "ovsdb-server"):
            with suppress(OSError):  # it is stopped already
                _stop(daemon, signal.SIGKILL)


def _start(daemon: str, arguments: str) -> None:
    # The parent of a detached daemon ends when the daemon is ready.
    quiet = "-vsyslog:off -vconsole:off"
    sh(f"{daemon} {quiet} --no-chdir --detach --pidfile {arguments}")


def _stop(daemon: str, how: signal.Signals) -> None:
    process = os.pidfd_open(_pid(daemon))
    signal.pidfd_send_signal(process, how)
    assert select.select([process], [], [], DAEMON_SECONDS)[0], daemon
    os.close(process)


def _pid(daemon: str) -> int:
    return int((RUNDIR / f"{daemon}.pid").read_text())


def vsctl(command: str) -> str:
    return sh(f"ovs-vsctl --timeout=10 {command}").strip()


def rows(table: str) -> list[dict[str, Any]]:
    """Return all rows of a table, as `ovs-vsctl list` shows them."""
    shown = json.loads(vsctl(f"--format=json list {table}"))
    return [
        {
            column: _plain(value)
            for column, value in zip(shown["headings"], row, strict=True)
        }
        for row in shown["data"]
    ]


def row(table: str, name: str) -> dict[str, Any]:
    (found,) = [row for row in rows(table) if row["name"] == name]
    return found


def ports(bridge: str = "ovs0") -> list[str]:
    return vsctl(f"list-ports {bridge}").split()


def _plain(value: Any) -> Any:
    """Return a set as a list, a map as a dictionary, a reference as text."""
    match value:
        case ["map", pairs]:
            return {_plain(key): _plain(item) for key, item in pairs}
        case ["set", values]:
            return [_plain(item) for item in values]
        case ["uuid", uuid]:
            return uuid
    return value


@pytest.fixture
def switch(world: None) -> Iterator[OpenVswitch]:
    """Run Open vSwitch with two bridges, ovs0 and ovs1."""
    switch = OpenVswitch()
    for bridge in ("ovs0", "ovs1"):
        vsctl(f"add-br {bridge} -- set Bridge {bridge} datapath_type=netdev")
        sh(f"ip link set {bridge} up")
    yield switch
    switch.end()
