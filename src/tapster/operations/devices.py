# SPDX-License-Identifier: Apache-2.0
"""What is done to the device of one lease, by its identity, and to its wiring."""

import os
from collections.abc import Sequence
from contextlib import suppress
from errno import EBADFD, EBUSY, ENODEV, EOPNOTSUPP, EXFULL
from itertools import count

from tapster import model
from tapster.backends import bridge
from tapster.errors import (
    ConflictError,
    KernelError,
    NoSuchLease,
    NoSuchLink,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import LinkChange, Namespace
from tapster.model import Lease, Link, Mode, State, Wiring
from tapster.operations import decision
from tapster.operations.decision import DeviceState
from tapster.operations.manager import Manager

ATTEMPTS = 100
"""How often a device that others keep from being made is tried again."""


Differ = dict[str, dict[str, str]]
"""How leases are not wired as they should be: by id, then by backend."""


class Devices(Manager):
    """A manager that changes devices: those of leases it has claimed or released."""

    def _connect(
        self,
        namespace: Namespace,
        lease: Lease,
        first: Sequence[LinkChange],
        joining: Sequence[LinkChange],
    ) -> None:
        """Change a device, let its backends put up what they have, then join it."""
        if lease.backends:
            # What guards a port has to be there before the port.
            namespace.set_links(first)
            for backend in self._backends:
                if backend.name in lease.backends:
                    backend.attach(namespace, lease)
        try:
            namespace.set_links(joining if lease.backends else [*first, *joining])
        except KernelError as error:
            if error.errno == EXFULL and lease.wiring.bridge:
                raise bridge.full(lease.wiring.bridge) from error
            raise

    def _check_backends(self, namespace: Namespace, wanted: Wiring) -> tuple[str, ...]:
        """The backends that a wiring concerns, if they can be had."""
        concerned = [backend for backend in self._backends if backend.concerns(wanted)]
        for backend in concerned:
            backend.check(namespace, wanted)
        return tuple(backend.name for backend in concerned)

    def _rewire(self, namespace: Namespace, lease: Lease, wanted: Wiring) -> Lease:
        """Connect the device of a claimed lease as `wanted`, wherever it is now.

        Raises NoSuchLease if it was released meanwhile: a release waits for nobody.
        """
        released = f"lease {lease.id} ({lease.name}) was released meanwhile"
        try:
            changed = self._reconnect(namespace, lease, wanted)
        except TapsterError:
            if self._rest_if_released(namespace, lease.id):
                raise NoSuchLease(released) from None
            raise
        if self._rest_if_released(namespace, lease.id):
            raise NoSuchLease(released)
        return changed

    def _reconnect(self, namespace: Namespace, lease: Lease, wanted: Wiring) -> Lease:
        on = bridge.find(namespace, wanted.bridge) if wanted.bridge else None
        if on is not None:
            bridge.check(on, wanted)
        concerned = self._check_backends(namespace, wanted)
        link = namespace.link(lease.ifindex)
        if link is None:
            raise NoSuchLink(f"device {lease.name!r} is gone: tapster recover")
        changed = lease._replace(wiring=wanted, backends=concerned)
        to = on.ifindex if on else 0
        joining = bridge.rewire(changed, lease.wiring, link, to)
        both = dict.fromkeys([*lease.backends, *concerned])
        if tuple(both) != lease.backends:
            self._ledger.rewire(lease.id, lease.wiring, both)
        for backend in self._backends:
            if backend.name in lease.backends and backend.name not in concerned:
                backend.detach(namespace, changed)
        self._connect(
            namespace, changed, bridge.leave(changed, lease.wiring, link, to), joining
        )
        return self._ledger.rewire(lease.id, wanted, concerned)

    def _rest_if_released(self, namespace: Namespace, id: str) -> bool:
        """Bring a claimed lease's device to rest if it has been released."""
        lease = self._ledger.lease(id)
        if lease is None or lease.state is State.ACTIVE:
            return lease is None
        if not self._bring_to_rest(namespace, lease):
            self._plant(namespace, lease)
        with suppress(ServiceUnavailable):  # it will be tried again
            self._detach(namespace, lease)
        return True

    def _differences(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        links: dict[int, Link],
    ) -> tuple[Differ, TapsterError | None]:
        """How leases are not wired as they should be.

        And why that cannot be told of some backend: of the others it is.
        """
        found: Differ = {}
        reason: TapsterError | None = None
        if namespace is None:
            return found, reason
        for lease in leases:
            link = links.get(lease.ifindex)
            if (
                lease.state is State.ACTIVE
                and link is not None
                and decision.is_ours(self._ledger.id, lease, link)
                and (wrong := bridge.differs(lease, link, namespace, links))
            ):
                found.setdefault(lease.id, {})["link"] = wrong
        for backend in self._backends:
            try:
                observed = backend.observe(namespace, leases)
            except TapsterError as error:
                reason = reason or error
                continue
            for id, wrong in observed.differences.items():
                found.setdefault(id, {})[backend.name] = wrong
        return found, reason

    def _bring_to_rest(self, namespace: Namespace, lease: Lease) -> bool:
        """Take a device down and off its bridge; False if it must be replaced."""
        # A passthru macvtap excludes everything else from its lower device: a
        # waiting one would keep the next machine from starting.
        exclusive = lease.mode is Mode.PASSTHRU and not lease.placeholder
        link = namespace.link(lease.ifindex)
        if (
            exclusive
            or decision.look(self._ledger.id, lease, link) is DeviceState.ABSENT
        ):
            return False
        rest = bridge.detach(lease.ifindex)
        mark = self._mark(lease)
        if link is not None and link.alias != mark:
            rest = rest._replace(alias=mark)
        try:
            try:
                namespace.set_links([rest])
            except KernelError as error:
                if error.errno != EOPNOTSUPP:
                    raise
                # A port of Open vSwitch in the kernel: it leaves when its row goes.
                namespace.set_links([rest._replace(master=None)])
        except KernelError as error:
            if error.errno != ENODEV:
                raise
            return False
        return True

    def _detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Let every backend take down what it has of a claimed lease."""
        if not lease.backends:
            return
        reason: TapsterError | None = None
        for backend in self._backends:
            if backend.name in lease.backends:
                try:
                    backend.detach(namespace, lease)
                except TapsterError as error:
                    reason = reason or error
        if reason is not None:
            raise reason
        if namespace is not None and lease.state is State.FIN_WAIT:
            # Open vSwitch puts back the flags of a device that it lets go, and may
            # not have heard yet that it is down.
            self._bring_to_rest(namespace, lease)
        self._ledger.clear_backends(lease.id)

    def _plant(self, namespace: Namespace, lease: Lease) -> None:
        with suppress(TapsterError):  # it will be tried again
            self._detach(namespace, lease)
        self._delete(namespace, [lease])
        for attempt in count(1):
            lease = self._ledger.hold_name(lease.id)
            try:
                fds = namespace.create_tap(
                    lease.name,
                    lease.ifindex,
                    queues=1,
                    vnet_hdr=False,
                    uid=None,
                    gid=None,
                )
            except KernelError as error:
                if error.errno == EBUSY and namespace.ifindex(lease.name):
                    return  # a foreign device has the name: nobody else can get it
                if error.errno not in (EBUSY, EBADFD) or attempt == ATTEMPTS:
                    raise
                continue  # its ifindex is taken, or it was deleted while it was made
            close_fds(lease._replace(fds=fds))
            try:
                namespace.set_links(
                    [LinkChange(lease.ifindex, alias=self._mark(lease))]
                )
            except KernelError as error:
                if error.errno != ENODEV or attempt == ATTEMPTS:
                    raise
                continue  # deleted once more
            return

    def _delete(self, namespace: Namespace, leases: Sequence[Lease]) -> None:
        """Delete what there is of these leases' devices, and see that it is gone."""
        ours = [
            lease.ifindex
            for lease in leases
            if self._seen(namespace, lease) is not DeviceState.ABSENT
        ]
        if ours:
            namespace.delete_links(ours)
        for lease in leases:
            if self._seen(namespace, lease) is not DeviceState.ABSENT:
                raise ConflictError(
                    f"device {lease.name!r} (ifindex {lease.ifindex}) was not deleted: "
                    "somebody moved it to another group meanwhile"
                )

    def _seen(self, namespace: Namespace, lease: Lease) -> DeviceState:
        return decision.look(self._ledger.id, lease, namespace.link(lease.ifindex))

    def _mark(self, lease: Lease) -> str:
        return model.stamp(self._ledger.id, lease.id)


def close_fds(lease: Lease) -> None:
    for fd in lease.fds:
        os.close(fd)
