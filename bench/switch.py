# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch: real daemons, with a bridge in userspace, for a measurement."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
QUIET = ["-vsyslog:off", "-vconsole:off", "--no-chdir", "--detach", "--pidfile"]


@contextmanager
def switch(directory: Path, bridge: str) -> Iterator[None]:
    """Have Open vSwitch, with this bridge, keep its files in `directory`."""
    before = os.environ.get("OVS_RUNDIR")
    os.environ["OVS_RUNDIR"] = str(directory)  # for ours and for its own tools
    database = directory / "conf.db"
    with ExitStack() as stack:
        _run("ovsdb-tool", "create", str(database), SCHEMA)
        _run(
            "ovsdb-server", *QUIET, f"--remote=punix:{directory}/db.sock", str(database)
        )
        stack.callback(_stop, directory / "ovsdb-server.pid")
        _run("ovs-vsctl", "--no-wait", "init")
        _run("ovs-vswitchd", *QUIET, "--disable-system")
        stack.callback(_stop, directory / "ovs-vswitchd.pid")
        datapath = ["--", "set", "Bridge", bridge, "datapath_type=netdev"]
        _run("ovs-vsctl", "add-br", bridge, *datapath)
        try:
            yield
        finally:
            if before is None:
                del os.environ["OVS_RUNDIR"]
            else:
                os.environ["OVS_RUNDIR"] = before


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _stop(pidfile: Path) -> None:
    process = int(pidfile.read_text())
    ended = os.pidfd_open(process)
    signal.pidfd_send_signal(ended, signal.SIGKILL)
    os.close(ended)
