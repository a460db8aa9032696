# SPDX-License-Identifier: Apache-2.0
"""What Tapster does in each phase of a domain's life, when libvirt calls its hook.

libvirt waits for the hook, and holds the domain's lock until the hook has ended. So
nothing here calls libvirt: the call would wait for ever.

    migrate    the VM will arrive from another host: make its devices, on standby, if
               `arrival` can see it arrive
    prepare    make the devices, unless they are there on standby
    start      libvirt has opened the devices, and QEMU does not run yet: restore
               what libvirt has replaced, such as the root qdisc of a rate
    started    let the leases end with QEMU
    reconnect  libvirtd was restarted while the VM ran: as start and started
    release    libvirt has cleaned up by name for the last time: release the leases

The leases of a domain have its UUID as their owner: a domain can be renamed. Before
`started` they end with libvirtd, which opens the devices. So if libvirtd is killed
while a domain starts, the leases end too, unless QEMU has the devices open already.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from tapster.errors import OF_ONE_LEASE, ConflictError, NameTaken
from tapster.host import Host
from tapster.light import NamedTuple
from tapster.model import Lease, Spec

PID_FILE = "/run/libvirt/qemu/{name}.pid"
PREFIX = "libvirt:"
LABEL = "domain"
"""The label that has the domain's name, for people."""


class Domain(NamedTuple):
    """A domain, and the devices that it asks Tapster for."""

    uuid: str
    name: str
    devs: tuple[str, ...]
    """The names of its devices."""
    specs: tuple[Spec, ...] = ()
    """The requests for them; only before it starts."""

    @property
    def owner(self) -> str:
        return owner_of(self.uuid)


def owner_of(uuid: str) -> str:
    """Return the owner of the leases of a domain."""
    return PREFIX + uuid.lower()


def is_a_domains(lease: Lease) -> bool:
    """Return whether the hook has made the device of a lease.

    A user of the daemon can give a lease the same owner: that lease is that user's.
    """
    return lease.owner.startswith(PREFIX) and lease.caller_uid is None


def leases_of(host: Host, owner: str) -> list[Lease]:
    """Return the active leases of a domain, in the namespace of the caller."""
    here = (host.netns.boot, host.netns.cookie)
    return [
        lease
        for lease in host.leases(all=False)
        if lease.owner == owner
        and is_a_domains(lease)
        and (lease.netns.boot, lease.netns.cookie) == here
    ]


def qemu_pid(name: str) -> int | None:
    """Return the pid of a domain's QEMU; None if the domain does not run."""
    try:
        with open(PID_FILE.format(name=name), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


STARTING = ("migrate", "prepare")
"""The phases in which devices are made: an invalid request fails them."""


def call(host: Host, domain: Domain, phase: str, libvirtd: int) -> bool:
    """Do what a phase needs. `libvirtd` is the pid of the daemon that called.

    Return whether leases are on standby until the VM arrives. Raise TapsterError; then
    a domain that was to start has no devices, and libvirt refuses the start.
    """
    if phase == "migrate":
        if _can_wait():
            _acquire(host, domain, libvirtd, standby=True)
    elif phase == "prepare":
        if not _is_expected(host, domain, libvirtd):
            _acquire(host, domain, libvirtd, standby=False)
    elif phase == "start":
        _restore(host, domain)
        _refuse_missing(host, domain)
    elif phase in ("started", "reconnect"):
        if phase == "reconnect":
            _restore(host, domain)
        return _bind(host, domain)
    elif phase == "release":
        release(host, leases_of(host, domain.owner))
    return False


def _can_wait() -> bool:
    """Whether virsh is there, by which `arrival` sees that the VM runs here."""
    return any(os.access(f"{path}/virsh", os.X_OK) for path in os.get_exec_path())


def release(host: Host, leases: Sequence[Lease]) -> None:
    """Release leases: each, even if another fails."""
    with ExitStack() as ending:
        for lease in leases:
            ending.callback(host.release, lease)


def _acquire(host: Host, domain: Domain, libvirtd: int, *, standby: bool) -> None:
    """Make the devices of a domain that does not run; nothing of it may be left."""
    with suppress(*OF_ONE_LEASE):  # of other domains
        host.settle()
    release(host, leases_of(host, domain.owner))
    specs = [
        spec._replace(
            owner=domain.owner,
            labels=((LABEL, domain.name),),
            reclaim=True,
            standby=standby or spec.standby,
        )
        for spec in domain.specs
    ]
    try:
        # The reaper may be ending the former device's wait at this moment.
        devices = host.acquire_waiting(specs, wait=0.0, pid=libvirtd)
    except NameTaken as error:
        raise _explained(host, domain, error) from error
    for device in devices:
        device.close()


def _explained(host: Host, domain: Domain, error: NameTaken) -> NameTaken:
    """Say which other domain has the name, and what to do."""
    owner = error.owner or ""
    if error.lease is None or not owner.startswith(PREFIX) or owner == domain.owner:
        return error
    labels = next(
        (lease.labels for lease in host.leases() if lease.id == error.lease), ()
    )
    other = dict(labels).get(LABEL, error.owner)
    return NameTaken(
        f"device {error.name!r} belongs to domain {other!r}; if this domain is its "
        "clone, give it devices of its own: tapster libvirt adopt",
        name=error.name,
        lease=error.lease,
        owner=error.owner,
        until=error.until,
    )


def _is_expected(host: Host, domain: Domain, libvirtd: int) -> bool:
    """Whether `migrate` has made the devices, for the same libvirtd."""
    ready = {
        lease.name
        for lease in leases_of(host, domain.owner)
        if lease.wiring.standby and lease.process and lease.process.pid == libvirtd
    }
    return ready == {*domain.devs}


def _restore(host: Host, domain: Domain) -> None:
    """Connect the devices as requested, if something has changed them."""
    ids = [lease.id for lease in leases_of(host, domain.owner)]
    host.operations.recover.some(ids, wiring=True)


def _refuse_missing(host: Host, domain: Domain) -> None:
    there = {lease.name for lease in leases_of(host, domain.owner)}
    if missing := sorted({*domain.devs} - there):
        raise ConflictError(
            f"another program deleted {', '.join(missing)} while domain "
            f"{domain.name!r} started: start the domain again"
        )


def _bind(host: Host, domain: Domain) -> bool:
    """Let the leases end with QEMU; return whether they are on standby."""
    leases = leases_of(host, domain.owner)
    if pid := qemu_pid(domain.name):
        host.bind(leases, pid)
    return any(lease.wiring.standby for lease in leases)
