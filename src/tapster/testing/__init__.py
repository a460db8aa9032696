# SPDX-License-Identifier: Apache-2.0
"""A host in memory, to test programs that use Tapster without root.

import tapster
from tapster.testing import FakeSystem

system = FakeSystem()
system.stranger().add_bridge("br0")
with tapster.Host(system=system) as host:
    with host.acquire(tapster.Tap(bridge="br0")) as device:
        system.advance(5)
    host.release(device)
"""

from tapster.testing.fake import FakeNamespace, FakeSystem
from tapster.testing.space import FakeDevice
from tapster.testing.stranger import Stranger
from tapster.testing.world import World

__all__ = ["FakeDevice", "FakeNamespace", "FakeSystem", "Stranger", "World"]
