# SPDX-License-Identifier: Apache-2.0
"""Leftovers: delete the devices of a lost ledger."""

from tapster import model
from tapster.operations.context import Context


class RemoveLeftovers:
    """The operation. Call it with the id of a lost ledger."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, ledger: str) -> list[str]:
        """Delete the devices here that carry the ledger's stamp; return their names.

        Only the caller can know that a ledger is lost. Of the Host's own ledger,
        devices that have a lease stay. A tap that a process has open stays too: a
        running VM may use it.
        """
        context = self.context
        with context.gate:
            links = context.namespace.links()
            # Read after the devices: a lease is written before its device is made.
            known = {lease.id for lease in context.ledger.leases()}
            leftovers = [
                link
                for link in links
                if (stamp := model.parse_stamp(link.alias))
                and stamp.ledger == ledger
                and stamp.lease not in known
                and not link.open
            ]
            context.namespace.delete_links([link.ifindex for link in leftovers])
            return [link.name for link in leftovers]
