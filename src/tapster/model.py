# SPDX-License-Identifier: Apache-2.0
"""Values: requests, leases, identities, and the checks of requests. Pure.

The values are plain immutable records. They are named tuples because the command
sits in a VM's start path: importing `dataclasses` costs as much time as acquiring
ten devices.
"""

from tapster import names
from tapster.checks import check_record, check_value, shown
from tapster.errors import RequestError
from tapster.light import Any, Iterable, NamedTuple, StrEnum, TypedDict, remembered

DEFAULT_TEMPLATE = "vnet%d"
DEFAULT_FIN_WAIT = 5.0
MAX_OWNER = 255
MAX_LABELS = 32
"""Labels of a lease; and its external ids in Open vSwitch."""
MAX_LABEL_BYTES = 1024
"""Of all labels of a lease. The history keeps them when the lease has ended, and a
search for a label reads those of all entries."""
MAX_ADDRESSES = 64
"""Addresses and networks that a filter allows. Each is an element of a table in which
the elements of all leases are."""
MAX_QUEUES = 256
"""`MAX_TAP_QUEUES` in the kernel's include/linux/if_tap.h."""


class Kind(StrEnum):
    """The kinds of device."""

    TAP = "tap"
    MACVTAP = "macvtap"


class State(StrEnum):
    """The states of a lease. After FIN WAIT only a history entry remains."""

    RESERVED = "reserved"
    ACTIVE = "active"
    FIN_WAIT = "fin_wait"


class Naming(StrEnum):
    """How the number in a template is chosen."""

    LOWEST = "lowest"
    NEXT = "next"
    STABLE = "stable"


class Mode(StrEnum):
    """The modes of a macvtap, as in ip-link(8)."""

    BRIDGE = "bridge"
    VEPA = "vepa"
    PRIVATE = "private"
    PASSTHRU = "passthru"


class Rate(NamedTuple):
    """A limit of traffic in one direction, in the units of libvirt's `<bandwidth>`."""

    average: int
    """Kilobytes (1,000 bytes) a second, sustained."""
    peak: int | None = None
    """Kilobytes a second during a burst; None: no limit during a burst."""
    burst: int | None = None
    """KiB (1,024 bytes) that may pass at `peak`; None: chosen from `average`."""


class Wiring(NamedTuple):
    """What a device is connected to, and how. `set` can change it during a lease.

    At most one of `bridge` (a Linux bridge) and `ovs` (an Open vSwitch bridge) is
    given.
    """

    bridge: str | None = None
    """The Linux bridge that the device is a port of."""
    ovs: str | None = None
    """The bridge of Open vSwitch that the device is a port of."""
    isolated: bool = False
    """The device exchanges frames only with ports that are not isolated."""
    learning: bool = True
    """False: the bridge learns no MAC at this port and floods no frames to it. It has a
    static entry for the guest's MAC. With `filter` the bridge never learns there."""
    root_guard: bool = False
    """Spanning tree: the port cannot lead to the root bridge."""
    bpdu_guard: bool = False
    """Spanning tree: a frame of it from the guest disables the port."""
    vlan: int | None = None
    """The VLAN of untagged frames, 1 to 4094; without `trunks`, the only VLAN of the
    port."""
    trunks: tuple[int, ...] = ()
    """The VLANs of tagged frames, each 1 to 4094."""
    external_ids: tuple[tuple[str, str], ...] = ()
    """`external_ids` of the Interface row in Open vSwitch, such as iface-id."""
    filter: bool = False
    """True: the guest can send only from its MAC, and can be neither a DHCP server nor
    an IPv6 router."""
    addresses: tuple[str, ...] = ()
    """With `filter`: the IPv4 and IPv6 addresses that the guest can use; (): all."""
    guard: bool = True
    """With `filter`: a BPF program drops what nftables cannot judge. False gives up
    this protection, for kernels that cannot load the program."""
    inbound: Rate | None = None
    """The rate of what the guest receives."""
    outbound: Rate | None = None
    """The rate of what the guest sends."""
    outbound_pps: int | None = None
    """How many frames a second the guest may send."""
    redirect: str | None = None
    """A device in the namespace of the tap, such as the veth of a pod, whose place the
    tap takes: frames go from each to the other."""
    mtu: int | None = None
    """The MTU in bytes, 68 to 65521; None: that of the bridge, or of the lower
    device."""
    up: bool = True
    """False: the guest's cable is unplugged."""
    standby: bool = False
    """True: the device is down and connected to nothing, until the wiring is taken
    into use. The target host of a migration prepares a device in this way: the VM
    still runs elsewhere, and frames for it must not come here."""

    @property
    def in_force(self) -> "Wiring":
        """What the device is connected to now: nothing, while it is on standby."""
        if not self.standby:
            return self
        return Wiring(mtu=self.mtu, up=False, standby=True)


class Changes(TypedDict, total=False):
    """Fields of `Wiring` to change, as keyword arguments of `set`."""

    bridge: str | None
    ovs: str | None
    isolated: bool
    learning: bool
    vlan: int | None
    trunks: tuple[int, ...]
    external_ids: tuple[tuple[str, str], ...]
    filter: bool
    guard: bool
    root_guard: bool
    bpdu_guard: bool
    outbound_pps: int | None
    redirect: str | None
    addresses: tuple[str, ...]
    inbound: Rate | None
    outbound: Rate | None
    mtu: int | None
    up: bool
    standby: bool


class Vm(NamedTuple):
    """The VM of a device, as the hosts of a fleet know it."""

    id: str
    """Identifies the VM among all VMs of the fleet, such as its UUID."""
    incoming: str | None = None
    """The epoch by which the VM still runs on another host."""
    takeover: bool = False
    """The user knows that the silent host that ran the VM does not run it now."""


class Tap(NamedTuple):
    """A request for a tap.

    `Wiring` explains the fields that connect the tap. The user `uid`, or the group
    `gid`, may open the tap by its name; if both are given, a process must be of both.
    If neither is given, only the user who acquires the tap may.
    """

    bridge: str | None = None
    name: str = DEFAULT_TEMPLATE
    """A template, such as vnet%d, or a plain name."""
    naming: Naming = Naming.LOWEST
    """How the number in a template is picked."""
    key: str | None = None
    """The text from which `stable` naming derives the number and the MAC."""
    owner: str = ""
    """Free text that says whose the lease is, such as a VM's name."""
    mac: str | None = None
    """The MAC of the guest; None: a random one."""
    mtu: int | None = None
    queues: int = 1
    """How many queues the device has, 1 to 256, and so how many descriptors."""
    vnet_hdr: bool = True
    """A virtio header precedes each frame: the guest can leave checksums and
    segmentation to the host."""
    uid: int | None = None
    """The user who may open the tap by its name."""
    gid: int | None = None
    """The group that may open the tap by its name."""
    fin_wait: float = DEFAULT_FIN_WAIT
    """Seconds, 0 to 86400, for which the name stays reserved after the release."""
    reclaim: bool = False
    """Take a plain or stable name from a lease of the same owner that is in FIN WAIT.
    Only the owner knows that its own late cleanup by name is over."""
    labels: tuple[tuple[str, str], ...] = ()
    """Text for people and programs, as pairs of key and value."""
    ovs: str | None = None
    isolated: bool = False
    learning: bool = True
    root_guard: bool = False
    bpdu_guard: bool = False
    vlan: int | None = None
    trunks: tuple[int, ...] = ()
    external_ids: tuple[tuple[str, str], ...] = ()
    filter: bool = False
    addresses: tuple[str, ...] = ()
    guard: bool = True
    inbound: Rate | None = None
    outbound: Rate | None = None
    outbound_pps: int | None = None
    redirect: str | None = None
    up: bool = True
    standby: bool = False
    vm: Vm | None = None
    """The VM, as the hosts of a fleet know it."""

    @property
    def kind(self) -> Kind:
        return Kind.TAP

    @property
    def wiring(self) -> Wiring:
        return Wiring._make(map(self.__getitem__, _WIRING_OF_TAP))


_WIRING_OF_TAP = tuple(map(Tap._fields.index, Wiring._fields))


class Macvtap(NamedTuple):
    """A request for a macvtap on the lower device `lower`.

    In mode `passthru` the guest has the MAC of the lower device, and the lower device
    can carry no other macvtap. `Tap` and `Wiring` explain the other fields.
    """

    lower: str
    """The device that the macvtap sits on."""
    mode: Mode = Mode.BRIDGE
    """How the macvtaps of one lower device exchange frames: see ip-link(8)."""
    name: str = DEFAULT_TEMPLATE
    naming: Naming = Naming.LOWEST
    key: str | None = None
    owner: str = ""
    mac: str | None = None
    mtu: int | None = None
    queues: int = 1
    vnet_hdr: bool = True
    fin_wait: float = DEFAULT_FIN_WAIT
    reclaim: bool = False
    standby: bool = False
    vm: Vm | None = None
    labels: tuple[tuple[str, str], ...] = ()
    lower_netns: str | None = None
    """The network namespace of the lower device: a name, a path, or "" for the
    namespace that Tapster runs in; None: that of the macvtap."""

    @property
    def kind(self) -> Kind:
        return Kind.MACVTAP

    @property
    def wiring(self) -> Wiring:
        return Wiring(mtu=self.mtu, standby=self.standby)


Spec = Tap | Macvtap


class Process(NamedTuple):
    """The identity of a process: no other process has it, even with the same pid."""

    pid: int
    start: int
    """The start in clock ticks since boot: field 22 of /proc/PID/stat, as it is outside
    all time namespaces."""
    pidns: int
    """The inode of the pid namespace that `pid` belongs to."""


class Life(StrEnum):
    """Whether a process lives, as far as the process that asks can tell."""

    LIVES = "lives"
    ENDED = "ended"
    CANNOT_TELL = "cannot tell"


class Netns(NamedTuple):
    """The identity of a network namespace."""

    boot: str
    """The boot id: cookies are unique within a boot."""
    cookie: int
    """`SO_NETNS_COOKIE`."""
    path: str
    """A path of the namespace, or ""."""
    pidns: int = 0
    """The inode of the pid namespace in which the namespace was found. Only processes
    of that pid namespace can tell that no process is in it any more."""


def place_of(netns: Netns) -> str:
    """Return the words that say in a message where a namespace is; "" without a
    path."""
    name = netns.path.removeprefix("/run/netns/")
    return f" in network namespace {name!r}" if name else ""


class Lease(NamedTuple):
    """The recorded right of one owner to one device."""

    id: str
    """16 hexadecimal digits."""
    name: str
    """The name of the device."""
    ifindex: int
    """The interface index of the device."""
    kind: Kind
    """Whether the device is a tap or a macvtap."""
    state: State
    """What the lease is at: its device is being made, in use, or in FIN WAIT."""
    owner: str
    """As in the request."""
    mac: str
    """The MAC of the guest. The tap itself has another first byte: see `host_mac`."""
    lower: str | None
    """The lower device of a macvtap."""
    mode: Mode | None
    """The mode of a macvtap."""
    queues: int
    """As in the request."""
    wiring: Wiring
    """What the device is connected to."""
    backends: tuple[str, ...]
    """The names of the backends that may have something of the lease."""
    netns: Netns
    """The network namespace in which the device was made."""
    created: float
    """Wall clock, seconds since the epoch."""
    fin_wait: float
    """How long FIN WAIT lasts, in seconds."""
    deadline: float | None
    """`CLOCK_BOOTTIME` at which FIN WAIT ends; None before release."""
    released: float | None
    """Wall clock of the release; None before it."""
    process: Process | None
    """The process that the lease ends with."""
    placeholder: bool
    """A placeholder, a bare tap, holds the name in place of the device."""
    manager: int | None
    """The number of the manager that has claimed the lease."""
    caller_uid: int | None = None
    """The user id that the daemon acquired the lease for; None without a daemon."""
    on_close: bool = False
    """The lease ends when no process has its tap open any more."""
    vnet_hdr: bool = True
    """As in the request."""
    tap_owner: int | None = None
    """The user id that may open the tap by name."""
    tap_group: int | None = None
    """The group id that may open the tap by name."""
    open_at_release: bool = False
    """The VM still had the tap open when the lease was released."""
    labels: tuple[tuple[str, str], ...] = ()
    """Text for people and programs, as KEY=VALUE."""


def by_namespace(leases: Iterable[Lease]) -> dict[Netns, list[Lease]]:
    """Return leases by their namespaces, in the order in which they are given."""
    spaces: dict[Netns, list[Lease]] = {}
    for lease in leases:
        spaces.setdefault(lease.netns, []).append(lease)
    return spaces


class HistoryEntry(NamedTuple):
    """An entry of the history: who held a name, and when."""

    name: str
    lease: str
    owner: str
    kind: Kind
    mac: str
    ifindex: int
    netns: str
    created: float
    released: float | None
    """None while the lease is active."""
    ended: float | None
    """When FIN WAIT ended; None before that."""
    caller_uid: int | None = None
    """As in Lease."""
    labels: tuple[tuple[str, str], ...] = ()
    """As in Lease."""


class HistoryQuery(NamedTuple):
    """What to look for in the history. A field that is None fits every entry."""

    name: str | None = None
    owner: str | None = None
    mac: str | None = None
    lease: str | None = None
    label: tuple[str, str] | None = None
    at: float | None = None
    """Wall clock: only leases that had their name at this time."""
    since: float | None = None
    """Wall clock: only leases that had their name at this time or later."""
    until: float | None = None
    """Wall clock: only leases that began by this time."""
    caller_uid: int | None = None
    limit: int | None = None
    """At most so many, the latest."""


class HistoryEvent(NamedTuple):
    """Something that happened to a device beside its lease's life, or a refused
    request."""

    time: float
    event: str
    lease: str
    """The id; "" for a refused request."""
    name: str
    owner: str
    caller_uid: int | None = None
    detail: str = ""


class EventQuery(NamedTuple):
    """What to look for among the events. A field that is None fits every event."""

    since: float | None = None
    """Wall clock."""
    until: float | None = None
    """Wall clock."""
    event: str | None = None
    name: str | None = None
    owner: str | None = None
    lease: str | None = None
    caller_uid: int | None = None
    limit: int | None = None
    """At most so many, the latest."""


EVERY_EVENT = EventQuery()


class Problem(NamedTuple):
    """A problem on a host, and its remedy."""

    description: str
    remedy: str


class Link(NamedTuple):
    """A device, as the kernel reports it."""

    ifindex: int
    name: str
    kind: str
    """`IFLA_INFO_KIND` ("bridge", "tun", "macvtap", ...); "" for hardware."""
    alias: str
    mac: str
    mtu: int
    up: bool
    master: int
    """The ifindex of the Linux bridge that the device is a port of, or 0."""
    carrier: bool = False
    """Of a tap that is up: a process has it open."""
    isolated: bool = False
    """Of a bridge port, as are the next two fields."""
    learning: bool = True
    flood: bool = True
    """The bridge floods frames with unknown destinations to the port."""
    vlan_filtering: bool = False
    """Of a bridge: it separates VLANs."""
    no_ipv6: bool = True
    """The kernel gives the device no IPv6 address."""
    ipv6_disabled: bool = False
    """The host cannot have an IPv6 address on the device."""
    open: bool = False
    """Of a tap: a process holds it open, whether the tap is up or down."""
    tap_owner: int | None = None
    """Of a tap: the user id that may open it by name; None if any user may, unless
    there is a group."""
    tap_group: int | None = None
    """Of a tap: the group id that may open it by name."""
    persistent: bool = True
    """Of a tap: it stays when the last descriptor is closed."""
    queues: int | None = None
    """Of a multi-queue tap: how many descriptors are attached to it."""
    no_ipv4: bool = True
    """The host's IPv4 accepts no packet from the device, unless it has a route
    there."""
    root_guard: bool = False
    """Of a bridge port; so is the next."""
    bpdu_guard: bool = False
    port_delay: float = 0.0
    """Of a bridge: seconds until a new port forwards frames. 0 unless the bridge takes
    part in the spanning tree."""
    forwarding: bool = False
    """Of a bridge port: the bridge lets its frames pass."""
    blocked: bool = False
    """Of a bridge port whose link is up: the bridge lets none of its frames pass."""
    locked: bool = False
    """Of a bridge port: only frames from MACs that the bridge knows there pass."""
    bcast_flood: bool = True
    """Of a bridge port or a macvtap: the bridge, or the lower device, sends broadcasts
    to it."""
    mode: Mode | None = None
    """Of a macvtap."""
    lower: int = 0
    """Of a macvtap: the ifindex of its lower device; 0 if that is in another
    namespace."""
    calls_iptables: bool = False
    """Of a bridge: iptables judges its IPv4 frames, if br_netfilter is loaded,
    whatever the sysctl of that name says. So is the next, for IPv6."""
    calls_ip6tables: bool = False
    hairpin: bool = False
    """Of a bridge port: the bridge sends its own frames back to it."""
    mcast_flood: bool = True
    """Of a bridge port: the bridge sends multicast to it that it has not asked for."""
    proxy_arp: bool = False
    """Of a bridge port: the bridge floods no frame to it, such as a broadcast
    (br_flood() in net/bridge/br_forward.c)."""


def stamp(ledger: str, lease: str) -> str:
    """Return the stamp: the `ifalias` that says whose a device is."""
    return f"tapster:{ledger}:{lease}"


class Stamp(NamedTuple):
    """The ids in a stamp."""

    ledger: str
    lease: str


def parse_stamp(alias: str) -> Stamp | None:
    """Return the stamp in an `ifalias`, or None."""
    program, *ids = alias.split(":")
    return Stamp(*ids) if program == "tapster" and len(ids) == 2 else None


_TEXTS = {
    kind: [
        place
        for place, field in enumerate(kind._fields)
        if field in ("name", "key", "owner", "mac", "bridge", "ovs", "redirect")
        or field in ("lower", "lower_netns")
    ]
    for kind in (Tap, Macvtap)
}
"""The places of the texts in a request."""


def check_spec(spec: Spec) -> names.Template:
    """Check a request by itself; return its template. Raise RequestError."""
    check_record(spec)
    template = names.parse(spec.name)
    texts: Any = map(spec.__getitem__, _TEXTS[type(spec)])
    if not "".join(filter(None, texts)).isprintable():
        _refuse_unprintable(spec)
    for field, text in (("owner", spec.owner), ("key", spec.key or "")):
        if len(text) > MAX_OWNER:
            raise RequestError(
                f"{field} has {len(text)} characters; at most {MAX_OWNER} are allowed"
            )
    if isinstance(spec, Macvtap):
        names.check_reference(spec.lower)
    if spec.naming != Naming.LOWEST and not template.numbered:
        raise RequestError(
            f"naming {shown(spec.naming)} needs a template with '%d', not {spec.name!r}"
        )
    if spec.reclaim and not spec.owner:
        raise RequestError("reclaim needs an owner: only the owner may reclaim a name")
    if spec.naming == Naming.STABLE and spec.key is None:
        raise RequestError("naming 'stable' needs a key")
    if spec.naming != Naming.STABLE and spec.key is not None:
        raise RequestError(
            f"naming {shown(spec.naming)} takes no key, and key is {spec.key!r}: "
            "only naming 'stable' takes one"
        )
    if spec.labels:
        check_labels(spec.labels)
    if not 1 <= spec.queues <= MAX_QUEUES:
        raise RequestError(f"queues must be 1 to {MAX_QUEUES}, not {spec.queues}")
    if not 0 <= spec.fin_wait <= 86400:
        raise RequestError(f"fin_wait must be 0 to 86400 s, not {spec.fin_wait}")
    for id_ in (spec.uid, spec.gid) if isinstance(spec, Tap) else ():
        if id_ is not None and not 0 <= id_ < (1 << 32) - 1:
            raise RequestError(f"a user or group id is 0 to 4294967294, not {id_}")
    if spec.mac is not None:
        parse_mac(spec.mac)
    if spec.vm is not None:
        _check_vm(spec.vm)
        if spec.vm.incoming is not None and not spec.standby:
            raise RequestError(
                "a VM that still runs on another host needs a device on standby: "
                "ask for standby, too"
            )
    check_wiring(spec.wiring)
    return template


def _refuse_unprintable(spec: Spec) -> None:
    for field, value in zip(spec._fields, spec, strict=True):
        if isinstance(value, str) and not value.isprintable():
            raise RequestError(
                f"{field} {value!r} contains a character that cannot be printed"
            )


def _check_vm(vm: Vm) -> None:
    good = vm.id.isascii() and vm.id.isprintable() and " " not in vm.id
    if not good or not 0 < len(vm.id) <= MAX_OWNER or vm.id.startswith("lease/"):
        raise RequestError(
            f"the id of a VM is 1 to {MAX_OWNER} characters of ASCII without spaces, "
            f"such as its UUID, not {vm.id!r}"
        )
    if vm.incoming is not None:
        term, _, step = vm.incoming.partition(".")
        if not (vm.incoming.isascii() and term.isdecimal() and step.isdecimal()):
            raise RequestError(
                "incoming is the epoch of the other host, such as 0.7, "
                f"not {vm.incoming!r}"
            )


def check_labels(labels: tuple[tuple[str, str], ...]) -> None:
    """Check the labels of a lease. Raises RequestError."""
    if len(labels) > MAX_LABELS:
        raise RequestError(f"{len(labels)} labels are too many: at most {MAX_LABELS}")
    if len(dict(labels)) < len(labels):
        keys = [key for key, _ in labels]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RequestError(f"label {twice!r} is given twice: give it once")
    for key, value in labels:
        if not key or "=" in key or not f"{key}{value}".isprintable():
            raise RequestError(f"label {key!r}={value!r} is not KEY=VALUE")
        if len(key) + len(value) > MAX_OWNER:
            raise RequestError(
                f"label {key!r} has {len(key) + len(value)} characters: "
                f"at most {MAX_OWNER} are allowed"
            )
    size = sum(len(f"{key}={value}".encode()) for key, value in labels)
    if size > MAX_LABEL_BYTES:
        raise RequestError(
            f"the labels have {size} bytes together: at most {MAX_LABEL_BYTES} are "
            "allowed"
        )


LARGEST_NUMBER = (1 << 63) - 1
"""SQLite takes no larger number."""
LATEST = 1e12
"""Seconds since the epoch; a time that is further away was given in another unit."""


def check_query(query: HistoryQuery | EventQuery) -> None:
    """Check what is looked for in the history. Raise RequestError."""
    check_record(query)
    if query.limit is not None and not 1 <= query.limit <= LARGEST_NUMBER:
        raise RequestError(f"limit must be 1 to {LARGEST_NUMBER}, not {query.limit}")
    uid = query.caller_uid
    if uid is not None and not 0 <= uid < 1 << 32:
        raise RequestError(f"caller_uid must be 0 to {(1 << 32) - 1}, not {uid}")
    for field in ("at", "since", "until"):
        moment = getattr(query, field, None)
        if moment is not None and not -LATEST < moment < LATEST:
            raise RequestError(
                f"{field} must be a time in seconds since 1970, not {moment}"
            )
    if isinstance(query, HistoryQuery) and query.mac is not None:
        parse_mac(query.mac)


@remembered  # most devices of a host are wired alike
def check_wiring(wiring: Wiring) -> None:
    """Check a wiring by itself. Raise RequestError. Its types have been checked."""
    if wiring.bridge is not None and wiring.ovs is not None:
        raise RequestError(
            f"a device is on one bridge: Linux's {wiring.bridge!r} "
            f"or Open vSwitch's {wiring.ovs!r}"
        )
    if wiring.ovs is not None:
        names.check(wiring.ovs)
    for reference in (wiring.bridge, wiring.redirect):
        if reference is not None:
            names.check_reference(reference)
    if wiring.redirect is not None and (on := wiring.bridge or wiring.ovs):
        raise RequestError(
            f"a tap on bridge {on!r} cannot take the place of {wiring.redirect!r}: "
            "give one of them"
        )
    default = Wiring()
    for field, homes in _HOMES.items():
        asked = getattr(wiring, field) != getattr(default, field)
        if asked and all(getattr(wiring, home) is None for home in homes):
            kinds = " or ".join(_KINDS[home] for home in homes)
            raise RequestError(f"{field} works on a port of {kinds}: name a bridge")
    if wiring.mtu is not None and not 68 <= wiring.mtu <= 65521:
        raise RequestError(f"mtu must be 68 to 65521, not {wiring.mtu}")
    for vlan in (wiring.vlan, *wiring.trunks):
        if vlan is not None and not 1 <= vlan <= 4094:
            raise RequestError(f"a VLAN is 1 to 4094, not {vlan}")
    if len({wiring.vlan, *wiring.trunks}) <= len(wiring.trunks):
        raise RequestError(
            f"vlan {wiring.vlan} and trunks {wiring.trunks} name a VLAN twice: "
            "name each VLAN once"
        )
    if len(wiring.external_ids) > MAX_LABELS:
        raise RequestError(
            f"{len(wiring.external_ids)} external ids are too many: "
            f"at most {MAX_LABELS}"
        )
    for key, value in wiring.external_ids:
        if not key or "=" in key or not f"{key}{value}".isprintable():
            raise RequestError(f"external id {key!r}={value!r} is not KEY=VALUE")
    if wiring.addresses and not wiring.filter:
        raise RequestError(
            "addresses need the filter, which lets them pass: set filter, or leave "
            "the addresses out"
        )
    if len(wiring.addresses) > MAX_ADDRESSES:
        raise RequestError(
            f"{len(wiring.addresses)} addresses are too many: at most {MAX_ADDRESSES}; "
            "give networks, such as 10.0.0.0/28"
        )
    for address in wiring.addresses:
        _check_address(address)
    for direction in ("inbound", "outbound"):
        if (rate := getattr(wiring, direction)) is not None:
            _check_rate(direction, rate)
    if wiring.outbound_pps is not None and not 1 <= wiring.outbound_pps < 1 << 32:
        raise RequestError(
            f"outbound_pps must be 1 to {(1 << 32) - 1}, not {wiring.outbound_pps}"
        )


def check_changes(changes: Changes) -> None:
    """Check that these are fields of a wiring, with values of the right types."""
    for field, value in changes.items():
        if field not in Wiring._fields:
            raise RequestError(
                f"{field} cannot be changed; these fields can: "
                f"{', '.join(Wiring._fields)}"
            )
        check_value(Wiring.__annotations__[field], value, field)


def check_macvtap_wiring(wiring: Wiring) -> None:
    """Check that a macvtap can have this wiring. Raise RequestError."""
    for field, default in Wiring()._asdict().items():
        if field not in ("mtu", "up", "standby") and getattr(wiring, field) != default:
            raise RequestError(f"{field} does not go with a macvtap")


_HOMES = {
    "isolated": ("bridge",),
    "learning": ("bridge",),
    "root_guard": ("bridge",),
    "bpdu_guard": ("bridge",),
    "outbound_pps": ("bridge",),
    "filter": ("bridge",),
    "guard": ("bridge",),
    "vlan": ("bridge", "ovs"),
    "trunks": ("bridge", "ovs"),
    "external_ids": ("ovs",),
    "outbound": ("bridge", "ovs"),
}
"""The kinds of bridge that a field needs, for those that need one."""
_KINDS = {"bridge": "a Linux bridge", "ovs": "an Open vSwitch bridge"}


def _check_address(address: str) -> None:
    from ipaddress import ip_address, ip_network  # only here: it is slow to import

    if "%" in address:
        raise RequestError(f"{address!r} has a scope: give the address alone")
    try:
        network = ip_network(address, strict=False)
    except ValueError:
        raise RequestError(
            f"{address!r} is not an IPv4 or IPv6 address or network"
        ) from None
    if "/" in address and ip_address(address.partition("/")[0]) != network[0]:
        raise RequestError(
            f"{address!r} is an address in the network {network}: give the address "
            "alone, or the network"
        )
    first, length = network.network_address, network.prefixlen
    if (
        first.is_unspecified
        or network.is_loopback
        or network.is_multicast
        or length == 0
        or address == "255.255.255.255"
    ):
        raise RequestError(f"{address} is no address that a guest can have")


def _check_rate(direction: str, rate: Rate) -> None:
    for field, value in rate._asdict().items():
        if value is not None and not 1 <= value < 1 << 32:
            raise RequestError(
                f"{direction}: {field} must be 1 to {(1 << 32) - 1}, not {value}"
            )
    if rate.peak is not None and rate.peak < rate.average:
        raise RequestError(
            f"{direction}: peak {rate.peak} is less than the average, {rate.average}"
        )


def parse_mac(text: str) -> bytes:
    """Return the six bytes of a unicast MAC such as `52:54:00:12:34:56`."""
    parts = text.split(":")
    try:
        mac = bytes.fromhex("".join(parts))
    except ValueError:
        mac = b""
    if len(parts) != 6 or any(len(part) != 2 for part in parts) or len(mac) != 6:
        raise RequestError(f"MAC {text!r} is not of the form 52:54:00:12:34:56")
    if mac[0] & 1 or not any(mac):
        raise RequestError(f"MAC {text!r} is not a unicast address")
    return mac


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def host_mac(guest: str) -> str:
    """Return the MAC of a tap, as the host sees it, by the MAC of its guest.

    A bridge takes the lowest MAC of its ports as its own, and loses that MAC when the
    port goes. 0xfe is so high that a bridge never takes it. If the guest's own MAC
    begins with 0xfe, the tap's begins with 0xfa: the two must differ, or the bridge
    would keep the guest's frames for the host.
    """
    return ("fa" if guest.lower().startswith("fe") else "fe") + guest[2:].lower()
