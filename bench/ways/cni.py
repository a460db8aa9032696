# SPDX-License-Identifier: Apache-2.0
"""The bridge plugin of CNI, started as a container runtime starts it."""

import json
import os
import subprocess
from collections import deque

from bench.processes import run

PLUGINS = "/usr/lib/cni"
NETNS = "cni"


class Cni:
    """A process to start, a process to stop."""

    title = "CNI bridge"
    note = (
        "no tap but a veth pair, one end in another network namespace; the name is "
        "random; nothing is recorded (that is the runtime's) or held"
    )

    def __init__(self, bridge: str) -> None:
        subprocess.run(["ip", "netns", "add", NETNS], check=True)
        self._configuration = json.dumps(
            {"cniVersion": "0.4.0", "name": "b", "type": "bridge", "bridge": bridge}
        )
        self._live: deque[str] = deque()
        self._started = 0

    def start(self) -> float:
        self._started += 1
        container = f"c{self._started}"
        self._live.append(container)
        return self._call("ADD", container)

    def stop(self) -> float:
        return self._call("DEL", self._live.popleft())

    def tidy(self) -> None:
        """Nothing is left."""

    def _call(self, verb: str, container: str) -> float:
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{NETNS}",
            "CNI_IFNAME": f"e{container}",
            "CNI_PATH": PLUGINS,
        }
        return run(
            f"{PLUGINS}/bridge",
            standard_input=self._configuration,
            environment=os.environ | environment,
        )
