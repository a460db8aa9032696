# SPDX-License-Identifier: Apache-2.0
"""Start a domain of libvirt: with and without Tapster's hook, and on its device."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.measurements import Run
from bench.result import Goal, Row, Table
from bench.world import world
from lab.daemon import Daemon
from lab.libvirt import HOOK, Libvirt, adopted, domain, virsh
from lab.shell import TAPSTER

SAMPLES = 10
"""Starts in a round, of each kind."""
BARE, HOOKED = "libvirt, no hook", "libvirt, with the hook"
FIRST, AGAIN = "Tapster", "Tapster, destroyed just before"
DAEMON = f"{AGAIN}, with tapsterd"
NOTES = {
    BARE: "the whole of `virsh start --paused`, with a tap that libvirt makes",
    HOOKED: "the same domain: the hook finds that it is not Tapster's",
    FIRST: "a tap that the hook makes, with a lease that ends with QEMU",
    AGAIN: "the name is in FIN WAIT: its owner gets it back",
    DAEMON: "the daemon watches the same ledger",
}
GOALS = [Goal(AGAIN, 1000), Goal(DAEMON, 1000)]
OWN = """<interface type='bridge'><source bridge='br0'/>
<model type='virtio'/><rom enabled='no'/></interface>"""


def measure(run: Run) -> Iterator[Table]:
    with world(run.program) as place, ExitStack() as stack:
        place.bridge("br0")
        libvirt = Libvirt()
        stack.callback(libvirt.close)
        HOOK.with_name("98-log").unlink()  # Tapster's is to be the only hook
        tapsterd = stack.enter_context(Daemon())
        subprocess.run(
            [TAPSTER, "--ledger", tapsterd.ledger, "libvirt", "install"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        libvirt.start()
        libvirt.define(domain("own", OWN))
        libvirt.define(adopted("taps", "dev='taps0' bridge='br0'"))
        samples = run.size(SAMPLES, 1)
        rounds = [_round(samples, tapsterd) for _ in range(run.rounds)]
    yield Table(
        "domains",
        "libvirt: start a domain",
        "ms",
        [
            Row(kind, [one[kind] for one in rounds], note)
            for kind, note in NOTES.items()
        ],
        base=BARE,
        goals=GOALS,
        about="With libvirt's daemon and QEMU without KVM: the median.",
    )


def _round(samples: int, tapsterd: Daemon) -> dict[str, float]:
    """Return the median milliseconds of each kind of start."""
    found: dict[str, list[float]] = {kind: [] for kind in NOTES}
    for number in range(samples):
        _start("own")  # as each that is measured, it then follows another of its kind
        for kind in (BARE, HOOKED) if number % 2 else (HOOKED, BARE):
            HOOK.chmod(0o644 if kind == BARE else 0o755)
            found[kind].append(_start("own"))
        HOOK.chmod(0o755)
        _reap(tapsterd.ledger)
        found[FIRST].append(_start("taps"))
        found[AGAIN].append(_start("taps"))
        tapsterd.start()
        found[DAEMON].append(_start("taps"))
        tapsterd.stop()
    return {kind: median(taken) for kind, taken in found.items()}


def _reap(ledger: Path) -> None:
    """End each FIN WAIT: no name is in the way of the next start."""
    command = [TAPSTER, "--ledger", str(ledger), "reap", "--now"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _start(name: str) -> float:
    """Return the milliseconds of a start; the domain is destroyed at once."""
    begin = time.perf_counter()
    virsh(f"start --paused {name}")
    taken = time.perf_counter() - begin
    virsh(f"destroy {name}")
    return taken * 1e3
