# SPDX-License-Identifier: Apache-2.0
"""List the devices that libvirt's domains have or request from Tapster."""

from collections.abc import Iterator

from tapster.errors import RequestError
from tapster.host import Host
from tapster.libvirt import domain, virsh
from tapster.libvirt.hook import LABEL, PREFIX, is_a_domains, owner_of
from tapster.light import NamedTuple
from tapster.model import Lease


class DomainDevice(NamedTuple):
    """A device of a domain."""

    domain: str
    state: str
    """The domain's state, as virsh calls it; "gone" if libvirt does not know it."""
    nic: str
    """The name of the device."""
    on: str | None
    mac: str | None
    lease: str | None
    """The state of the lease; None if there is none."""
    id: str | None
    """The id of the lease."""


def rows(host: Host) -> list[DomainDevice]:
    """Return a row for each device of each domain, also of domains that are gone."""
    leases = {
        (lease.owner, lease.name): lease
        for lease in host.leases()
        if is_a_domains(lease)
    }
    found: list[DomainDevice] = []
    for name, uuid in virsh.domains().items():
        state = virsh.state(uuid)
        xml = virsh.definition(uuid)
        owner = owner_of(uuid)
        try:
            nics = domain.nics_of(xml)
        except RequestError:
            nics = []  # doctor says what is wrong; its leases are listed
        for nic in nics:
            lease = leases.pop((owner, nic.dev), None)
            if lease:
                found.append(_leased(name, state, lease))
            else:
                on = next(
                    map(nic.attributes.get, domain.PLACES & nic.attributes.keys()), None
                )
                mac = nic.attributes.get("mac")
                found.append(DomainDevice(name, state, nic.dev, on, mac, None, None))
        plugged = [key for key in leases if key[0] == owner]
        found += [_leased(name, state, leases.pop(key)) for key in plugged]
    return [*found, *_of_gone_domains([*leases.values()])]


def _of_gone_domains(leases: list[Lease]) -> Iterator[DomainDevice]:
    for lease in leases:
        name = dict(lease.labels).get(LABEL, lease.owner.removeprefix(PREFIX))
        yield _leased(name, "gone", lease)


def _leased(name: str, state: str, lease: Lease) -> DomainDevice:
    on = lease.wiring.bridge or lease.wiring.ovs or lease.lower
    return DomainDevice(
        name, state, lease.name, on, lease.mac, str(lease.state), lease.id
    )
