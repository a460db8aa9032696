# SPDX-License-Identifier: Apache-2.0
"""What is done to the device of one lease, by its identity, and to its wiring."""

import os
from collections.abc import Sequence
from contextlib import suppress
from errno import EBADFD, EBUSY, ENODEV, EOPNOTSUPP, EXFULL
from itertools import count

from tapster import lifecycle, model
from tapster.errors import (
    ConflictError,
    KernelError,
    NoSuchLease,
    NoSuchLink,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import Kernel, LinkChange
from tapster.lifecycle import Seen
from tapster.manager import Manager
from tapster.model import Lease, Link, Mode, State, Wiring
from tapster.wiring import bridge

ATTEMPTS = 100
"""How often a device that others keep from being made is tried again."""


Differ = dict[str, dict[str, str]]
"""How leases are not wired as they should be: by id, then by plane."""


class Devices(Manager):
    """A manager that changes devices: those of leases it has claimed or released."""

    def _connect(
        self,
        kernel: Kernel,
        lease: Lease,
        first: Sequence[LinkChange],
        joining: Sequence[LinkChange],
    ) -> None:
        """Change a device, let its planes put up what they have, then join it."""
        if lease.wired:
            # What guards a port has to be there before the port.
            kernel.set_links(first)
            for plane in self._planes:
                if plane.name in lease.wired:
                    plane.wire(kernel, lease)
        try:
            kernel.set_links(joining if lease.wired else [*first, *joining])
        except KernelError as error:
            if error.errno == EXFULL and lease.wiring.bridge:
                raise bridge.full(lease.wiring.bridge) from error
            raise

    def _check_planes(self, kernel: Kernel, wanted: Wiring) -> tuple[str, ...]:
        """The planes that a wiring concerns, if they can be had."""
        concerned = [plane for plane in self._planes if plane.concerns(wanted)]
        for plane in concerned:
            plane.check(kernel, wanted)
        return tuple(plane.name for plane in concerned)

    def _rewire(self, kernel: Kernel, lease: Lease, wanted: Wiring) -> Lease:
        """Connect the device of a claimed lease as `wanted`, wherever it is now.

        Raises NoSuchLease if it was released meanwhile: a release waits for nobody.
        """
        released = f"lease {lease.id} ({lease.name}) was released meanwhile"
        try:
            changed = self._reconnect(kernel, lease, wanted)
        except TapsterError:
            if self._rest_if_released(kernel, lease.id):
                raise NoSuchLease(released) from None
            raise
        if self._rest_if_released(kernel, lease.id):
            raise NoSuchLease(released)
        return changed

    def _reconnect(self, kernel: Kernel, lease: Lease, wanted: Wiring) -> Lease:
        on = bridge.find(kernel, wanted.bridge) if wanted.bridge else None
        if on is not None:
            bridge.check(on, wanted)
        concerned = self._check_planes(kernel, wanted)
        link = kernel.link(lease.ifindex)
        if link is None:
            raise NoSuchLink(f"device {lease.name!r} is gone: tapster recover")
        changed = lease._replace(wiring=wanted, wired=concerned)
        to = on.ifindex if on else 0
        joining = bridge.rewire(changed, lease.wiring, link, to)
        both = dict.fromkeys([*lease.wired, *concerned])
        if tuple(both) != lease.wired:
            self._ledger.rewire(lease.id, lease.wiring, both)
        for plane in self._planes:
            if plane.name in lease.wired and plane.name not in concerned:
                plane.unwire(kernel, changed)
        self._connect(
            kernel, changed, bridge.leave(changed, lease.wiring, link, to), joining
        )
        return self._ledger.rewire(lease.id, wanted, concerned)

    def _rest_if_released(self, kernel: Kernel, id: str) -> bool:
        """Bring a claimed lease's device to rest if it has been released."""
        lease = self._ledger.lease(id)
        if lease is None or lease.state is State.ACTIVE:
            return lease is None
        if not self._bring_to_rest(kernel, lease):
            self._plant(kernel, lease)
        with suppress(ServiceUnavailable):  # it will be tried again
            self._unwire(kernel, lease)
        return True

    def _differences(
        self, kernel: Kernel | None, leases: Sequence[Lease], links: dict[int, Link]
    ) -> tuple[Differ, TapsterError | None]:
        """How leases are not wired as they should be.

        And why that cannot be told of some plane: of the others it is.
        """
        found: Differ = {}
        reason: TapsterError | None = None
        if kernel is None:
            return found, reason
        for lease in leases:
            link = links.get(lease.ifindex)
            if (
                lease.state is State.ACTIVE
                and link is not None
                and lifecycle.is_ours(self._ledger.id, lease, link)
                and (wrong := bridge.differs(lease, link, kernel, links))
            ):
                found.setdefault(lease.id, {})["link"] = wrong
        for plane in self._planes:
            try:
                observed = plane.observe(kernel, leases)
            except TapsterError as error:
                reason = reason or error
                continue
            for id, wrong in observed.wrong.items():
                found.setdefault(id, {})[plane.name] = wrong
        return found, reason

    def _bring_to_rest(self, kernel: Kernel, lease: Lease) -> bool:
        """Take a device down and off its bridge; False if it must be replaced."""
        # A passthru macvtap excludes everything else from its lower device: a
        # waiting one would keep the next machine from starting.
        exclusive = lease.mode is Mode.PASSTHRU and not lease.placeholder
        link = kernel.link(lease.ifindex)
        if exclusive or lifecycle.look(self._ledger.id, lease, link) is Seen.ABSENT:
            return False
        rest = bridge.unwire(lease.ifindex)
        mark = self._mark(lease)
        if link is not None and link.alias != mark:
            rest = rest._replace(alias=mark)
        try:
            try:
                kernel.set_links([rest])
            except KernelError as error:
                if error.errno != EOPNOTSUPP:
                    raise
                # A port of Open vSwitch in the kernel: it leaves when its row goes.
                kernel.set_links([rest._replace(master=None)])
        except KernelError as error:
            if error.errno != ENODEV:
                raise
            return False
        return True

    def _unwire(self, kernel: Kernel | None, lease: Lease) -> None:
        """Let every plane take down what it has of a claimed lease."""
        if not lease.wired:
            return
        reason: TapsterError | None = None
        for plane in self._planes:
            if plane.name in lease.wired:
                try:
                    plane.unwire(kernel, lease)
                except TapsterError as error:
                    reason = reason or error
        if reason is not None:
            raise reason
        if kernel is not None and lease.state is State.FIN_WAIT:
            # Open vSwitch puts back the flags of a device that it lets go, and may
            # not have heard yet that it is down.
            self._bring_to_rest(kernel, lease)
        self._ledger.unwired(lease.id)

    def _plant(self, kernel: Kernel, lease: Lease) -> None:
        with suppress(TapsterError):  # it will be tried again
            self._unwire(kernel, lease)
        self._delete(kernel, [lease])
        for attempt in count(1):
            lease = self._ledger.replant(lease.id)
            try:
                fds = kernel.create_tap(
                    lease.name,
                    lease.ifindex,
                    queues=1,
                    vnet_hdr=False,
                    uid=None,
                    gid=None,
                )
            except KernelError as error:
                if error.errno == EBUSY and kernel.ifindex(lease.name):
                    return  # a foreign device has the name: nobody else can get it
                if error.errno not in (EBUSY, EBADFD) or attempt == ATTEMPTS:
                    raise
                continue  # its ifindex is taken, or it was deleted while it was made
            close_fds(lease._replace(fds=fds))
            try:
                kernel.set_links([LinkChange(lease.ifindex, alias=self._mark(lease))])
            except KernelError as error:
                if error.errno != ENODEV or attempt == ATTEMPTS:
                    raise
                continue  # deleted once more
            return

    def _delete(self, kernel: Kernel, leases: Sequence[Lease]) -> None:
        """Delete what there is of these leases' devices, and see that it is gone."""
        ours = [
            lease.ifindex
            for lease in leases
            if self._seen(kernel, lease) is not Seen.ABSENT
        ]
        if ours:
            kernel.delete_links(ours)
        for lease in leases:
            if self._seen(kernel, lease) is not Seen.ABSENT:
                raise ConflictError(
                    f"device {lease.name!r} (ifindex {lease.ifindex}) was not deleted: "
                    "somebody moved it to another group meanwhile"
                )

    def _seen(self, kernel: Kernel, lease: Lease) -> Seen:
        return lifecycle.look(self._ledger.id, lease, kernel.link(lease.ifindex))

    def _mark(self, lease: Lease) -> str:
        return model.stamp(self._ledger.id, lease.id)


def close_fds(lease: Lease) -> None:
    for fd in lease.fds:
        os.close(fd)
