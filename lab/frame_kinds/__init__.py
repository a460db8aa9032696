# SPDX-License-Identifier: Apache-2.0
"""Kinds of frames that a guest can send, and which of them a filter passes.

This is the one table: the test sends each kind through real taps, and docs/filter.md is
made of it by `python -m lab.frame_kinds.page`.
"""

from lab.frame_kinds import checksums, ethernet, ipv4, ipv6, neighbours
from lab.frame_kinds.kind import FrameKind

GROUPS = {
    **ethernet.GROUPS,
    **ipv4.GROUPS,
    **ipv6.GROUPS,
    **neighbours.GROUPS,
    **checksums.GROUPS,
}


def frame_kinds(me: str) -> list[FrameKind]:
    """Return every kind, as a guest with this MAC sends it."""
    return [
        kind._replace(group=group)
        for group, makers in GROUPS.items()
        for make in makers
        for kind in make(me)
    ]
