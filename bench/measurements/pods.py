# SPDX-License-Identifier: Apache-2.0
"""CNI plugins: a pod's device, and what is left when plugins are killed."""

import json
import os
import random
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from bench.install import install
from bench.measurements import Run
from bench.processes import CommandFailed
from bench.processes import run as run_process
from bench.result import Row, Table, interleave
from bench.ways.cni import PLUGINS
from bench.world import BenchWorld, world

SAMPLES = 10
"""Pairs of ADD and DEL in a round, of each plugin."""
KILLS = 20
"""Killed ADDs in a round, of each plugin."""
AFTER_GC = "after GC"


class Plugin:
    """A CNI plugin, with host-local for addresses."""

    def __init__(
        self, title: str, note: str, program: str, version: str, directory: Path
    ) -> None:
        self.title, self.note = title, note
        self._program = program
        self._addresses = directory / title.replace(" ", "-")
        self._network: dict[str, object] = {
            "cniVersion": version,
            "name": "net",
            "type": Path(program).name,
            "bridge": "br0",
            "ipam": {
                "type": "host-local",
                "subnet": "198.18.0.0/16",
                "dataDir": str(self._addresses),
            },
        }
        if Path(program).name == "tapster-cni":
            more = {
                "ledger": str(directory / "ledger.db"),
                "dataDir": str(directory / "attachments"),
                "finWait": 0,
            }
            self._network.update(more)
        self._random = random.Random(1)
        self._count = 0
        self._longest = 0.0

    def both(self, samples: int) -> tuple[float, float]:
        """Return the milliseconds of an ADD and of a DEL, on average."""
        adding = deleting = 0.0
        for _ in range(samples):
            pod = self._new_pod()
            taken = self._run("ADD", pod)
            adding += taken
            self._longest = max(self._longest, taken)
            deleting += self._run("DEL", pod)
            _ip("netns", "del", pod)
        return adding / samples * 1e3, deleting / samples * 1e3

    def killed(self, kills: int) -> tuple[int, int]:
        """Kill ADDs, end their pods; return what is left then, and after GC."""
        for _ in range(kills):
            pod = self._new_pod()
            process = subprocess.Popen(
                [self._program],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self._environment("ADD", pod),
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(self._network).encode())
            process.stdin.close()
            process.stdin = None
            pidfd = os.pidfd_open(process.pid)
            select.select([pidfd], [], [], self._random.uniform(0, self._longest))
            os.close(pidfd)
            process.kill()
            process.communicate()  # an IPAM plugin that it started has ended, too
            _ip("netns", "del", pod)
        left = self._left()
        valid: dict[str, object] = {"cni.dev/valid-attachments": []}
        with suppress(CommandFailed):  # the other plugin has no GC
            self._run("GC", "", **valid)
        after = self._left()
        for address in self._reserved():  # or they would count in the next round
            address.unlink()
        return left, after

    def _reserved(self) -> list[Path]:
        return [*(self._addresses / "net").glob("198.*")]

    def _left(self) -> int:
        """Return how many devices on the host, and how many addresses, are left."""
        listed = json.loads(
            subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout
        )
        devices = [link for link in listed if link["ifname"] not in ("lo", "br0")]
        return len(devices) + len(self._reserved())

    def _new_pod(self) -> str:
        self._count += 1
        pod = f"p{self._count}"
        _ip("netns", "add", pod)
        return pod

    def _run(self, verb: str, pod: str, **more: object) -> float:
        before = time.perf_counter()
        run_process(
            self._program,
            standard_input=json.dumps({**self._network, **more}),
            environment=self._environment(verb, pod),
        )
        return time.perf_counter() - before

    def _environment(self, verb: str, pod: str) -> dict[str, str]:
        call = {"CNI_COMMAND": verb, "CNI_PATH": PLUGINS}
        if pod:
            call |= {
                "CNI_CONTAINERID": pod,
                "CNI_NETNS": f"/run/netns/{pod}",
                "CNI_IFNAME": "eth0",
            }
        return {**os.environ, **call}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def measure(run: Run) -> Iterator[Table]:
    samples, kills = run.size(SAMPLES, 1), run.size(KILLS, 1)
    with world(run.program) as place:
        plugins = _plugins(place)
        place.bridge("br0")
        times = interleave(
            {plugin.title: partial(plugin.both, samples) for plugin in plugins},
            run.rounds,
        )
        left = interleave(
            {plugin.title: partial(plugin.killed, kills) for plugin in plugins},
            run.rounds,
        )
    for place_of, verb in enumerate(("ADD", "DEL")):
        yield Table(
            f"pods-{verb.lower()}",
            f"A pod's {verb}, on a bridge of the host",
            "ms",
            [
                Row(p.title, [taken[place_of] for taken in times[p.title]], p.note)
                for p in plugins
            ],
            base=plugins[0].title,
            about="The wall time of the plugin, with host-local for addresses.",
        )
    yield Table(
        "pods-killed",
        f"What is left of {kills} killed ADDs whose pods have ended",
        "devices and addresses",
        [
            Row(
                p.title if when == 0 else f"{p.title}, {AFTER_GC}",
                [float(counts[when]) for counts in left[p.title]],
                "it has no GC" if when and p is plugins[0] else "",
            )
            for p in plugins
            for when in (0, 1)
        ],
        about="Each ADD is killed at a random moment, and no DEL follows.",
    )


def _plugins(place: BenchWorld) -> list[Plugin]:
    programs = install(place.directory)
    return [
        Plugin(
            "CNI bridge",
            "a veth pair; the host's end has a random name",
            f"{PLUGINS}/bridge",
            "1.0.0",
            place.directory,
        ),
        Plugin(
            "tapster-cni",
            "a tap that the ledger records; Python starts for each command",
            str(programs / "tapster-cni"),
            "1.1.0",
            place.directory,
        ),
    ]
