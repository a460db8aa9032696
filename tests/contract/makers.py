# SPDX-License-Identifier: Apache-2.0
"""Devices of ours, with everything that a test does not care about."""

import pytest

from tapster.errors import KernelError
from tapster.kernel.port import Namespace, NewMacvtap
from tapster.model import Mode

OURS = 1 << 30
"""An interface index as Tapster chooses them; so are the ones after it."""


def taps(
    namespace: Namespace,
    name: str,
    ifindex: int,
    queues: int = 1,
    *,
    vnet_hdr: bool = True,
) -> tuple[int, ...]:
    """Make a tap; its descriptors."""
    return namespace.create_tap(
        name, ifindex, queues=queues, vnet_hdr=vnet_hdr, uid=None, gid=None
    )


def tap(namespace: Namespace, name: str, ifindex: int) -> int:
    """Make a tap of one queue; its descriptor."""
    (fd,) = taps(namespace, name, ifindex)
    return fd


def macvtap(
    namespace: Namespace,
    name: str,
    ifindex: int,
    lower: str,
    mode: Mode = Mode.BRIDGE,
    *,
    mac: str | None = None,
    mtu: int | None = None,
) -> None:
    """Make a macvtap on the device called `lower`."""
    namespace.create_macvtap(
        NewMacvtap(name, ifindex, namespace.ifindex(lower), mode, mac=mac, mtu=mtu)
    )


def refused(
    code: int, kind: type[KernelError | OSError] = KernelError
) -> pytest.RaisesExc[KernelError | OSError]:
    """Expects an error with this errno; OSError is what a stranger gets."""
    return pytest.raises(kind, check=lambda error: error.errno == code)
