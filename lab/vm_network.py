# SPDX-License-Identifier: Apache-2.0
"""A small private network for real VMs: a bridge, a DHCP server, a watched wire.

Everything is in namespaces of its own. The host's network stays as it is, and the
private network ends with the process, however the process ends.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab.dhcp import Wire, on_device
from lab.lines import Lines, readable
from lab.namespaces import namespaces
from lab.shell import TAPSTER

BRIDGE = "br0"
BRIDGE_MAC = "02:00:00:00:00:01"
ADDRESS = "192.0.2.1/24"

# Below /run, which is a private tmpfs: the files vanish with the namespace.
FILES = Path("/run/lab")
LEDGER = FILES / "ledger.db"

TOOLS = ("qemu-system-x86_64", "dnsmasq", "tcpdump", "ip", "bridge", TAPSTER)

DNSMASQ = (
    *("dnsmasq", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file="),
    *(f"--interface={BRIDGE}", "--bind-interfaces", "--log-facility=/dev/null"),
    *("--dhcp-range=192.0.2.10,192.0.2.250,1h", "--dhcp-sequential-ip"),
    *("--dhcp-authoritative", "--no-ping", f"--dhcp-leasefile={FILES}/leases"),
    # A boot ROM waits three seconds for a second kind of server unless it is told
    # that there is none: that is iPXE's "no-pxedhcp".
    "--dhcp-option-force=encap:175,176,1b",
    *("--enable-tftp", f"--tftp-root={FILES}", "--dhcp-boot=stay.ipxe"),
)

STAY = "#!ipxe\n:stay\nsleep 1 ||\ngoto stay\n"
"""The file that boots a VM: a VM that has its address stays, and answers pings."""


class VmNetwork:
    """The network, with ways to run programs in it."""

    wire: Wire
    """The bridge that all VMs and the DHCP server share."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._environment = os.environ | {"TAPSTER_LEDGER": str(LEDGER)}
        self._build_bridge()
        self._serve_addresses()
        self.wire = Wire(self.watch(*on_device(BRIDGE)))
        self.wire.wait_until_listening(10)

    def spawn(
        self, *command: str, pass_fds: Sequence[int] = (), stdout: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command; kill it, at the latest, when the network ends."""
        process = subprocess.Popen(
            command,
            # A terminal's Ctrl-C must reach only this process, which ends the others.
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            pass_fds=pass_fds,
            env=self._environment,
        )
        self._stack.callback(_end, process)
        return process

    def call(self, *command: str) -> str:
        """Run a command and return what it printed. Raise if it fails."""
        return subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        ).stdout

    def watch(self, *command: str) -> Lines:
        """Start a command, and follow its output."""
        pipe = self.spawn(*command, stdout=subprocess.PIPE).stdout
        assert pipe is not None
        return Lines(pipe)

    def links(self) -> dict[str, dict[str, Any]]:
        """Return every network device by its name, from `ip`."""
        found = json.loads(self.call("ip", "-j", "link"))
        return {link["ifname"]: link for link in found}

    def bridge_of(self, name: str) -> str | None:
        """Return the bridge that this device is a port of, from `bridge`."""
        ports = json.loads(self.call("bridge", "-j", "link"))
        return next((p["master"] for p in ports if p["ifname"] == name), None)

    def leases(self) -> dict[str, dict[str, Any]]:
        """Return every lease in Tapster's ledger by the name of its device."""
        found = json.loads(self.call(TAPSTER, "ls", "--all", "--json"))
        return {lease["name"]: lease for lease in found["leases"]}

    def clean_up_by_name(self, name: str) -> None:
        """Clean up after a dead VM as a VM manager does that knows only a name.

        A missing device is no error: the manager wanted it gone.
        """
        for change in ("nomaster", "down"):
            subprocess.run(
                ["ip", "link", "set", "dev", name, change],
                check=False,
                stderr=subprocess.DEVNULL,
            )

    def _build_bridge(self) -> None:
        self.call("ip", "link", "set", "lo", "up")
        self.call("ip", "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge")
        self.call("ip", "address", "add", ADDRESS, "dev", BRIDGE)
        self.call("ip", "link", "set", BRIDGE, "up")

    def _serve_addresses(self) -> None:
        FILES.joinpath("stay.ipxe").write_text(STAY)
        # It goes to the background by itself once it serves.
        self.call(*DNSMASQ)


@contextmanager
def open_lab() -> Iterator[VmNetwork]:
    """Enter a private network; at the end, kill everything in it."""
    with namespaces(), ExitStack() as stack:
        FILES.mkdir()
        yield VmNetwork(stack)


def wait_until_ended(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Wait until a process has ended; return its exit status."""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not readable(pidfd, time.monotonic() + timeout):
            raise TimeoutError(f"{process.args!r} still runs")
    finally:
        os.close(pidfd)
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    # Kill its children, too: a VM would complain that its wire's reader has ended.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
