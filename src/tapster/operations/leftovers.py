# SPDX-License-Identifier: Apache-2.0
"""Leftovers: delete the devices of a lost ledger."""

from tapster import model
from tapster.errors import ConflictError, NoSuchLink, RequestError, TapsterError
from tapster.light import Sequence
from tapster.model import Link
from tapster.operations.context import Context


class RemoveLeftovers:
    """The operation. Call it with the id of a lost ledger."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, ledger: str, names: Sequence[str] | None = None) -> list[str]:
        """Delete the devices here that carry the ledger's stamp; return their names.

        Only the caller can know that a ledger is lost. Of the Host's own ledger,
        devices that have a lease stay. A tap that a process has open stays too: a
        running VM may use it.

        With `names`, delete these devices alone. If one of them must stay, delete
        none. Raises RequestError and ConflictError then.
        """
        context = self.context
        with context.gate:
            links = context.namespace.links()
            # Read after the devices: a lease is written before its device is made.
            known = {lease.id for lease in context.ledger.leases()}
            stay = {link.ifindex: _reason(link, ledger, known) for link in links}
            if names is None:
                leftovers = [link for link in links if not stay[link.ifindex]]
            else:
                by_name = {link.name: link for link in links}
                leftovers = [_named(name, by_name) for name in dict.fromkeys(names)]
                for link in leftovers:
                    if error := stay[link.ifindex]:
                        raise error
            context.namespace.delete_links([link.ifindex for link in leftovers])
            return [link.name for link in leftovers]


def _named(name: str, links: dict[str, Link]) -> Link:
    if name not in links:
        raise NoSuchLink(f"there is no device {name!r} to delete", name=name)
    return links[name]


def _reason(link: Link, ledger: str, known: set[str]) -> TapsterError | None:
    """Return why a device must stay; None if it is a leftover of the ledger."""
    stamp = model.parse_stamp(link.alias)
    if stamp is None:
        return RequestError(
            f"device {link.name!r} is not Tapster's; if you mean it: "
            f"ip link del {link.name}"
        )
    if stamp.ledger != ledger:
        return RequestError(
            f"device {link.name!r} is of ledger {stamp.ledger}, not of {ledger}"
        )
    if stamp.lease in known:
        return RequestError(
            f"device {link.name!r} has a lease; to end it: tapster rm {stamp.lease}"
        )
    if link.open:
        return ConflictError(
            f"device {link.name!r} is open in a process: a VM may use it; "
            "end that process first"
        )
    return None
