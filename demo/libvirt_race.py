# SPDX-License-Identifier: Apache-2.0
"""The race under libvirt: a VM ends, another starts, and a cleanup by name comes late.

Each round ends one VM and starts one. A stranger that saw the first VM run then cleans
up after it by name, as late as can be: when the new VM runs. The round did harm if that
took the new VM off its bridge.
"""

import argparse
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from lab import iproute, libvirt
from lab.daemon import Daemon
from lab.libvirt import Libvirt, adopted, domain, kill, qemu_pid, virsh
from lab.shell import TAPSTER, sh
from lab.vm_network import BRIDGE, VmNetwork, open_lab

REPAIR_SECONDS = 1.0
"""Time that a way has to repair what the cleanup did, if it can."""
POLICY = "[watch]\nrepair = true\n"
"""tapsterd repairs what others do to devices, if it is told to."""
LEDGER = Path("/var/lib/tapster/ledger.db")


class Result(NamedTuple):
    """What came of some rounds."""

    rounds: int
    same_name: int
    """The new VM's device had the name of the former's."""
    harmed: int
    """The late cleanup took the new VM off its bridge, and it stayed off."""
    failures: tuple[str, ...] = ()
    """Why a new VM did not start, each time."""


class LibvirtHost(NamedTuple):
    """The host, and how its domains get their devices."""

    lab: VmNetwork
    libvirt: Libvirt
    xml: Callable[[str, str | None], str]
    """The XML of a domain, with a device of this name if one is given."""


def libvirts_own(name: str, device: str | None) -> str:
    """Return a domain whose taps libvirt makes and names."""
    target = f"<target dev='{device}'/>" if device else ""
    return domain(
        name,
        f"<interface type='bridge'><source bridge='{BRIDGE}'/>{target}"
        "<model type='virtio'/><rom enabled='no'/></interface>",
    )


def tapsters(name: str, device: str | None) -> str:
    """Return a domain whose taps Tapster makes, named after the domain."""
    return adopted(name, f"dev='{device or name + '-0'}' bridge='{BRIDGE}'")


@contextmanager
def host(way: str) -> Iterator[LibvirtHost]:
    """Be on a host where domains get their devices in one of the WAYS."""
    with ExitStack() as stack:
        lab = stack.enter_context(open_lab())
        daemon = Libvirt()
        LEDGER.parent.mkdir(exist_ok=True)
        ledger = LEDGER
        if way == "tapsterd":
            tapsterd = stack.enter_context(Daemon(policy=POLICY))
            tapsterd.start()
            ledger = tapsterd.ledger
        stack.callback(daemon.close)
        if way != "libvirt":
            sh(f"{TAPSTER} --ledger {ledger} libvirt install")
        daemon.start()
        yield LibvirtHost(lab, daemon, libvirts_own if way == "libvirt" else tapsters)


def ends_and_another_starts(host: LibvirtHost, running: str, next: str) -> str:
    """Destroy the running domain while the next starts. Return why that failed."""
    starting = _virsh("start", "--paused", next)
    ending = _virsh("destroy", running)
    return _complaint(ending, starting)


def dies_while_libvirtd_restarts(host: LibvirtHost, running: str, next: str) -> str:
    """Kill the running VM while there is no libvirtd, as in an upgrade of it."""
    host.libvirt.stop(signal.SIGTERM)
    kill(qemu_pid(running))
    host.libvirt.start()
    return _complaint(_virsh("start", "--paused", next))


def is_started_again(host: LibvirtHost, running: str, next: str) -> str:
    """Destroy a domain, and start the same domain at once."""
    virsh(f"destroy {running}")
    return _complaint(_virsh("start", "--paused", running))


SITUATIONS = {
    "A is destroyed while B starts": ends_and_another_starts,
    "A dies while libvirtd restarts, then B starts": dies_while_libvirtd_restarts,
    "A is destroyed and started again, with a fixed name": is_started_again,
}
WAYS = ("libvirt", "hook", "tapsterd")


def race(host: LibvirtHost, situation: str, rounds: int) -> Result:
    """Run some rounds and count the harm."""
    play = SITUATIONS[situation]
    again = play is is_started_again
    for name in ("a", "b"):
        host.libvirt.define(host.xml(name, "fixed0" if again else None))
    virsh("start --paused a")
    running, next = "a", "a" if again else "b"
    same = harmed = 0
    failures: list[str] = []
    for number in range(1, rounds + 1):
        former = device_of(running)
        if why := play(host, running, next):
            failures.append(f"round {number}: {why}")
            if virsh(f"domstate {running}") == "shut off":
                virsh(f"start --paused {running}")
            continue
        device = device_of(next)
        host.lab.clean_up_by_name(former)
        same += device == former
        harmed += not stays_connected(device)
        running, next = next, running
    for name in libvirt.running():
        virsh(f"destroy {name}")
    for name in ("a", "b"):
        virsh(f"undefine {name}")
    return Result(rounds, same, harmed, tuple(failures))


def device_of(name: str) -> str:
    """Return the name of the device that a domain has open, as libvirt says."""
    return virsh(f"domiflist {name}").split()[0]


def stays_connected(device: str) -> bool:
    """Return whether a device is up and on its bridge, or soon is again."""
    for _ in range(int(REPAIR_SECONDS / 0.02)):
        link = iproute.links().get(device, {"flags": ()})
        if "UP" in link["flags"] and link.get("master") == BRIDGE:
            return True
        select.select([], [], [], 0.02)
    return False


def _virsh(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["virsh", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _complaint(*commands: "subprocess.Popen[str]") -> str:
    """Wait until commands have ended; return what those complained of that failed."""
    said = [(command, command.communicate()[1]) for command in commands]
    return " ".join(
        " ".join(text.split()) or f"status {command.returncode}"
        for command, text in said
        if command.returncode
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=WAYS)
    parser.add_argument(
        "--situation", type=int, choices=range(1, len(SITUATIONS) + 1), help="only this"
    )
    options = parser.parse_args()
    for number, situation in enumerate(SITUATIONS, 1):
        if options.situation not in (None, number):
            continue
        print(situation)
        for way in options.ways:
            with host(way) as made:
                result = race(made, situation, options.rounds)
            print(
                f"  {way:<10} {result.rounds} rounds: {result.harmed} harmed, "
                f"{len(result.failures)} not started, "
                f"{result.same_name} times the same name",
                *result.failures,
                sep="\n    ",
                flush=True,
            )


if __name__ == "__main__":
    main()
