# SPDX-License-Identifier: Apache-2.0
"""Reap, Recover, Examine, RemoveLeftovers and Explain: what administrators ask for."""

from collections.abc import Sequence
from functools import partial

from tapster import doctor
from tapster.daemon import config, policy
from tapster.daemon.methods.access import Access
from tapster.daemon.methods.call import Answer, Call, Unfinished, distinct
from tapster.daemon.methods.requests import Requests
from tapster.daemon.policy import Caller
from tapster.daemon.upkeep import Upkeep
from tapster.errors import TapsterError
from tapster.model import Lease, State
from tapster.operations.operations import Operations
from tapster.operations.reap import REAP_BATCH
from tapster.rpc import interface


class Maintaining:
    """The methods that keep a whole host in order, and explain its policy."""

    def __init__(
        self,
        operations: Operations,
        access: Access,
        requests: Requests,
        upkeep: Upkeep,
    ) -> None:
        self._operations = operations
        self._access = access
        self._requests = requests
        self._upkeep = upkeep

    def reap(self, call: Call) -> Answer | Unfinished:
        """End the FIN WAIT of all leases, in batches, or that of some leases."""
        asked: interface.Reap = call.parameters
        if asked.leases is not None:
            return self._reap_some(call.caller, asked.leases)
        self._access.permit(call.caller, policy.MAINTAIN)
        waiting = self._operations.look.count()[State.FIN_WAIT]
        return self._reap_batch(asked.now, waiting, 0, None)

    def _reap_batch(
        self, now: bool, most: int, reaped: int, failure: TapsterError | None
    ) -> Answer | Unfinished:
        """Reap a batch. `reaped` leases have ended before, and `failure` occurred.

        Stop at `most`: others may release leases as fast as this reaps them.
        """
        batch: list[Lease] = []
        try:
            self._operations.reap(now=now, limit=REAP_BATCH, on_reaped=batch.extend)
        except TapsterError as error:
            failure = failure or error
        self._upkeep.report_reaped(batch)
        reaped += len(batch)
        if batch and reaped < most:
            return Unfinished(partial(self._reap_batch, now, most, reaped, failure))
        if failure:
            raise failure
        return Answer(interface.Reaped(reaped))

    def _reap_some(self, caller: Caller, ids: Sequence[str]) -> Answer:
        """End the FIN WAIT of leases that the caller may end, and may choose it for."""
        look = self._operations.look
        there = [id for id in distinct(ids) if not look.has_ended(id)]
        leases = [self._access.endable(caller, id) for id in there]
        if not policy.allows(self._access.rules, caller, policy.MAINTAIN):
            for lease in leases:
                self._requests.permit_end_of_wait(caller, lease)
        reaped = self._operations.reap.some(
            [lease.id for lease in leases], on_reaped=self._upkeep.report_reaped
        )
        return Answer(interface.Reaped(reaped))

    def recover(self, call: Call) -> Answer:
        """Bring ledger and kernel into agreement."""
        asked: interface.Recover = call.parameters
        self._access.permit(call.caller, policy.MAINTAIN)
        repairs = self._operations.recover(
            dry_run=asked.dry_run, on_repaired=self._upkeep.report_repairs
        )
        return Answer(interface.Recovered(tuple(repairs)))

    def examine(self, call: Call) -> Answer:
        """Return the problems of the host."""
        self._access.permit(call.caller, policy.MAINTAIN)
        return Answer(interface.Problems(tuple(doctor.examine(self._operations))))

    def remove_leftovers(self, call: Call) -> Answer:
        """Delete the devices of a lost ledger."""
        asked: interface.Leftovers = call.parameters
        self._access.permit(call.caller, policy.MAINTAIN)
        names = self._operations.remove_leftovers(asked.ledger, asked.names)
        return Answer(interface.Names(tuple(names)))

    def explain(self, call: Call) -> Answer:
        """Explain the policy to a user. Runs in the thread for look-ups."""
        asked: interface.Explain = call.parameters
        caller = config.caller_named(asked.user)
        if caller.uid != call.caller.uid:
            self._access.permit(call.caller, policy.MAINTAIN)
        devices = self._access.loaded.config.limits.devices
        lines = policy.explain(self._access.rules, caller, devices)
        return Answer(interface.Lines(tuple(lines)))
