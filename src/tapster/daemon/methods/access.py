# SPDX-License-Identifier: Apache-2.0
"""Which leases and namespaces a caller may use, by the rules of the configuration."""

from contextlib import suppress

from tapster.daemon import policy
from tapster.daemon.config import Loaded
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller, Need
from tapster.errors import (
    MacTaken,
    NameTaken,
    NoSuchLease,
    NotAllowed,
    RequestError,
)
from tapster.kernel import netns as netns_of_process
from tapster.model import Lease
from tapster.operations.look import Look
from tapster.operations.operations import Operations, open_operations


class Access:
    """The rules, applied to the leases and namespaces that exist.

    A caller learns nothing about leases that it may not see, not even that several
    leases have the same name.
    """

    def __init__(
        self, operations: Operations, ledger: str, loaded: Loaded, metrics: Metrics
    ) -> None:
        self.loaded = loaded
        """The configuration as it is now. Any thread may read or replace it."""
        self._look = operations.look
        self._ledger = ledger
        self._metrics = metrics

    @property
    def rules(self) -> tuple[policy.Rule, ...]:
        """The rules of the policy as they are now. Any thread may read them."""
        return self.loaded.rules

    def visible_uid(self, caller: Caller) -> int | None:
        """Return the user id whose leases the caller may see; None if the caller may
        see all leases."""
        if policy.allows(self.rules, caller, policy.SEE_OTHERS):
            return None
        return caller.uid

    def find(
        self,
        caller: Caller,
        name_or_id: str,
        *,
        owner: str | None = None,
        look: Look | None = None,
    ) -> Lease:
        """Return the lease, if the caller may know of it. Raises NoSuchLease."""
        look = look or self._look
        return look.find(name_or_id, owner, caller_uid=self.visible_uid(caller))

    def with_id(self, caller: Caller, id: str) -> Lease:
        """Return the lease with this id, if the caller may know of it."""
        lease = self.find(caller, id)
        if lease.id != id:
            raise NoSuchLease(
                f"no lease has the id {id!r}: {lease.name!r} is a name", reference=id
            )
        return lease

    def own(self, caller: Caller, id: str) -> Lease:
        """Return the lease with this id, if it is the caller's, or the caller is root.

        Who changes or opens a device steps over the rules of its user, or reads what
        its VM receives. So no rule allows that.
        """
        lease = self.with_id(caller, id)
        if lease.caller_uid != caller.uid and not caller.root:
            self._metrics.add("refused", "policy")
            raise NotAllowed(
                f"lease {id} is another user's: only that user and root may change "
                "or open its device"
            )
        return lease

    def endable(self, caller: Caller, id: str) -> Lease:
        """Return the lease with this id, if the caller may end it."""
        lease = self.with_id(caller, id)
        self.permit_end(caller, lease)
        return lease

    def permit_end(self, caller: Caller, lease: Lease) -> None:
        """Raise unless the caller may end a lease: NoSuchLease if it may not know of
        it, or else NotAllowed."""
        if not policy.may_see(self.rules, caller, lease.caller_uid):
            raise NoSuchLease(
                f"no lease has the name or id {lease.id!r}", reference=lease.id
            )
        if not policy.may_end(self.rules, caller, lease):
            self.permit(caller, policy.END_OTHERS)

    def permit(self, caller: Caller, *needed: Need) -> None:
        """Raise NotAllowed unless one rule for the caller lists what is needed."""
        if reason := policy.refusal(self.rules, caller, needed):
            self._metrics.add("refused", "policy")
            raise NotAllowed(reason)

    def open_inside(self, caller: Caller, netns: str) -> Operations:
        """Open the operations of another namespace for a block: an open namespace
        cannot end. Raise NotAllowed unless a rule for the caller lists it."""
        if not netns.isprintable():
            raise RequestError(f"netns {netns!r} is not text that can be printed")
        self.permit(caller, Need("netns", netns))
        listed = "/" in netns and not caller.root
        if listed and netns_of_process.leads_elsewhere(netns):
            raise NotAllowed(f"{netns!r} leads elsewhere: a link is not followed")
        operations = open_operations(self._ledger, netns=netns, reaper=lambda _: None)
        try:
            # A link may have come after the look, and may be gone by now.
            cookie = operations.context.namespace.netns.cookie
            if listed and not netns_of_process.is_at(netns, cookie):
                raise NotAllowed(f"{netns!r} led elsewhere when it was opened")
        except BaseException:
            operations.close()
            raise
        return operations

    def conceal(
        self, error: NameTaken | MacTaken, caller: Caller
    ) -> NameTaken | MacTaken:
        """Return an error that says of another user's lease only that there is one."""
        if error.lease is None:
            return error
        with suppress(NoSuchLease):
            self.find(caller, error.lease)
            return error
        if isinstance(error, MacTaken):
            return MacTaken(
                f"MAC {error.mac} is in use by a device of another user on the same "
                "network; give this VM another MAC",
                mac=error.mac,
            )
        waits = "" if error.until is None else ", in FIN WAIT"
        return NameTaken(
            f"name {error.name!r} is in use by another user{waits}; ask for another",
            name=error.name,
            until=error.until,
        )
