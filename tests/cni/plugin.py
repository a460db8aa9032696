# SPDX-License-Identifier: Apache-2.0
"""Run the plugin as a container runtime does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lab.shell import sh

PLUGINS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins are."""
POD = "pod"


class Outcome(NamedTuple):
    """What a plugin answered."""

    status: int
    answer: Any
    """The JSON that it printed; None if it printed nothing."""


class Plugin:
    """The plugin on a ledger, with a configuration that tests change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger.db"
        self.addresses = folder / "host-local"
        self.command = [sys.executable, "-m", "tapster.cni"]
        self.environment = {
            **os.environ,
            "TAPSTER_LEDGER": str(self.ledger),
            "CNI_PATH": PLUGINS,
        }

    def configuration(self, **more: Any) -> dict[str, Any]:
        """Return a configuration of the network "net"."""
        return {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "tapster-cni",
            "dataDir": str(self.folder / "reservations"),
            **more,
        }

    def ipam(self, subnet: str = "192.0.2.0/24") -> dict[str, Any]:
        """Return the configuration of host-local."""
        data = str(self.addresses)
        return {"type": "host-local", "subnet": subnet, "dataDir": data}

    def start(
        self,
        verb: str,
        configuration: Any = None,
        *,
        container: str = "c1",
        ifname: str = "eth0",
        netns: str = f"/run/netns/{POD}",
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start a command; its input is complete."""
        parameters = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": netns,
        }
        if verb in ("GC", "STATUS", "VERSION"):
            del parameters["CNI_CONTAINERID"]
            del parameters["CNI_IFNAME"]
            del parameters["CNI_NETNS"]
        text = configuration
        if not isinstance(configuration, bytes):
            text = json.dumps(
                self.configuration() if configuration is None else configuration
            ).encode()
        given = os.memfd_create("configuration")
        os.write(given, text)
        os.lseek(given, 0, os.SEEK_SET)
        try:
            return subprocess.Popen(
                self.command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.environment, **parameters, **environment},
            )
        finally:
            os.close(given)

    def run(self, verb: str, configuration: Any = None, **call: Any) -> Outcome:
        """Run a command to its end."""
        process = self.start(verb, configuration, **call)
        output, complaint = process.communicate(timeout=60)
        assert not complaint, complaint.decode()
        return Outcome(process.returncode, json.loads(output) if output else None)

    def add(self, configuration: Any = None, **call: Any) -> dict[str, Any]:
        """Run ADD, which succeeds."""
        outcome = self.run("ADD", configuration, **call)
        assert outcome.status == 0, outcome
        answer: dict[str, Any] = outcome.answer
        return answer

    def succeed(self, verb: str, configuration: Any = None, **call: Any) -> None:
        """Run a command that succeeds without a result."""
        outcome = self.run(verb, configuration, **call)
        assert outcome == Outcome(0, None), outcome

    def fail(self, verb: str, configuration: Any = None, **call: Any) -> dict[str, Any]:
        """Run a command that fails; return its error."""
        outcome = self.run(verb, configuration, **call)
        assert outcome.status == 1, outcome
        error: dict[str, Any] = outcome.answer
        return error

    def reserved(self) -> set[str]:
        """Return the addresses that host-local has given out."""
        if not (folder := self.addresses / "net").exists():
            return set()
        return {file.name for file in folder.iterdir() if file.name[0].isdigit()}


def pod(name: str = POD) -> str:
    """Make a network namespace for a pod; return its path."""
    sh(f"ip netns add {name}")
    return f"/run/netns/{name}"
