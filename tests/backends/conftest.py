# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that use Open vSwitch."""

from lab.openvswitch import switch
from tests.backends.ovs_vms import pair

__all__ = ["pair", "switch"]
