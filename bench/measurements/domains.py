# SPDX-License-Identifier: Apache-2.0
"""Start a domain of libvirt: with and without Tapster's hook, and on its device."""

import subprocess
import time
from collections.abc import Iterator
from statistics import median

from bench.measurements import Run
from bench.result import Row, Table
from bench.world import world
from lab.libvirt import HOOK, Libvirt, adopted, domain, virsh
from lab.shell import TAPSTER

SAMPLES = 10
"""Starts in a round, of each kind."""
BARE, HOOKED, TAPSTER_S = "libvirt, no hook", "libvirt, with the hook", "Tapster"
NOTES = {
    BARE: "the whole of `virsh start --paused`, with a tap that libvirt makes",
    HOOKED: "the same domain: the hook finds that it is not Tapster's",
    TAPSTER_S: "a tap that the hook makes, with a lease that ends with QEMU",
}
OWN = """<interface type='bridge'><source bridge='br0'/>
<model type='virtio'/><rom enabled='no'/></interface>"""


def measure(run: Run) -> Iterator[Table]:
    with world(run.program) as place:
        place.bridge("br0")
        libvirt = Libvirt()
        try:
            subprocess.run(
                [TAPSTER, "libvirt", "install"], check=True, stdout=subprocess.DEVNULL
            )
            libvirt.start()
            libvirt.define(domain("own", OWN))
            libvirt.define(adopted("taps", "dev='taps0' bridge='br0'"))
            rounds = [_round(run.size(SAMPLES, 1)) for _ in range(run.rounds)]
        finally:
            libvirt.close()
    yield Table(
        "domains",
        "libvirt: start a domain",
        "ms",
        [
            Row(kind, [one[kind] for one in rounds], note)
            for kind, note in NOTES.items()
        ],
        base=BARE,
        about="With libvirt's daemon and QEMU without KVM: the median.",
    )


def _round(samples: int) -> dict[str, float]:
    """Return the median milliseconds of each kind of start."""
    found: dict[str, list[float]] = {kind: [] for kind in NOTES}
    for _ in range(samples):
        for kind, taken in found.items():
            HOOK.chmod(0o644 if kind == BARE else 0o755)
            taken.append(_start("taps" if kind == TAPSTER_S else "own"))
    return {kind: median(taken) for kind, taken in found.items()}


def _start(name: str) -> float:
    begin = time.perf_counter()
    virsh(f"start --paused {name}")
    taken = time.perf_counter() - begin
    virsh(f"destroy {name}")
    return taken * 1e3
