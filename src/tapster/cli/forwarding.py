# SPDX-License-Identifier: Apache-2.0
"""Wait until bridges forward the frames of devices: `run --wait-forwarding`.

A port of a bridge that takes part in the spanning tree first listens and learns. The
kernel begins to listen when a process opens the tap.
"""

from collections.abc import Sequence
from select import select
from time import monotonic

from tapster.cli import handover
from tapster.cli.supervise import is_stopped
from tapster.errors import HostError, RequestError
from tapster.light import TYPE_CHECKING
from tapster.model import Spec, Tap
from tapster.open_device import OpenDevice

if TYPE_CHECKING:
    from tapster.api import AnyHost

PAUSE = 0.05
"""Seconds between two looks."""


def check(specs: Sequence[Spec], command: Sequence[str], texts: Sequence[str]) -> None:
    """Before the command starts, check that each device can forward at all.

    Raises RequestError.
    """
    used = handover.descriptors_used([*command, *texts])
    for number, spec in enumerate(specs):
        if not isinstance(spec, Tap) or spec.bridge is None:
            continue
        place = str(number) if len(specs) > 1 else ""
        if spec.standby or not spec.up:
            raise RequestError(
                "--wait-forwarding: a device that is down or on standby forwards "
                "nothing; leave --down and --standby out"
            )
        if number not in used:
            raise RequestError(
                "--wait-forwarding: a port forwards only while its tap is open, so "
                f"hand the tap over open: COMMAND needs {{fd{place}}}"
            )


def wait(host: "AnyHost", devices: Sequence[OpenDevice], seconds: float) -> None:
    """Wait until the ports of all devices forward.

    Raises HostError after `seconds`, and KeyboardInterrupt at a signal to stop.
    """
    end = monotonic() + seconds
    for opened in devices:
        bridge = opened.lease.wiring.bridge
        while bridge is not None:
            link = host.device(opened)
            if link is not None and link.forwarding:
                break
            if monotonic() >= end:
                raise HostError(
                    f"bridge {bridge!r} does not forward frames of {opened.name!r} "
                    f"after {seconds:g} s; see: bridge link show dev {opened.name}; "
                    "to wait longer: --wait-forwarding 2m; without a spanning tree: "
                    f"ip link set {bridge} type bridge stp_state 0"
                )
            if is_stopped():
                raise KeyboardInterrupt
            select([], [], [], PAUSE)
