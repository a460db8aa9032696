# SPDX-License-Identifier: Apache-2.0
"""What each command of the protocol does.

Order keeps everything findable. ADD makes the device, whose lease names the attachment,
before it asks for addresses. DEL gives the addresses back before it releases the
device. So a process that is killed in between leaves a lease, and DEL or GC ends it.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from errno import EINVAL

from tapster.backends import bridge, lower
from tapster.cni import config, result
from tapster.cni.config import Network
from tapster.cni.ipam import Ipam
from tapster.cni.protocol import NEWEST, VERSIONS, Attachment, CniCall, CniFailure, Code
from tapster.cni.reservations import Reservations
from tapster.errors import (
    OF_ONE_LEASE,
    ConflictError,
    DaemonError,
    HostError,
    InternalError,
    KernelError,
    LeaseBusy,
    LedgerError,
    NameTaken,
    NoSuchLink,
    NotAllowed,
    Overloaded,
    TapsterError,
)
from tapster.kernel import failure
from tapster.kernel.linux import LinuxSystem
from tapster.light import TYPE_CHECKING, Any
from tapster.model import Lease, Macvtap, State

if TYPE_CHECKING:
    from tapster.api import AnyHost

TUN = "/dev/net/tun"

Answer = dict[str, Any] | None
Configuration = Mapping[str, Any]


def open_host(network: Network, netns: str | None = None) -> "AnyHost":
    """Open the ledger, or a connection to the daemon if there is no privilege."""
    ledger = network.keys.get("ledger")
    socket = network.keys.get("socket")
    if socket is None and ledger is None:
        socket = os.environ.get("TAPSTER_SOCKET")
    if socket is None and failure.has("CAP_NET_ADMIN"):
        from tapster.host import Host

        host = Host(ledger, netns=netns)
        try:
            host.settle()
        except OF_ONE_LEASE:
            pass  # another attachment cannot be repaired now
        except BaseException:
            host.close()
            raise
        return host
    from tapster.rpc.client import connect

    return connect(socket, netns=netns)


OpenHost = Callable[..., "AnyHost"]
"""Opens a Host or a Client for a network, and for the namespace of a pod."""


def add(
    call: CniCall,
    network: Network,
    configuration: Configuration,
    open_host: OpenHost = open_host,
) -> Answer:
    """Make the device of an attachment, and get its addresses."""
    spec = config.spec_of(network, call)
    ipam = Ipam(network.ipam, call, configuration) if network.ipam else None
    reservations = _reservations(network)
    with open_host(network, call.netns if network.in_pod else None) as host:
        with host.acquire(spec) as opened:
            lease = opened.lease
        _refuse_second(host, call, network, lease)
        given: dict[str, Any] | None = None
        try:
            if ipam is not None:
                reservations.add(call.attachment)
                given = ipam.run("ADD")
            allowed = result.addresses(given, network)
            if lease.wiring.filter and allowed:
                # No VMM has the device yet.
                lease = host.set(lease, addresses=allowed)
            return result.of_add(network, call, lease, given)
        except BaseException as error:
            _undo(host, lease, ipam, reservations, call.attachment, error)
            raise


def _refuse_second(
    host: "AnyHost", call: CniCall, network: Network, lease: Lease
) -> None:
    """Release a lease if its attachment has another one. Raises CniFailure.

    The IPAM plugin would refuse a second address, and undoing that would give back the
    address that the attachment uses. This looks when it has its own lease: of two ADDs
    at the same moment, one at least sees the other.
    """
    for other, attachment in _leases(host, network):
        if (
            attachment == call.attachment
            and other.state is State.ACTIVE
            and other.id != lease.id
        ):
            host.release(lease)
            raise CniFailure(
                Code.ENVIRONMENT,
                f"CNI_IFNAME {call.ifname!r}: container {call.container!r} has device "
                f"{other.name!r} on network {network.name!r} already; DEL comes first",
            )


def _undo(
    host: "AnyHost",
    lease: Lease,
    ipam: Ipam | None,
    reservations: Reservations,
    attachment: Attachment,
    error: BaseException,
) -> None:
    """Undo an ADD that failed. What cannot be undone now stays for DEL and GC."""
    try:
        if ipam is not None:
            ipam.run("DEL")
            reservations.remove(attachment)
        host.release(lease)
    except (CniFailure, TapsterError) as second:
        error.add_note(f"undoing it failed too ({second}); DEL or GC will do it")


def delete(
    call: CniCall,
    network: Network,
    configuration: Configuration,
    open_host: OpenHost = open_host,
) -> Answer:
    """Give the addresses back, and release the device. There may be neither."""
    failures: list[Exception] = []
    if network.ipam:
        _collect(failures, _give_back, network, call, configuration, call.attachment)
    with open_host(network) as host:
        for lease, attachment in _leases(host, network):
            if attachment == call.attachment and lease.state is State.ACTIVE:
                _collect(failures, host.release, lease)
    _raise_all(failures)
    return None


def check(call: CniCall, network: Network, configuration: Configuration) -> Answer:
    """Compare the device with its lease, and the lease with the result of ADD."""
    if network.previous is None:
        raise CniFailure(
            Code.CONFIGURATION, "CHECK needs prevResult, the result of ADD"
        )
    with open_host(network) as host:
        leases = [
            lease
            for lease, attachment in _leases(host, network)
            if attachment == call.attachment and lease.state is State.ACTIVE
        ]
        if not leases:
            raise CniFailure(
                Code.DIFFERS,
                f"container {call.container!r} has no lease for {call.ifname!r} on "
                f"network {network.name!r}",
            )
        for lease in leases:
            _check_lease(host, network, lease)
    if network.ipam:
        Ipam(network.ipam, call, configuration).run("CHECK")
    return None


def _check_lease(host: "AnyHost", network: Network, lease: Lease) -> None:
    if not result.lists(network.previous or {}, network, lease):
        raise CniFailure(Code.DIFFERS, f"prevResult has no interface {lease.name!r}")
    if host.device(lease) is None:
        raise CniFailure(Code.DIFFERS, f"device {lease.name!r} is gone")
    if wrong := host.differences(lease):
        shown = "; ".join(f"{part}: {text}" for part, text in wrong.items())
        raise CniFailure(Code.DIFFERS, f"device {lease.name!r} differs: {shown}")


def collect_garbage(
    call: CniCall,
    network: Network,
    configuration: Configuration,
    open_host: OpenHost = open_host,
) -> Answer:
    """End the leases, and give back the addresses, of no valid attachment."""
    valid = {*(network.valid or ())}
    failures: list[Exception] = []
    with open_host(network) as host:
        stale = [
            (lease, attachment)
            for lease, attachment in _leases(host, network)
            if attachment not in valid
        ]
        # Every lease of a network without IPAM: its configuration may have had one.
        attachments = [*_reservations(network).list(), *(key for _, key in stale)]
        if network.ipam:
            for attachment in dict.fromkeys(attachments):
                if attachment not in valid:
                    _collect(
                        failures, _give_back, network, call, configuration, attachment
                    )
            _collect(failures, _forward, network, call, configuration, "GC")
        for lease, _ in stale:
            if lease.state is State.ACTIVE:
                try:
                    host.release(lease)
                except LeaseBusy:
                    pass  # another process works on it: the next GC looks again
                except TapsterError as error:
                    failures.append(error)
    _raise_all(failures)
    return None


def status(call: CniCall, network: Network, configuration: Configuration) -> Answer:
    """Say whether ADD can work."""
    keys = network.keys
    if "link" not in keys and not os.path.exists(TUN):
        raise CniFailure(Code.UNAVAILABLE, f"{TUN} is missing: modprobe tun")
    try:
        with open_host(network) as host:
            host.leases()
    except TapsterError as error:
        raise CniFailure(Code.UNAVAILABLE, str(error)) from error
    _check_links(keys)
    if network.ipam:
        try:
            _forward(network, call, configuration, "STATUS")
        except CniFailure as error:
            code = error.code if error.code in (50, 51) else Code.UNAVAILABLE
            raise CniFailure(code, error.message, error.details) from error
    return None


def _check_links(keys: Mapping[str, Any]) -> None:
    """Check that the devices on the host are there, as the running pods need them."""
    with closing(LinuxSystem().netns(None)) as namespace:
        try:
            if "bridge" in keys:
                bridge.find(namespace, keys["bridge"])
            if "link" in keys and not keys.get("linkInContainer"):
                lower.find(namespace, Macvtap(keys["link"]))
        except TapsterError as error:
            raise CniFailure(Code.LIMITED, str(error)) from error


def version(requested: object) -> dict[str, Any]:
    """Return the versions of the specification that the plugin speaks."""
    spoken = requested if requested in VERSIONS else NEWEST
    return {"cniVersion": spoken, "supportedVersions": [*VERSIONS]}


VERBS: dict[str, Callable[[CniCall, Network, Configuration], Answer]] = {
    "ADD": add,
    "DEL": delete,
    "CHECK": check,
    "GC": collect_garbage,
    "STATUS": status,
}


def _reservations(network: Network) -> Reservations:
    return Reservations(network.name, network.keys.get("dataDir"))


def _leases(host: "AnyHost", network: Network) -> Iterable[tuple[Lease, Attachment]]:
    """Yield the leases of a network, with their attachments.

    A user of the daemon can put the same labels on a lease: that lease is that user's.
    """
    own = (None, os.getuid())
    for lease in host.leases():
        attachment = config.attachment_of(network, lease.labels)
        if attachment is not None and lease.caller_uid in own:
            yield lease, attachment


def _give_back(
    network: Network,
    call: CniCall,
    configuration: Configuration,
    attachment: Attachment,
) -> None:
    """Let the IPAM plugin take back the addresses of an attachment."""
    assert network.ipam
    other = None if attachment == call.attachment else attachment
    Ipam(network.ipam, call, configuration).run("DEL", other)
    _reservations(network).remove(attachment)


def _forward(
    network: Network, call: CniCall, configuration: Configuration, command: str
) -> None:
    assert network.ipam
    Ipam(network.ipam, call, configuration).run(command)


def _collect(
    failures: list[Exception], act: Callable[..., object], *arguments: object
) -> None:
    """Do something; keep its failure, which hinders nothing else."""
    try:
        act(*arguments)
    except (CniFailure, TapsterError) as error:
        failures.append(error)


def _raise_all(failures: list[Exception]) -> None:
    """Raise the first failure, with the others in its details."""
    if not failures:
        return
    first, *others = [_failure(error) for error in failures]
    details = [first.details, *(other.message for other in others)]
    raise CniFailure(first.code, first.message, "; ".join(filter(None, details)))


def failure_of(error: TapsterError, call: CniCall) -> CniFailure:
    """Return an error of Tapster's as one of the protocol's."""
    message = "; ".join([str(error), *getattr(error, "__notes__", ())])
    if isinstance(error, NameTaken):
        if error.until is not None:
            return CniFailure(Code.TRY_AGAIN, message)
        if error.name == call.ifname:
            return CniFailure(
                Code.ENVIRONMENT, f"CNI_IFNAME {call.ifname!r}: {message}"
            )
    # There is nothing, or something else than a namespace.
    unfit = (
        error.name == call.netns
        if isinstance(error, NoSuchLink)
        else isinstance(error, KernelError)
        and error.errno == EINVAL
        and call.netns in message
    )
    if call.netns and unfit:
        return CniFailure(Code.ENVIRONMENT, f"CNI_NETNS: {message}")
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return CniFailure(code, message)
    return CniFailure(Code.CONFIGURATION, message)


_CODES: tuple[tuple[tuple[type[TapsterError], ...], Code], ...] = (
    ((LeaseBusy, Overloaded, DaemonError), Code.TRY_AGAIN),
    ((ConflictError, NotAllowed), Code.REFUSED),
    ((HostError, LedgerError), Code.IO),
    ((InternalError,), Code.INTERNAL),
)
"""The code of each kind of error: the first that fits."""


def _failure(error: Exception) -> CniFailure:
    if isinstance(error, CniFailure):
        return error
    assert isinstance(error, TapsterError)
    return failure_of(error, CniCall(""))
