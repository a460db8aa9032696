# SPDX-License-Identifier: Apache-2.0
"""Requests for devices: whether a caller may have them, and what the ledger keeps."""

import time
from contextlib import suppress

from tapster import model
from tapster.daemon import policy
from tapster.daemon.methods.access import Access
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller, DeviceRequest
from tapster.errors import LedgerError, NotAllowed, QuotaExceeded, RequestError
from tapster.kernel import unix
from tapster.kernel.port import Namespace
from tapster.light import Any, remembered
from tapster.model import (
    HistoryEvent,
    Lease,
    Link,
    Macvtap,
    Mode,
    Spec,
    State,
    Tap,
)
from tapster.operations.operations import Operations
from tapster.rpc import interface
from tapster.rpc.interface import Binding
from tapster.rpc.varlink import decode, encode, from_json, to_json

REFUSAL_PAUSE = 1.0
"""Seconds between two refusals of one user that are recorded."""
STRANGERS_PAUSE = 60.0
"""The same of all users for whom there is no rule."""
REFUSED_USERS = 1000
LONGEST_TEXT = 200
"""Characters of a text of the caller's that the history keeps."""


class Requests:
    """Checks requests by the rules, the quotas and the limits of the daemon."""

    def __init__(
        self, operations: Operations, access: Access, metrics: Metrics
    ) -> None:
        self._operations = operations
        self._access = access
        self._metrics = metrics
        self._refused: dict[int | None, float] = {}
        """When a refusal was last recorded, by user id; under None, of users for whom
        there is no rule."""

    def check_size(self, asked: interface.Acquire) -> None:
        """Raise RequestError if an answer has no room for the requested descriptors."""
        if not asked.nics:
            raise RequestError("the request names no device: give nics")
        limits = self._access.loaded.config.limits
        room = min(limits.descriptors, unix.SCM_MAX_FD)
        # The number of queues is checked later. Each device counts, whatever it says.
        queues = sum(max(interface.spec_of(nic).queues, 1) for nic in asked.nics)
        if (wanted := queues * (1 + asked.vhost)) > room:
            raise RequestError(
                f"the request needs {wanted} descriptors; an answer has room for {room}"
            )

    def admit(
        self,
        caller: Caller,
        namespace: Namespace,
        asked: interface.Acquire,
        wanted: int = 0,
    ) -> list[interface.Acquire]:
        """Check a request for devices; return one for each device, as `check` does.

        `wanted` devices are about to be made for the caller. Raise NotAllowed or
        QuotaExceeded, and record that in the history.
        """
        try:
            requests = [
                self.check(caller, namespace, asked._replace(nics=(nic,)))
                for nic in asked.nics
            ]
            self._check_quota(caller, len(requests), wanted)
        except (NotAllowed, QuotaExceeded) as error:
            self._record_refusal(caller, asked, str(error))
            raise
        return requests

    def check(
        self, caller: Caller, namespace: Namespace, request: interface.Acquire
    ) -> interface.Acquire:
        """Check a request for one device; return it with the bridge's own name."""
        if caller.root:
            return request  # everything is allowed; the acquire checks the rest
        spec = interface.spec_of(request.nics[0])
        model.check_spec(spec)
        lowers = False
        if isinstance(spec, Tap):
            if link := _bridge_of(namespace, spec):
                lowers = spec.mtu is not None and spec.mtu < link.mtu
                if spec.bridge is not None:
                    # A rule lists a bridge by its name, never by an altname.
                    spec = spec._replace(bridge=link.name)
            request = request._replace(nics=(interface.nic(spec),))
        rules = self._access.rules
        if request.bind is Binding.CLOSE and isinstance(spec, Tap):
            rules = self._access.loaded.rules_for_bridge(spec.bridge)
        device = DeviceRequest(spec, request.netns, request.vhost, lowers)
        self._permit(rules, caller, device)
        return request

    def permit_end_of_wait(self, caller: Caller, lease: Lease) -> None:
        """Raise NotAllowed unless a rule lets the caller choose how long a lease waits.

        Of a lease of the caller's, that is the rule that allows the device.
        """
        if lease.caller_uid != caller.uid:
            self._access.permit(caller, policy.END_OTHERS, policy.FIN_WAIT)
            return
        request = self.of(lease)
        spec = interface.spec_of(request.nics[0])._replace(fin_wait=0.0)
        device = DeviceRequest(spec, request.netns, request.vhost)
        self._permit(self._access.rules, caller, device)

    def _permit(
        self, rules: tuple[policy.Rule, ...], caller: Caller, device: DeviceRequest
    ) -> None:
        """Raise NotAllowed unless a rule allows the caller a device."""
        if reason := policy.judge(rules, caller, device):
            self._metrics.add("refused", "policy")
            raise NotAllowed(reason)

    def _check_quota(self, caller: Caller, wanted: int, before: int) -> None:
        """Raise QuotaExceeded if the caller may not have `wanted` more devices, after
        those that are about to be made `before`."""
        limits = self._access.loaded.config.limits
        quota = policy.quota(self._access.rules, caller, limits.devices)
        if quota is None:
            return
        count = self._operations.look.count(caller.uid)
        held = count[State.ACTIVE] + count[State.RESERVED] + before
        if held + wanted > quota:
            self._metrics.add("refused", "quota")
            raise QuotaExceeded(
                f"{caller} has {held} of {quota} devices and asks for {wanted} more; "
                "release one, or ask for a rule of the policy with more devices",
                limit=quota,
            )
        if (waiting := count[State.FIN_WAIT]) + before + wanted > limits.waiting:
            self._metrics.add("refused", "waiting")
            raise QuotaExceeded(
                f"{caller} has {waiting} devices in FIN WAIT and asks for {wanted} "
                f"more: {limits.waiting} are allowed; wait until some are gone",
                limit=limits.waiting,
            )

    def _record_refusal(
        self, caller: Caller, asked: interface.Acquire, reason: str
    ) -> None:
        """Record in the history that a user was refused a device, once a second; of all
        users without a rule, once a minute.

        The user's share of the history bounds these, too.
        """
        now = time.monotonic()  # the wall clock may be set back
        # One user may have the ids of thousands for whom there is no rule.
        known = bool(policy.rules_of(self._access.rules, caller))
        user = caller.uid if known else None
        pause = REFUSAL_PAUSE if known else STRANGERS_PAUSE
        if user in self._refused and now - self._refused[user] < pause:
            return
        if len(self._refused) >= REFUSED_USERS:
            self._refused.clear()
        self._refused[user] = now
        spec = interface.spec_of(asked.nics[0])
        refused = HistoryEvent(
            round(time.time(), 3),
            "refused",
            "",
            printable(spec.name),
            printable(spec.owner),
            caller.uid,
            printable(reason.partition("; needed:\n")[0]),
        )
        with suppress(LedgerError), self._operations.context.gate:
            self._operations.context.ledger.record_event(refused)

    def of(self, lease: Lease) -> interface.Acquire:
        """Return the request for a lease as it is now. Root's command may have changed
        the lease. For a lease that no daemon acquired, return a request for everything
        that the lease has."""
        spec: Spec
        if text := self._operations.look.asked(lease.id):
            request: interface.Acquire = from_json(
                interface.Acquire, decode(text.encode())
            )
            spec = interface.spec_of(request.nics[0])
            if isinstance(spec, Tap):
                # The lease has an MTU, also if none was asked for.
                wiring = lease.wiring._replace(mtu=spec.mtu)
                spec = spec._replace(**wiring._asdict())
                request = request._replace(nics=(interface.nic(spec),))
            return request
        common: dict[str, Any] = {
            "name": lease.name,
            "owner": lease.owner,
            "mac": lease.mac,
            "queues": lease.queues,
            "vnet_hdr": lease.vnet_hdr,
            "fin_wait": lease.fin_wait,
        }
        if lease.lower is not None:
            mode = lease.mode or Mode.BRIDGE
            spec = Macvtap(lease.lower, mode=mode, mtu=lease.wiring.mtu, **common)
        else:
            spec = Tap(**common, **lease.wiring._asdict())
        here = self._operations.context.is_here(lease.netns)
        netns = None if here else lease.netns.path
        return interface.Acquire((interface.nic(spec),), netns=netns)


def _bridge_of(namespace: Namespace, spec: Tap) -> Link | None:
    """Return the bridge that a tap is to be on. One of Open vSwitch has a device of its
    name."""
    name = spec.bridge or spec.ovs
    return namespace.named(name) if name else None


def printable(text: str) -> str:
    """Return a text of the caller's without what moves a cursor, and not too long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown[:LONGEST_TEXT]


# Many VMs of a host are asked for alike.
@remembered
def recorded(request: interface.Acquire) -> str:
    """Return a request for one device as text for the ledger."""
    return encode(to_json(request)).rstrip(b"\0").decode()
