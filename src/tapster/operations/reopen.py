# SPDX-License-Identifier: Apache-2.0
"""Reopen: open an active lease's device again, for a VMM that replaces itself."""

import os
from contextlib import ExitStack
from errno import EBUSY

from tapster.errors import KernelError, LeaseBusy, NoSuchLease
from tapster.kernel.port import Namespace
from tapster.model import Kind, Lease, Link, State
from tapster.operations.context import Context
from tapster.operations.devices import Opened
from tapster.operations.look import Look


class Reopen:
    """The operation. Call it with the id of a lease."""

    def __init__(self, context: Context, look: Look) -> None:
        self.context = context
        self.look = look

    def __call__(self, id: str) -> Opened:
        """Open the device, with a descriptor for each queue.

        Raises LeaseBusy while a tap of one queue is open elsewhere: the kernel
        allows a queue one descriptor.
        """
        context = self.context
        with context.gate:
            lease = self.look.lease(id)
            link = self.look.device(lease)
            if lease.state is not State.ACTIVE:
                raise NoSuchLease(
                    f"lease {id} ({lease.name}) is released", reference=id
                )
            with context.opened(lease.netns) as namespace, ExitStack() as opened:
                if link is None or namespace is None:
                    raise NoSuchLease(
                        f"the device of lease {id} ({lease.name}) is gone; "
                        "run: tapster recover",
                        reference=id,
                    )
                if lease.kind is Kind.MACVTAP:
                    opened_fds = namespace.open_macvtap(
                        lease.ifindex, queues=lease.queues, vnet_hdr=lease.vnet_hdr
                    )
                    return Opened(lease, opened_fds)
                fds: list[int] = []
                for _ in range(lease.queues):
                    fds.append(_open(namespace, lease, link))
                    opened.callback(os.close, fds[-1])
                opened.pop_all()
                return Opened(lease, tuple(fds))


def _open(namespace: Namespace, lease: Lease, link: Link) -> int:
    try:
        return namespace.open_tap(
            link.name,
            lease.ifindex,
            multi_queue=lease.queues > 1,
            vnet_hdr=lease.vnet_hdr,
        )
    except KernelError as error:
        if error.errno != EBUSY:
            raise
        raise LeaseBusy(
            f"tap {link.name!r} has one queue, and a process has it open; "
            "close it there first, or hand that descriptor on",
            lease=lease.id,
        ) from error
