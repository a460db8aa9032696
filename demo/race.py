# SPDX-License-Identifier: Apache-2.0
"""Reproduce the race with real VMs, then show how Tapster prevents it.

Run the demo as root. It exits with 0 only if both happened: without Tapster, a VM lost
its network to the cleanup after a dead neighbour; with Tapster, a VM kept it.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo import picture
from demo.picture import Moments
from demo.ways import KernelNames, TapProvider, TapsterNames
from lab.vm_network import BRIDGE, TOOLS, VmNetwork, open_lab

MAC_A = "52:54:00:00:00:0a"
MAC_B = "52:54:00:00:00:0b"

ASKS = 3
"""VM A is answered at its first DHCPDISCOVER. After so many, a VM gets no answer."""

TIMEOUT = 30.0

INTRODUCTION = f"""\
Two real VMs, A and B, on a bridge ({BRIDGE}) with a DHCP server, in a private network.
VM A dies. VM B starts at once. Then A's manager cleans up after A, late and by name.
"""


Say = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """What was observed in one run."""

    tap_a: str
    address_a: str | None
    tap_b: str
    bridge_b: str | None
    up_b: bool
    asked_b: int
    heard_b: int
    address_b: str | None
    moments: Moments

    def is_the_harm(self) -> bool:
        """Say whether B got the name of A's tap, and A's cleanup disconnected B."""
        return (
            self.address_a is not None
            and self.tap_b == self.tap_a
            and self.bridge_b is None
            and self.asked_b >= ASKS
            and self.address_b is None
        )

    def is_the_cure(self) -> bool:
        """Say whether B's tap got another name, and B got its address."""
        return (
            self.address_a is not None
            and self.tap_b != self.tap_a
            and self.bridge_b == BRIDGE
            and self.address_b is not None
        )


def play(lab: VmNetwork, way: TapProvider) -> Seen:
    """Run the scenario once, and print each step as it happens."""
    say = _teller()
    a_started = time.time()
    tap_a, address_a, a_killed = live_and_die(lab, way, say)
    b_started = time.time()
    b = way.start("B", MAC_B)
    tap_b = b.tap()
    same = ", as A did" if tap_b == tap_a else ""
    say(f"VM B runs on {tap_b}{same}")
    lab.clean_up_by_name(tap_a)
    cleaned_up = time.time()
    say(f"A's manager has cleaned up {tap_a}: nomaster, down")
    answered = b.nic.wait_for_answer(MAC_B, ASKS, TIMEOUT)
    address_b = lab.wire.wait_for_ack(MAC_B, TIMEOUT if answered else 0)
    asked_b = len(b.nic.heard("Discover", MAC_B))
    say(f"B has asked for an address {_times(asked_b)}: {address_b or 'no answer'}")
    return Seen(
        tap_a=tap_a,
        address_a=address_a,
        tap_b=tap_b,
        bridge_b=lab.bridge_of(tap_b),
        up_b="UP" in lab.links()[tap_b]["flags"],
        asked_b=asked_b,
        heard_b=len(lab.wire.heard("Discover", MAC_B)),
        address_b=address_b,
        moments=Moments(a_started, a_killed, b_started, cleaned_up, time.time()),
    )


def live_and_die(
    lab: VmNetwork, way: TapProvider, say: Say
) -> tuple[str, str | None, float]:
    """Start VM A, then kill it; return its tap, its address, and when it was killed."""
    a = way.start("A", MAC_A)
    tap = a.tap()
    say(f"VM A runs on {tap}")
    address = lab.wire.wait_for_ack(MAC_A, TIMEOUT)
    say(f"A has asked for an address: {address or 'no answer'}")
    os.kill(a.pid, signal.SIGKILL)
    killed = time.time()
    say("A is killed")
    say(way.wait_until_gone(a, tap))
    return tap, address, killed


def table(before: Seen, after: Seen) -> str:
    """Return the two runs side by side."""
    rows = [
        ("", "kernel's names", "Tapster"),
        ("A's tap", before.tap_a, after.tap_a),
        ("A's address", before.address_a, after.address_a),
        ("B's tap", before.tap_b, after.tap_b),
        ("after the late cleanup:", "", ""),
        ("  B's bridge", before.bridge_b, after.bridge_b),
        ("  B's tap is", _up(before), _up(after)),
        ("  B asked for an address", _times(before.asked_b), _times(after.asked_b)),
        ("  heard on the bridge", _times(before.heard_b), _times(after.heard_b)),
        ("  B's address", before.address_b, after.address_b),
    ]
    return "\n".join(
        f"  {what:<28}{one if one is not None else 'none':<18}"
        f"{other if other is not None else 'none'}".rstrip()
        for what, one, other in rows
    )


def verdict(before: Seen, after: Seen) -> int:
    """Print what the runs failed to show; return the exit status."""
    if not before.is_the_harm():
        print("The kernel's names did not disconnect B this time: see the left column.")
    if not after.is_the_cure():
        print("Tapster did not keep B on the network: see the right column.")
    return 0 if before.is_the_harm() and after.is_the_cure() else 1


def tell(report: Path | None, drawn: Path | None) -> int:
    """Run the scenario both ways, each in a network of its own, and compare.

    Write both to `report`, an HTML page, and to `drawn`, a PNG, if these are given.
    """
    print(INTRODUCTION)
    print("1. Without Tapster: the kernel picks the names", flush=True)
    with open_lab() as lab:
        before = play(lab, KernelNames(lab))
    print("\n2. With Tapster: Tapster picks the names", flush=True)
    with open_lab() as lab:
        after = play(lab, TapsterNames(lab))
        shown = picture.with_tapster(after.moments)
    print(f"\n{table(before, after)}\n")
    seen = picture.without(before.tap_a, before.tap_b, before.moments)
    page = picture.page(seen, shown)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page, "utf-8")
        print(f"{report} shows both as a picture.")
    if drawn is not None:
        picture.draw(page, drawn)
    return verdict(before, after)


def main() -> int:
    """Run the demo; print one line if it cannot run."""
    parser = argparse.ArgumentParser(description="Reproduce the race with real VMs.")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="write a picture of it: HTML"
    )
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help="draw it as a PNG with Chromium"
    )
    options = parser.parse_args()
    try:
        if (obstacle := _obstacle()) is None:
            return tell(options.report, options.picture)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except (OSError, LookupError, subprocess.CalledProcessError) as error:
        obstacle = str(error)
    return _fail(obstacle, 1)


def _obstacle() -> str | None:
    if os.geteuid() != 0:
        return "needs root: it makes a private network with a bridge and taps"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def _fail(reason: str, status: int) -> int:
    print(f"race.py: {reason}", file=sys.stderr)
    return status


def _teller() -> Say:
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"  {time.monotonic() - start:5.1f} s  {what}", flush=True)

    return say


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _up(seen: Seen) -> str:
    return "up" if seen.up_b else "down"


if __name__ == "__main__":
    sys.exit(main())
