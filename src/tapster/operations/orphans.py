# SPDX-License-Identifier: Apache-2.0
"""Orphans: find the leases whose process, or manager, is dead."""

from tapster.model import Lease, State
from tapster.operations.context import Context


def find_orphans(context: Context) -> list[Lease]:
    """Return the leases that `settle` repairs.

    Their process, or the manager that worked on them, is dead, or their boot is over.
    """
    boot = context.system.boot_id
    return [
        lease
        for lease in context.ledger.suspects(boot, context.has_ended)
        if _is_orphan(context, lease, boot)
    ]


def _is_orphan(context: Context, lease: Lease, boot: str) -> bool:
    """Return whether the process that had a lease, or worked on it, is dead."""
    if lease.manager is not None and not context.claims.is_alive(lease.manager):
        return True
    if lease.manager is None and lease.state is State.RESERVED:
        return True
    if lease.process is not None and context.has_ended(lease.process):
        return True
    return lease.netns.boot != boot
