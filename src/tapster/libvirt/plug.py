# SPDX-License-Identifier: Apache-2.0
"""Plug a device into a domain that runs, and unplug it. libvirt calls no hook then."""

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import quoteattr

from tapster.errors import HostError, RequestError
from tapster.host import Host
from tapster.kernel import lock
from tapster.libvirt import domain, virsh
from tapster.libvirt.adoption import nics_element
from tapster.libvirt.domain import NicRequest
from tapster.libvirt.hook import LABEL, PID_FILE, leases_of, owner_of, qemu_pid
from tapster.model import Lease, Spec


def attach(
    host: Host,
    name: str,
    spec: Spec,
    attributes: Mapping[str, str],
    model: str,
    dev: str | None,
) -> str:
    """Make a device, let a domain open it, and return the device's name.

    The lease ends with the domain's QEMU. The metadata gets `attributes`, which say the
    same as `spec`, so that the domain can be saved, and migrate. Raise TapsterError;
    then no device is left.
    """
    xml = _live(name)
    uuid, name = domain.uuid_of(xml), domain.name_of(xml)
    pid = qemu_pid(name)
    if pid is None:
        raise HostError(f"the process of domain {name!r} was not found")
    # libvirt replaces the metadata as a whole: another attach must not change it
    # between the look and the change, nor find a nic that no interface opens yet.
    with lock.held(PID_FILE.format(name=name)):
        return _attach(host, virsh.live(uuid), pid, spec, attributes, model, dev)


def _attach(
    host: Host,
    xml: bytes,
    pid: int,
    spec: Spec,
    attributes: Mapping[str, str],
    model: str,
    dev: str | None,
) -> str:
    uuid, name = domain.uuid_of(xml), domain.name_of(xml)
    taken = {lease.name for lease in host.leases()}
    taken |= {interface.dev for interface in domain.targets(xml)}
    spec = spec._replace(
        name=dev or domain.free_name(uuid, taken),
        owner=owner_of(uuid),
        labels=((LABEL, name), *spec.labels),
        vnet_hdr=spec.vnet_hdr and model.startswith("virtio"),
    )
    with host.acquire(spec, pid=pid) as device:
        lease = device.lease
    plugged = NicRequest(lease.name, {**attributes, domain.PLUGGED: "yes"})
    element = nics_element([*domain.nics_of(xml), plugged])
    try:
        virsh.set_live_metadata(uuid, domain.NAMESPACE, element)
        virsh.call(
            *("attach-device", "--live", "--domain", uuid, "/dev/stdin"),
            xml=_interface(lease, model).encode(),
        )
    except BaseException:
        host.release(lease)
        raise
    return lease.name


def detach(host: Host, name: str, nic: str) -> None:
    """Let a domain close a device, then release it. Raise TapsterError.

    The guest has to agree, and a guest that does not run its operating system cannot.
    """
    xml = _live(name)
    uuid = domain.uuid_of(xml)
    (lease,) = _chosen(host, uuid, nic)
    for interface in domain.targets(xml):
        if interface.dev == lease.name:
            element = xml[interface.start : interface.end]
            virsh.call(
                *("detach-device", "--live", "--domain", uuid, "/dev/stdin"),
                xml=element,
            )
    # libvirt waits a while for the guest, and then reports success either way.
    targets = domain.targets(_live(name))
    if any(target.dev == lease.name for target in targets):
        raise HostError(
            f"the guest of {name!r} still uses {lease.name}: try again when its "
            "operating system runs"
        )
    host.release(lease)


def _live(name: str) -> bytes:
    """Return the XML of a domain that runs. Raise RequestError if it does not."""
    uuid = virsh.uuid_of(name)
    if not virsh.runs(uuid):
        raise RequestError(f"domain {name!r} does not run")
    return virsh.live(uuid)


def _chosen(host: Host, uuid: str, nic: str) -> Iterator[Lease]:
    """Yield the lease of the device that `nic` names, by its name or its MAC."""
    leases = leases_of(host, owner_of(uuid))
    for lease in leases:
        if nic.lower() in (lease.name.lower(), lease.mac):
            yield lease
            return
    names = ", ".join(lease.name for lease in leases) or "none"
    raise RequestError(f"the domain has no device {nic!r} of Tapster; it has: {names}")


def _interface(lease: Lease, model: str) -> str:
    queues = f"<driver queues='{lease.queues}'/>" if lease.queues > 1 else ""
    return (
        f"<interface type='ethernet'><mac address='{lease.mac}'/>"
        f"<target dev={quoteattr(lease.name)} managed='no'/>"
        f"<model type={quoteattr(model)}/>{queues}</interface>"
    )
