# SPDX-License-Identifier: Apache-2.0
"""What Tapster asks of the kernel, in its own verbs.

`System` is the machine, `Kernel` one network namespace of it. Failures are
KernelError with the kernel's errno, or MissingCapability. Every verb that
changes a device names it by ifindex; none takes a name, except to create.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from tapster.model import Link, Mode, Netns, Process


class Vlans(NamedTuple):
    """The VLANs that a bridge port is in."""

    native: int | None
    """Of untagged frames, both ways."""
    tagged: tuple[int, ...]
    """In rising order."""


class LinkChange(NamedTuple):
    """A change of one device; what is None stays as it is."""

    ifindex: int
    mac: str | None = None
    mtu: int | None = None
    alias: str | None = None
    no_ipv6: bool | None = None
    """True: the device makes itself no IPv6 link-local address."""
    master: int | None = None
    """The ifindex of a bridge, or 0 for none. EOPNOTSUPP: it is a port of Open
    vSwitch's kernel part, which lets it go only by itself."""
    isolated: bool | None = None
    """Of a bridge port: it reaches only the ports that are not isolated."""
    learning: bool | None = None
    """Of a bridge port: False if the bridge learns no MAC there and floods nothing
    to it."""
    neighbour: str | None = None
    """A MAC that the bridge is to know behind this port of it, for good."""
    vlans: Vlans | None = None
    """Of a bridge port: these and no others."""
    up: bool | None = None


HERE = -1
"""In place of a namespace's number: the namespace itself."""


class Namespace(Protocol):
    """One network namespace."""

    @property
    def netns(self) -> Netns: ...

    def ifindex(self, name: str) -> int:
        """The ifindex of the device that has `name` as name or altname, or 0."""

    def link(self, ifindex: int) -> Link | None:
        """The device with this ifindex; None if there is none, as for 0."""

    def named(self, name: str) -> Link | None:
        """The device that has `name` as name or altname."""

    def links(self) -> list[Link]:
        """Every device."""

    def ports(self, bridge: Link) -> int:
        """How many ports a bridge has."""

    def neighbours(self, ifindex: int) -> set[str]:
        """The MACs that a bridge knows for good behind this port of it."""

    def vlans(self, ifindex: int) -> Vlans | None:
        """The VLANs of a bridge port; None if it has none, or is none."""

    def inside(self) -> AbstractContextManager[None]:
        """For the time of a block the calling thread is in this namespace.

        It is for libraries that open sockets of their own.
        """

    def nft(self, commands: str) -> None:
        """Let nftables do these commands of nft(8), all or none.

        Devices are given by ifindex: no name means one. Raises HostError with what
        nft says, and ServiceUnavailable if libnftables is not installed.
        """

    def nft_list(self, what: str) -> list[dict[str, Any]]:
        """The objects that `nft --json list WHAT` shows, devices by ifindex."""

    def guard(self, ifindex: int) -> None:
        """Let the guard drop what nftables cannot judge of a device's frames.

        See kernel/guard.py. KernelError: the kernel cannot load the program.
        """

    def unguard(self, ifindex: int) -> None:
        """Remove the guard from a device. There may be none."""

    def is_guarded(self, ifindex: int) -> bool:
        """Say whether the guard runs at a device before any other filter."""

    def create_tap(
        self,
        name: str,
        ifindex: int,
        *,
        queues: int,
        vnet_hdr: bool,
        uid: int | None,
        gid: int | None,
    ) -> tuple[int, ...]:
        """Make a persistent tap, exclusively, down; return a descriptor a queue.

        The caller closes the descriptors, which are close-on-exec. EBUSY: a
        device has the name or the ifindex. On failure no device stays.
        """

    def open_tap(
        self, name: str, ifindex: int, *, multi_queue: bool, vnet_hdr: bool
    ) -> int:
        """Open a tap of ours once more; the caller closes the descriptor.

        The flags are those it was made with. EBUSY: it has one queue, and somebody
        has it open. EBADFD: another device has this name.
        """

    def create_macvtap(
        self,
        name: str,
        ifindex: int,
        *,
        lower: int,
        mode: Mode,
        mac: str | None,
        mtu: int | None,
        queues: int,
    ) -> None:
        """Make a macvtap, exclusively, down. EEXIST or EBUSY as for a tap."""

    def open_macvtap(
        self, ifindex: int, *, queues: int, vnet_hdr: bool
    ) -> tuple[int, ...]:
        """Open a macvtap once for each queue; the caller closes the descriptors."""

    def set_links(self, changes: Sequence[LinkChange]) -> None:
        """Make all changes, in order, up to the first that fails."""

    def delete_links(self, ifindexes: Sequence[int]) -> None:
        """Delete devices, several at a time as one group; absent ones are fine.

        The kernel holds the rtnl lock for about 0.5 ms a device.
        """

    def number(self, other: "Namespace") -> int:
        """The number by which this namespace knows another, from now on.

        Watch calls that namespace so. Of the namespace itself it is HERE.
        """

    def changed_links(self) -> set[int] | None:
        """The ifindexes of devices that changed since the last call.

        None for "any may have": at the first call, and when too much happened.
        """

    def forget_changes(self) -> None:
        """Let the next `changed_links` be as the first."""

    def close(self) -> None: ...


class System(Protocol):
    """The machine."""

    @property
    def boot_id(self) -> str: ...

    def boottime(self) -> float:
        """As in `tapster.ledger.Clock`."""

    def wallclock(self) -> float:
        """As in `tapster.ledger.Clock`."""

    def netns(self, where: str | None) -> Namespace:
        """The namespace of this name or path; None is the caller's own.

        Raises NoSuchLink if there is none.
        """

    def find(self, netns: Netns) -> Namespace | None:
        """The namespace with this cookie, or None if no way leads to it.

        Raises MissingCapability if that cannot be told.
        """

    def process(self, pid: int) -> Process | None:
        """The process that has `pid` now."""

    def ended(self, process: Process) -> bool:
        """Whether the process is surely over.

        False also if it counts in a pid namespace that cannot be seen from here.
        """


class Managers(Protocol):
    """Which managers live: see lock.py."""

    def enter(self, manager: int) -> None:
        """Be this manager until `leave`, or until this process dies."""

    def alive(self, manager: int) -> bool:
        """Whether this manager lives."""

    def leave(self) -> None: ...
