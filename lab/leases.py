# SPDX-License-Identifier: Apache-2.0
"""A lease as a plain record, for tests of pure code."""

from tapster.model import Kind, Lease, Netns, State, Wiring

LEASE = Lease(
    id="0123456789abcdef",
    name="vnet0",
    ifindex=1 << 30,
    kind=Kind.TAP,
    state=State.ACTIVE,
    owner="vm1",
    mac="52:54:00:12:34:56",
    lower=None,
    mode=None,
    queues=1,
    wiring=Wiring(bridge="br0", mtu=1500),
    backends=(),
    netns=Netns("boot", 1, ""),
    created=0.0,
    fin_wait=5.0,
    deadline=None,
    released=None,
    process=None,
    placeholder=False,
    manager=None,
)
"""An active lease of a tap on br0, without backends."""
