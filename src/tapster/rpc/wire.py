# SPDX-License-Identifier: Apache-2.0
"""What both ends of a connection know: names, and parts of answers. Pure."""

from tapster.light import NamedTuple
from tapster.model import Lease

NAME = "io.tapster"
"""The name of the daemon's interface."""
SOCKET = "/run/tapster/tapster.sock"
"""Where the daemon listens, unless told otherwise."""
LISTED = 256
"""Leases that one call can name."""


class Device(NamedTuple):
    """A lease, and the places of its descriptors among the descriptors of the
    answer."""

    lease: Lease
    fds: tuple[int, ...]
    vhost_fds: tuple[int, ...] = ()


class Difference(NamedTuple):
    """How a device differs from its request, by backend."""

    backend: str
    wrong: str
