# SPDX-License-Identifier: Apache-2.0
"""Find the problems of libvirt's domains with Tapster's devices. Changes nothing."""

import os
from collections.abc import Iterator, Sequence

from tapster.api import AnyHost
from tapster.errors import HostError, RequestError, TapsterError
from tapster.libvirt import domain, hooks, virsh
from tapster.libvirt.hook import LABEL, is_a_domains, owner_of
from tapster.light import NamedTuple
from tapster.model import Lease, Problem, State

SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
ITS_OWN = {"bandwidth": "inbound and outbound", "filterref": "filter", "vlan": "vlan"}
"""Elements by which libvirt changes a device, and the attributes that replace them."""


class Known(NamedTuple):
    """A domain that libvirt knows."""

    name: str
    uuid: str
    definition: bytes
    """Empty if libvirt does not tell."""
    live: bytes | None
    """The XML of a domain that runs."""

    @property
    def is_adopted(self) -> bool:
        return domain.NAMESPACE.encode() in self.definition

    @property
    def nics(self) -> list[domain.NicRequest]:
        """The devices that the metadata asks for; [] if the metadata is wrong, which
        `_disagreements` reports."""
        try:
            return domain.nics_of(self.definition)
        except RequestError:
            return []


def examine(host: AnyHost) -> list[Problem]:
    """Return every problem that root can see. A host without Tapster's domains has
    none.
    """
    if os.geteuid() != 0:
        return []
    leases = [
        lease
        for lease in host.leases(all=False)
        if is_a_domains(lease) and lease.state is State.ACTIVE
    ]
    if not (leases or os.path.exists(hooks.HOOK) or any(map(os.path.exists, SOCKETS))):
        return []
    try:
        known = list(_known())
    except HostError as error:
        if not leases and not os.path.exists(hooks.HOOK):
            return []  # libvirt is not in use
        return [Problem(f"libvirt does not answer: {error}", "start its daemon")]
    adopted = [entry for entry in known if entry.is_adopted]
    return [
        *(_hook() if adopted or leases else ()),
        *(problem for entry in adopted for problem in _disagreements(entry)),
        *_shared(adopted),
        *_abandoned(host, known, leases),
    ]


def _known() -> Iterator[Known]:
    for name, uuid in virsh.domains().items():
        try:
            xml = virsh.definition(uuid)
            live = virsh.live(uuid) if virsh.runs(uuid) else None
        except TapsterError:
            # It has ended at this moment. Or it is busy: then it has its leases.
            xml, live = b"", None
        yield Known(name, uuid, xml, live)


def _hook() -> Iterator[Problem]:
    if not os.path.exists(hooks.HOOK):
        yield Problem(
            "libvirt's hook is missing: adopted domains do not start",
            "tapster libvirt install",
        )
    elif not os.access(hooks.HOOK, os.X_OK):
        yield Problem(
            f"libvirt's hook {hooks.HOOK} is not executable, so libvirt ignores it",
            "tapster libvirt install",
        )
    elif (program := hooks.program()) and not os.access(program, os.X_OK):
        yield Problem(
            f"libvirt's hook calls {program}, which is no program of this host",
            "tapster libvirt install",
        )
    elif daemon := hooks.daemon_to_restart():
        yield Problem(
            f"{daemon} had no hook when it started, and does not call Tapster's",
            f"systemctl restart {daemon}",
        )


def _disagreements(known: Known) -> Iterator[Problem]:
    edit = f"virsh edit {known.name}"
    try:
        domain.requests_of(known.definition)
    except RequestError as error:
        yield Problem(f"domain {known.name}: {error}", edit)
    devs = {nic.dev for nic in known.nics}
    for interface in domain.targets(known.definition):
        if interface.dev in devs:
            for element in sorted(interface.parts & ITS_OWN.keys()):
                yield Problem(
                    f"domain {known.name}: {interface.dev} has <{element}>, by which "
                    "libvirt changes the device beside Tapster",
                    f"{edit}: remove it; tapster:nic has {ITS_OWN[element]}",
                )


def _shared(adopted: Sequence[Known]) -> Iterator[Problem]:
    users: dict[str, list[str]] = {}
    for known in adopted:
        for nic in known.nics:
            users.setdefault(nic.dev, []).append(known.name)
    for dev, names in users.items():
        if len(names) > 1:
            yield Problem(
                f"domains {', '.join(names)} have one device, {dev}: only one of them "
                "can run",
                f"for a clone: tapster libvirt adopt {names[-1]}",
            )


def _abandoned(
    host: AnyHost, known: Sequence[Known], leases: Sequence[Lease]
) -> Iterator[Problem]:
    """Report leases that no domain uses."""
    owners = {owner_of(entry.uuid): entry for entry in known}
    for lease in leases:
        owner = owners.get(lease.owner)
        remedy = f"tapster rm --owner {lease.owner} {lease.name}"
        if owner is None:
            name = dict(lease.labels).get(LABEL, lease.owner)
            problem = f"{lease.name} is leased to domain {name}, which libvirt lacks"
            yield Problem(problem, remedy)
        elif owner.live is None:
            # libvirt may be starting the domain. Then QEMU opens the device soon.
            link = host.device(lease)
            if link is not None and not link.open:
                problem = f"{lease.name} is leased to domain {owner.name}, which is off"
                yield Problem(problem, remedy)
        elif lease.wiring.standby and virsh.state(owner.uuid) == "running":
            yield Problem(
                f"{lease.name} of domain {owner.name}, which runs, is on standby",
                f"tapster take {lease.id}",
            )
        elif lease.name not in {target.dev for target in domain.targets(owner.live)}:
            problem = f"{lease.name} is leased to domain {owner.name}, which runs "
            yield Problem(f"{problem}without it", remedy)
