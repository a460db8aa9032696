# SPDX-License-Identifier: Apache-2.0
"""The port: what Tapster asks of the kernel, in its own verbs.

`System` is the host. `Namespace` is one network namespace of it. `linux.py` implements
both with system calls, `tapster.testing` in memory.

Contract of every verb:

- Errors. If the kernel refuses, the verb raises KernelError with the kernel's errno. If
  the caller lacks a capability, it raises MissingCapability, which names it.
- Identity. A verb that changes a device takes its interface index. A name is only what
  a new device, or one that is renamed, will be called.
- Descriptors. The caller closes each descriptor that a verb returns. A verb that raises
  has closed the descriptors that it opened. All are close-on-exec.
- Threads. One thread at a time uses a namespace. A verb that enters another network
  namespace returns the thread to its own before it ends, also when Ctrl-C comes.
"""

from errno import E2BIG, EBADFD, EBUSY

from tapster.errors import KernelError
from tapster.light import (
    AbstractContextManager,
    Any,
    Callable,
    Collection,
    Generator,
    NamedTuple,
    Protocol,
    Sequence,
)
from tapster.model import Life, Link, Mode, Netns, Process


class Vlans(NamedTuple):
    """The VLANs of a bridge port."""

    native: int | None
    """The VLAN of untagged frames, in both directions (PVID and untagged)."""
    tagged: tuple[int, ...]
    """The VLANs of tagged frames, in rising order."""


class NewMacvtap(NamedTuple):
    """A macvtap to create."""

    name: str
    ifindex: int
    lower: int
    """The interface index of the lower device."""
    mode: Mode
    mac: str | None = None
    """None: the kernel chooses; in mode passthru it takes the lower device's."""
    mtu: int | None = None
    """None: the lower device's."""
    queues: int = 1


class LinkChange(NamedTuple):
    """A change of one device. A field that is None leaves its property as it is."""

    ifindex: int
    mac: str | None = None
    mtu: int | None = None
    mode: Mode | None = None
    """Of a macvtap. The kernel refuses changes to and from passthru (EINVAL)."""
    alias: str | None = None
    no_ipv6: bool | None = None
    """True: the kernel gives the device no IPv6 link-local address
    (IN6_ADDR_GEN_MODE_NONE in include/uapi/linux/if_link.h)."""
    disable_ipv6: bool | None = None
    """True: the host has no IPv6 on the device, where /proc/sys can be written. False:
    as on a new device (disable_ipv6 in Documentation/networking/ip-sysctl.rst)."""
    no_ipv4: bool | None = None
    """True: the host's IPv4 answers no ARP on the device, and accepts packets only from
    addresses that it would reach through the device. False: the kernel's defaults
    (rp_filter and arp_ignore in Documentation/networking/ip-sysctl.rst)."""
    master: int | None = None
    """The interface index of a bridge, or 0 for none. The error EOPNOTSUPP means that
    the device is a port of Open vSwitch's kernel module, which alone can remove it."""
    isolated: bool | None = None
    """Of a bridge port. True: it exchanges frames only with ports that are not
    isolated (bridge(8))."""
    learning: bool | None = None
    """Of a bridge port. False: the bridge learns no MAC there and floods no unknown
    unicast to it (`learning` and `flood` in bridge(8))."""
    root_guard: bool | None = None
    """Of a bridge port. True: the port cannot lead to the root of the spanning tree
    (`root_block` in bridge(8))."""
    bpdu_guard: bool | None = None
    """Of a bridge port. True: a spanning tree frame disables the port (`guard`)."""
    neighbour: str | None = None
    """Of a bridge port. A MAC for a static, sticky entry in the bridge's forwarding
    table. The error EEXIST means that another port has a static entry for this MAC."""
    vlans: Vlans | None = None
    """Of a bridge port. The port will be in these VLANs and in no others."""
    up: bool | None = None


class GuardLimit(NamedTuple):
    """A rate that a guarded device may not exceed, as counted on the wire."""

    unit: str
    """"kilobytes" (1,000 bytes) or "frames"."""
    rate: int
    """Units a second: at most 2^31 - 1."""
    burst: int
    """Bytes or frames that may come at once."""


class Redirection(NamedTuple):
    """What comes in at a device goes out of another one."""

    to: int
    """The interface index of the other device; 0 if that device is gone."""
    stamp: bytes
    own_qdisc: bool
    """The qdisc was made for the redirection, and goes with it if it has no other
    filter."""


INTRUSIONS = 10
"""How often to make a tap that another process opens before the tap has an owner."""
HERE = -1
"""The number that `Namespace.number` returns for the namespace itself."""
ALL, REDIRECTED = 0, -1
"""In `WatchReport.rules`: every device of a namespace; every device that takes the
place of another, which may have lost its redirection there."""


class NftRule(NamedTuple):
    """A rule of nftables, as far as it can be told apart from others."""

    chain: str
    comment: str


class NftDeviceChain(NamedTuple):
    """A chain of nftables at the hooks of some devices, which it knows by name."""

    place: str
    """Its family, table and name."""
    devices: tuple[str, ...]
    prefixes: tuple[str, ...]
    """It is also at each device whose name begins with one of these."""
    drops: bool
    """Its policy is to drop."""


class Namespace(Protocol):
    """One network namespace. It stays in existence for as long as this object is open.

    The caller closes it.
    """

    @property
    def netns(self) -> Netns:
        """The identity of the namespace: boot id, cookie, path and pid namespace."""

    # Reading

    def ifindex(self, name: str) -> int:
        """Return the index of the device with `name` as name or altname, or 0.

        RTM_GETLINK with IFLA_IFNAME. SIOCGIFINDEX would load a kernel module of that
        name (dev_load() in net/core/dev_ioctl.c) and cut a long name.
        """

    def link(self, ifindex: int) -> Link | None:
        """Return the device with this index, or None. No device has index 0."""

    def links_with(self, ifindexes: Collection[int]) -> dict[int, Link]:
        """Return those of some devices that exist, by index: faster than one by one."""

    def named(self, name: str) -> Link | None:
        """Return the device that has `name` as its name or altname, or None."""

    def links(self) -> list[Link]:
        """Return every device.

        If devices come and go during every attempt, one of these may be missing, or
        may be in the list although it is gone (NLM_F_DUMP_INTR, netlink(7)).
        """

    def names(self) -> dict[str, int]:
        """Return the index of every device, by its name: faster than `links`.

        Altnames are not in it. It may be incomplete, as `links` may be.
        """

    def ports(self, bridge: Link) -> int:
        """Return how many ports a bridge has: at most 1,023 (BR_MAX_PORTS).

        BRCTL_GET_PORT_LIST in net/bridge/br_ioctl.c. `bridge` must be a bridge.
        """

    def neighbours(self, ifindex: int) -> set[str]:
        """Return the MACs with a static, sticky entry, as `bridge fdb show dev` does.

        The port's own MAC, which is permanent, is not among them.
        """

    def static_entries(self, bridge: int) -> dict[str, set[int]]:
        """Return the ifindexes for which a bridge has static entries, by MAC.

        These include the ports' own MACs, and the bridge's.
        """

    def vlans(self, ifindex: int) -> Vlans | None:
        """Return the VLANs of a bridge port; None if it has none or is no port."""

    # Creating and opening

    def nft_rules(self, table: str) -> list[NftRule]:
        """List the rules of a table of nftables of family bridge, without elements.

        [] if there is no such table, or if it is dormant.
        """

    def nft_device_chains(self) -> list[NftDeviceChain]:
        """List the chains of nftables that judge frames of single devices."""

    def nft_example(self, commands: str, what: str) -> list[dict[str, Any]]:
        """Return what nft_list would return after these commands. Change nothing."""

    def guard(self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]) -> None:
        """Let the guard drop a device's frames that nftables cannot judge or count.

        See kernel/guard.py. KernelError means that the kernel cannot load the program.
        """

    def unguard(self, ifindex: int) -> None:
        """Remove the guard from a device. There may be none."""

    def is_guarded(
        self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]
    ) -> bool:
        """Say whether the guard runs at a device before any other filter."""

    def redirect(self, ifindex: int, to: int, stamp: bytes) -> None:
        """Redirect what comes in at a device out of the device `to` (tc-mirred(8)).

        `stamp` has at most 15 bytes. EEXIST: the device is redirected already. ENOENT:
        the kernel cannot redirect.
        """

    def redirection(self, ifindex: int) -> Redirection | None:
        """Return the redirection of a device; None if it has none, or is gone."""

    def unredirect(self, ifindex: int, stamp: bytes) -> None:
        """Delete the redirection of a device if it carries this stamp."""

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
        """Create a persistent tap, exclusively and down. Return a descriptor a queue.

        EBUSY: another device has the name or the index (TUNSETIFF with IFF_TUN_EXCL).
        Or other processes attach queues each time, before the tap has an owner. No such
        queue is left. If this raises, there is no tap.
        """

    def open_tap(
        self, name: str, ifindex: int, *, multi_queue: bool, vnet_hdr: bool
    ) -> int:
        """Open a tap again. Return a descriptor of a new queue.

        Pass the flags with which it was created. EBUSY: the tap has one queue, which
        is open. EBADFD: another device has the name, or none.

        The kernel opens a tap by name. If a foreign tap gets the name at that moment,
        it is closed at once. Nothing else is done to it.
        """

    def is_held(self, name: str, ifindex: int, *, vnet_hdr: bool) -> bool:
        """Return whether a process has a tap of one queue open.

        The tap is opened for that, and closed: the carrier, which `Link.open` tells,
        may have been switched off by the VM or a person. False if it is gone.
        """

    def held_taps(self) -> set[int]:
        """Return the ifindexes of taps that a process has open, whatever their carrier.

        Only processes that the caller may look into count. All are looked at.
        """

    def give_tap(
        self,
        name: str,
        ifindex: int,
        *,
        multi_queue: bool,
        vnet_hdr: bool,
        uid: int,
        gid: int | None,
        pids: Collection[int] = (),
    ) -> bool:
        """Give a tap another owner, and another group unless None.

        The tap is opened for that, as `open_tap` does. If that is impossible, because
        a process has it open, this is done as `restore_tap` does. False if the tap
        has another name now, or if no process that has it open may be looked into.
        """

    def restore_tap(
        self,
        ifindex: int,
        *,
        uid: int | None,
        gid: int | None,
        pids: Collection[int] = (),
    ) -> bool:
        """Give a tap its owner and group, unless None, and make it persistent.

        This is done through a copy of a descriptor that a process has open
        (pidfd_getfd(2)). To open another descriptor would take a queue from the VM, or
        would fail. `pids` are the processes that are likely to have one; a caller that
        is not root may look into no others. False if there is no such process.
        """

    def create_macvtap(
        self, device: NewMacvtap, *, beneath: "Namespace | None" = None
    ) -> None:
        """Create a macvtap, exclusively and down.

        `beneath` is the namespace of the lower device; None: this namespace.
        EEXIST: another device has the name or the index. EBUSY: the lower device is a
        port of another device. EINVAL: the lower device can have no macvtap, or a
        passthru macvtap excludes another. If this raises, there is no macvtap.
        """

    def open_macvtap(
        self, ifindex: int, *, queues: int, vnet_hdr: bool
    ) -> tuple[int, ...]:
        """Open a macvtap. Return a descriptor for each queue.

        ENOENT: there is no such macvtap. EBADFD: it was replaced while it was opened.
        """

    def macvtap_holders(self, ifindexes: Collection[int]) -> dict[int, int]:
        """Return, by ifindex, the pid of a process that has the macvtap open.

        The kernel does not say whether a macvtap is open. A process that the caller may
        not look into is not found.
        """

    def announce(self, ifindex: int, mac: str, *, pids: Collection[int] = ()) -> bool:
        """Send a frame from the MAC of the guest, so that switches learn where it is.

        The frame is a RARP request, as QEMU sends it for a VM that has moved. It is
        written to a copy of a descriptor of the tap or macvtap that a process has open
        (pidfd_getfd(2)): so it takes the way of the guest's own frames. `pids` are as
        for `restore_tap`. Return whether the frame was sent. Never wait for the device.
        """

    # Changing and deleting

    def set_links(self, changes: Sequence[LinkChange]) -> None:
        """Apply the changes in order. Stop, and raise, at the first that fails.

        What was applied before stays.
        """

    def rename_link(self, ifindex: int, name: str) -> None:
        """Give a device another name.

        EEXIST: another device has the name. EBUSY: the device is up, and the kernel is
        older than 6.2 (dev_change_name() in net/core/dev.c).
        """

    def delete_links(self, ifindexes: Sequence[int]) -> set[int]:
        """Delete devices: several at a time as one group. Return those not found.

        The kernel holds the rtnl lock for about 0.5 ms a device. A device that another
        program takes out of the group at that moment stays.
        """

    # nftables

    def nft(self, commands: str) -> None:
        """Run commands in the language of nft(8), as one transaction.

        Devices are given by index: no name is looked up. Raises NftRefused with the
        message of nft, and ServiceUnavailable if libnftables is not installed.
        """

    def nft_list(self, what: str) -> list[dict[str, Any]]:
        """Return the objects that `nft --json list WHAT` prints, devices by index."""

    # Namespaces

    def inside(self) -> AbstractContextManager[None]:
        """Run a block with the calling thread in this namespace.

        This is for libraries that open sockets of their own. Signals wait until the
        block has ended (setns(2) is undone whatever happens), so it must be short.
        """

    def number(self, other: "Namespace") -> int:
        """Return the number by which this namespace knows another (a nsid).

        It is assigned if there is none (RTM_NEWNSID, ip-netns(8)). It keeps nothing
        open. HERE is the number of the namespace itself.
        """

    # Changes by others

    def changed_links(self) -> set[int] | None:
        """Return the indexes of the devices that changed since the last call.

        None: any device may have changed. It is returned by the first call, and if
        messages of the kernel were lost (ENOBUFS, netlink(7)).
        """

    def forget_changes(self) -> None:
        """Let the next call of `changed_links` return None."""

    def close(self) -> None:
        """Close the namespace's descriptors and sockets. Closing twice is harmless."""


def give_or_restore(give: Callable[[], None], restore: Callable[[], bool]) -> bool:
    """Do what `Namespace.give_tap` says: open the tap for that, or look for a holder.

    False if the tap has another name or is gone.
    """
    try:
        give()
    except KernelError as error:
        if error.errno == EBADFD:
            return False
        if error.errno not in (EBUSY, E2BIG):
            raise
    else:
        return True
    # A process has it open, and as many times as the kernel allows.
    return restore()


class WatchReport(NamedTuple):
    """What a `Watch` has seen since it was last asked."""

    links: dict[int, dict[int, Callable[[], Link] | None]]
    """Each link that changed, by the number of its namespace and by its ifindex: a
    function that decodes the last report of the link, or None if the link is gone."""
    ended: set[int]
    """The numbers of the namespaces that have ended. The kernel may have given such a
    number to another namespace since."""
    rules: dict[int, set[int]]
    """The ifindexes of devices from which rules of nftables or traffic control were
    taken, by the number of their namespace. `ALL` stands for every device, and
    `REDIRECTED` for every device that takes the place of another."""
    entries: dict[int, set[int]]
    """The ifindexes of ports for which their bridges lost a static, sticky entry."""


class Watch(Protocol):
    """Reports the links, or the rules, that change."""

    def fileno(self) -> int:
        """Return the descriptor to wait for: it is readable when there are reports."""

    def changes(self) -> WatchReport | None:
        """Return what has changed since the last call; None if reports were lost.

        Then any link may have changed.
        """

    def close(self) -> None: ...


class StandIns(NamedTuple):
    """What a host in memory has in place of what a Host uses by default."""

    ledger: str
    """The path of a ledger."""
    backends: Callable[..., Sequence[Any]]
    """Makes backends, as `tapster.backends.make` does."""
    start_reaper: Callable[[str], None]


class System(Protocol):
    """The host."""

    @property
    def stand_ins(self) -> StandIns | None:
        """The stand-ins of a host in memory; None on a real host."""

    @property
    def boot_id(self) -> str:
        """The id of this boot (/proc/sys/kernel/random/boot_id, random(4))."""

    def boottime(self) -> float:
        """Return CLOCK_BOOTTIME, as in `tapster.ledger.Clock`.

        It is that of the initial time namespace, wherever the caller is.
        """

    def wallclock(self) -> float:
        """Return the wall clock, as in `tapster.ledger.Clock`."""

    def udev_interferes(self) -> bool:
        """Return whether udev may give a new device another MAC; see udev.py."""

    def netns(self, where: str | None) -> Namespace:
        """Open the namespace with this name or path. None: the caller's own.

        The caller closes it. Raises NoSuchLink if there is none.
        """

    def find(self, netns: Netns) -> Namespace | None:
        """Open the namespace with this cookie; None if it has ended.

        It has ended if neither its path, nor a name in /run/netns, nor a process, an
        open tap, a descriptor or a mount leads to it. Raises MissingCapability or
        HostError if that cannot be determined. The caller closes it.
        """

    def namespaces(self) -> Generator[Namespace]:
        """Yield every namespace that is in use, and close it after.

        A namespace may come several times. Raises MissingCapability or HostError, in
        the end, if there may be others.
        """

    def ended_namespaces(self, netnses: Collection[Netns]) -> set[Netns]:
        """Return those of these namespaces that have ended for certain.

        One look serves for all. `find` tells of the others, one by one.
        """

    def open_vhost(self, count: int) -> tuple[int, ...]:
        """Open /dev/vhost-net so many times; () if the host does not have it.

        The caller closes the descriptors, which are close-on-exec.
        """

    def process(self, pid: int, *, ended: bool = False) -> Process | None:
        """Return the identity of the process that has `pid` now, or None.

        With `ended`, also that of a zombie: its parent has not waited for it yet.
        """

    def life(self, process: Process) -> Life:
        """Return whether a process lives, has ended, or that this cannot be told.

        A zombie has ended. The answer does not depend on the process that asks, apart
        from "cannot tell". It raises no error.
        """

    def open_process(self, process: Process) -> int | None:
        """Return a descriptor that is readable once the process has ended.

        The caller closes it. None if the process has ended already. Raises KernelError
        if that cannot be told.
        """

    def watch(self, *, first: int, elsewhere: bool = False) -> Watch:
        """Watch the links of the caller's namespace that have an ifindex from `first`.

        With `elsewhere`, watch those of the namespaces that have a number there (see
        `Namespace.number`), and not its own. Raises MissingCapability without
        CAP_NET_BROADCAST.
        """

    def watch_rules(self, *, first: int, elsewhere: bool = False) -> Sequence[Watch]:
        """Watch what is deleted of the rules of nftables and of traffic control.

        As `watch`. What this process deletes in nftables is not reported.
        """


class Managers(Protocol):
    """Which managers live: `lock.py` implements it."""

    def enter(self, manager: int) -> None:
        """Be this manager until `leave`, or until this process dies."""

    def alive(self, manager: int) -> bool:
        """Return whether this manager lives."""

    def is_reaper_awake(self) -> bool:
        """Return whether a reaper runs, and is neither stopped nor frozen."""

    def leave(self) -> None:
        """Be no manager any more."""
