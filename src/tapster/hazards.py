# SPDX-License-Identifier: Apache-2.0
"""Find what on a host may harm VMs although every lease is as requested.

These are equal MACs, a bridge that has the MAC of a VM's port, a port that is blocked,
a lower device that passes nothing, a spanning tree, a firewall that judges bridged
frames, and programs that configure new devices.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from errno import ENODEV

from tapster.backends import ovs
from tapster.backends.bridge import MAX_PORTS
from tapster.errors import HostError, KernelError
from tapster.kernel import udev, xtables
from tapster.kernel.port import Namespace
from tapster.model import Kind, Lease, Link, Mode, Problem, State, host_mac

NEARLY_FULL = MAX_PORTS * 9 // 10
"""A bridge with at least this many ports is reported."""
HOOKS = ("prerouting", "forward", "postrouting")
"""The hooks that each bridged frame passes."""
CALLS = "/proc/sys/net/bridge/bridge-nf-call-"
"""Where br_netfilter says which of its tables judge bridged packets."""


def checks(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Iterator[Problem]]:
    """Yield checks for hazards to the leases of a namespace; `links` are its devices.

    Each may raise a TapsterError, and does not look before it is iterated.
    """
    active = [lease for lease in leases if lease.state is State.ACTIVE]
    yield _equal_macs(links, active)
    yield _bridges(namespace, links, leases)
    yield _ports(links, active)
    yield _unplugged(namespace, links, active)
    yield _vlans(namespace, links, active)
    yield _entries(namespace, links, active)
    yield _switched(links, active)
    yield _lower_devices(links, active)
    if bridges := {lease.wiring.bridge for lease in active if lease.wiring.bridge}:
        yield _firewall(namespace, links, bridges)
    yield _device_chains(namespace, links, active)
    yield _udev()


def _equal_macs(links: Sequence[Link], leases: Sequence[Lease]) -> Iterator[Problem]:
    holders: dict[tuple[str, str], list[str]] = {}
    names = {link.ifindex: link.name for link in links}
    # A macvtap has its guest's MAC, and a tap has one of its own.
    ours = {lease.ifindex for lease in leases if lease.kind is Kind.MACVTAP}
    leased = {lease.ifindex for lease in leases}
    for lease in leases:
        segment = lease.wiring.bridge or lease.wiring.ovs or lease.lower
        # A device on standby is connected to nothing. In mode passthru the guest has
        # the MAC of the lower device.
        if segment and not lease.wiring.standby and lease.mode is not Mode.PASSTHRU:
            which = f"lease {lease.name} ({lease.id})"
            holders.setdefault((lease.mac, segment), []).append(which)
    # The tap of another ledger, or of libvirt, tells the MAC of its guest.
    taps = {(host_mac(mac), segment): each for (mac, segment), each in holders.items()}
    for link in links:
        # A bridge delivers what is sent to its own MAC to the host.
        segment = link.name if link.kind == "bridge" else names.get(link.master, "")
        place = (link.mac, segment)
        if place in holders and link.ifindex not in ours:
            holders[place].append(f"device {link.name}")
        elif place in taps and link.kind == "tun" and link.ifindex not in leased:
            taps[place].append(f"the VM of device {link.name}")
    for (mac, segment), several in holders.items():
        if len(several) > 1:
            yield Problem(
                f"MAC {mac} is used more than once on {segment}: "
                f"{', '.join(several)}; they take each other's frames",
                "give each VM a MAC of its own",
            )


def _bridges(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    used = {lease.wiring.bridge for lease in leases}
    devices = {lease.ifindex for lease in leases}
    macs = {link.mac for link in links if link.ifindex in devices}
    for link in links:
        if link.name in used and link.up and link.mac in macs:
            own = f"02{link.mac[2:]}"
            yield Problem(
                f"bridge {link.name} has the MAC of a VM's port, {link.mac}: when that "
                "VM stops, the bridge takes another MAC, and the other VMs cannot "
                "reach this host until they ask for its MAC again",
                f"give the bridge a MAC of its own: ip link set {link.name} address "
                f"{own}",
            )
        if link.name in used and not link.up:
            yield Problem(
                f"bridge {link.name} is down, with VMs on it",
                f"ip link set {link.name} up",
            )
        if link.name in used and link.port_delay:
            yield Problem(
                f"bridge {link.name} takes part in the spanning tree: a new VM hears "
                f"and says nothing for {link.port_delay:g} s, and many guests give up "
                "DHCP before",
                f"ip link set {link.name} type bridge forward_delay 200, or, if no "
                "loop is possible: stp_state 0; or let each VM wait: tapster run "
                "--wait-forwarding",
            )
        if (ports := _count_ports(namespace, link)) >= NEARLY_FULL:
            yield Problem(
                f"bridge {link.name} has {ports} of {MAX_PORTS} possible ports",
                "spread the VMs over several bridges",
            )


def _count_ports(namespace: Namespace, link: Link) -> int:
    """Return how many ports a bridge has; 0 of another device, and of one that was
    deleted after it was listed."""
    if link.kind != "bridge":
        return 0
    try:
        return namespace.ports(link)
    except KernelError as error:
        if error.errno == ENODEV:
            return 0
        raise


def _ports(links: Sequence[Link], leases: Sequence[Lease]) -> Iterator[Problem]:
    """Find ports that do not pass frames although they are on their bridges."""
    by_index = {link.ifindex: link for link in links}
    for lease in leases:
        port = by_index.get(lease.ifindex)
        bridge = by_index.get(port.master) if port else None
        if port is None or bridge is None or lease.wiring.bridge != bridge.name:
            continue
        # A spanning tree blocks ports, and a bridge that is down blocks each of them.
        if port.blocked and bridge.up and not bridge.port_delay:
            problem, remedy = "is blocked, so its VM is cut off", "state 3"
        elif port.locked:
            problem = "is locked: frames from MACs that were not entered do not pass"
            remedy = "locked off"
        elif port.proxy_arp:
            yield Problem(
                f"port {port.name} of bridge {bridge.name} has proxy ARP: the bridge "
                "floods nothing to it, so its VM hears no broadcast",
                f"ip link set dev {port.name} type bridge_slave proxy_arp off",
            )
            continue
        elif not port.bcast_flood:
            problem = "gets no broadcasts, so its VM hears no ARP request"
            remedy = "bcast_flood on"
        elif not port.mcast_flood:
            problem = "gets no multicast that its VM has not asked for: no IPv6 router"
            remedy = "mcast_flood on"
        elif port.hairpin:
            problem = (
                "sends its VM's frames back to it: guests then take their own IPv6 "
                "addresses for those of others"
            )
            remedy = "hairpin off"
        else:
            continue
        yield Problem(
            f"port {port.name} of bridge {bridge.name} {problem}",
            f"bridge link set dev {port.name} {remedy}",
        )


def _unplugged(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    """Find taps without carrier that a process has open: a program switched it off."""
    by_index = {link.ifindex: link for link in links}
    idle = [
        (lease, link)
        for lease in leases
        if (link := by_index.get(lease.ifindex))
        and link.kind == "tun"
        and link.up
        and not link.carrier
    ]
    held = namespace.held_taps() if idle else set()
    for lease, link in idle:
        # Its VM may have opened it since the first look.
        now = namespace.link(link.ifindex) if link.ifindex in held else None
        if now and now.up and not now.carrier:
            yield Problem(
                f"lease {lease.name} ({lease.id}) has no carrier, although a process "
                "has its device open: its VM is cut off",
                f"ip link set dev {link.name} carrier on",
            )


def _vlans(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    """Find ports that their bridge, which filters VLANs, has put into none."""
    by_index = {link.ifindex: link for link in links}
    for lease in leases:
        port = by_index.get(lease.ifindex)
        bridge = by_index.get(port.master) if port else None
        if port is None or bridge is None or not bridge.vlan_filtering:
            continue
        asked = lease.wiring.vlan is not None or lease.wiring.trunks
        if not asked and namespace.vlans(port.ifindex) is None:
            yield Problem(
                f"port {port.name} is in no VLAN of bridge {bridge.name}, which "
                "filters VLANs: its VM is cut off",
                f"name a VLAN: tapster set {lease.id} --vlan VLAN",
            )


def _entries(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    """Find static entries that send a VM's frames elsewhere."""
    by_index = {link.ifindex: link for link in links}
    known: dict[int, dict[str, set[int]]] = {}
    for lease in leases:
        port = by_index.get(lease.ifindex)
        bridge = by_index.get(port.master) if port else None
        if bridge is None or lease.wiring.bridge != bridge.name:
            continue
        if bridge.ifindex not in known:
            known[bridge.ifindex] = namespace.static_entries(bridge.ifindex)
        for at in sorted(known[bridge.ifindex].get(lease.mac, set()) - {lease.ifindex}):
            other = by_index.get(at)
            if other is not None and other.mac != lease.mac:  # see `_equal_macs`
                where = "master" if other != bridge else "self"
                yield Problem(
                    f"bridge {bridge.name} has a static entry for MAC {lease.mac} of "
                    f"lease {lease.name} ({lease.id}) at {other.name}: frames to its "
                    "VM go there",
                    f"bridge fdb del {lease.mac} dev {other.name} {where}",
                )


def _switched(links: Sequence[Link], leases: Sequence[Lease]) -> Iterator[Problem]:
    """Find ports of Open vSwitch that take in VMs' devices by their names."""
    elsewhere = [lease for lease in leases if lease.wiring.ovs is None]
    names = {link.name for link in links}
    ports = ovs.unstamped_ports() if elsewhere else {}
    for lease in elsewhere:
        bridge = ports.get(lease.name)
        if bridge in names:  # Open vSwitch is in this network namespace
            yield Problem(
                f"Open vSwitch has a port {lease.name} on its bridge {bridge}, which "
                f"takes in each device of this name: the VM of lease {lease.name} "
                f"({lease.id}) may be connected there",
                f"ovs-vsctl del-port {bridge} {lease.name}",
            )


def _lower_devices(links: Sequence[Link], leases: Sequence[Lease]) -> Iterator[Problem]:
    """Find devices below VMs' devices that pass no frames, or only short ones."""
    by_index = {link.ifindex: link for link in links}
    by_name = {link.name: link for link in links}
    silent: dict[str, Problem] = {}
    for lease in leases:
        device = by_index.get(lease.ifindex)
        if device is None or not device.up:
            continue
        which = f"lease {lease.name} ({lease.id})"
        # A lower device may have been renamed.
        link = by_index.get(device.lower) or by_name.get(lease.wiring.redirect or "")
        if link is None:
            if lease.kind is Kind.MACVTAP and not device.carrier:
                yield Problem(
                    f"{which} has no carrier: the device that it is on, {lease.lower}, "
                    "is in another network namespace, and passes no frames",
                    "bring that device up there, or move it back and bring it up",
                )
        elif not link.up:
            silent[link.name] = Problem(
                f"device {link.name} is down, with VMs on it",
                f"ip link set {link.name} up",
            )
        elif not link.carrier:
            silent[link.name] = Problem(
                f"device {link.name} has no carrier, with VMs on it",
                "connect its cable, or bring up what is at the other end",
            )
        elif lease.kind is Kind.MACVTAP and not device.carrier:
            yield Problem(
                f"{which} has no carrier, although the device that it is on has: a "
                "program keeps it down, so its VM is cut off",
                f"ip link set dev {device.name} protodown off",
            )
        elif lease.kind is Kind.MACVTAP and not device.bcast_flood:
            yield Problem(
                f"{which} gets no broadcasts, so its VM hears no ARP request: the "
                f"device that it is on, {link.name}, keeps none in a queue",
                f"ip link set dev {device.name} type macvtap bcqueuelen 1000",
            )
        elif link.mtu < (mtu := (device.lower and lease.wiring.mtu) or 0):
            yield Problem(
                f"{which} has an MTU of {mtu}, but the device that it is on, "
                f"{link.name}, of {link.mtu}: longer packets of its VM are lost",
                f"ip link set {link.name} mtu {mtu} && tapster recover",
            )
    yield from silent.values()
    yield from _short_bridges(links, leases)


def _short_bridges(links: Sequence[Link], leases: Sequence[Lease]) -> Iterator[Problem]:
    """Find bridges with a smaller MTU than VMs: a port has got a smaller one."""
    by_index = {link.ifindex: link for link in links}
    for lease in leases:
        port = by_index.get(lease.ifindex)
        bridge = by_index.get(port.master) if port else None
        mtu = lease.wiring.mtu or 0
        if bridge is None or lease.wiring.bridge != bridge.name or mtu <= bridge.mtu:
            continue
        short = [
            link.name
            for link in links
            if link.master == bridge.ifindex and link.mtu <= bridge.mtu
        ]
        yield Problem(
            f"lease {lease.name} ({lease.id}) has an MTU of {mtu}, but bridge "
            f"{bridge.name} of {bridge.mtu}: longer packets of its VM are lost",
            f"ip link set {(short or [bridge.name])[0]} mtu {mtu}, or, if its VM takes "
            f"a smaller one: tapster set {lease.id} --mtu {bridge.mtu}",
        )


def _firewall(
    namespace: Namespace, links: Sequence[Link], bridges: Collection[str]
) -> Iterator[Problem]:
    """Find chains that drop frames of bridges which they do not accept."""
    judging = _judging(namespace, [link for link in links if link.name in bridges])
    yield from _legacy_firewall(namespace, judging)
    with suppress(HostError):  # without libnftables it cannot be told
        for listed in namespace.nft_list("chains"):
            chain = listed.get("chain", {})
            family, hook = chain.get("family"), chain.get("hook")
            if hook not in HOOKS or chain.get("type") != "filter":
                continue
            if family not in judging or chain["table"].startswith("tapster_"):
                continue  # a table of Tapster drops no honest frame
            where = f"{family} {chain['table']} {chain['name']}"
            if chain.get("policy") != "drop" and not _drops_rest(namespace, where):
                continue
            if family == "bridge":
                yield Problem(
                    f"chain {where} drops what it does not accept: VMs may be cut off",
                    f"accept their frames there: nft insert rule {where} accept",
                )
                continue
            packets, table, remedy = judging[family]
            if hook == "forward":
                remedy += f", or accept them: {table} {_ACCEPT}"
            yield _judges_bridged(where, packets, remedy)


_ACCEPT = "-I FORWARD -m physdev --physdev-is-bridged -j ACCEPT"


def _judges_bridged(chain: str, packets: str, remedy: str) -> Problem:
    return Problem(
        f"chain {chain} drops "
        "what it does not accept, and judges bridged packets too "
        f"(br_netfilter): ARP passes between VMs, and {packets} does not",
        remedy,
    )


def _legacy_firewall(
    namespace: Namespace, judging: Mapping[str, tuple[str, str, str]]
) -> Iterator[Problem]:
    """Find the same in the older tables, which nftables does not list."""
    for family in xtables.FAMILIES:
        drops = False
        with suppress(OSError), namespace.inside():
            drops = family in judging and xtables.drops_forwarded(family)
        if drops:
            packets, table, remedy = judging[family]
            remedy += f", or accept them: {table}-legacy {_ACCEPT}"
            yield _judges_bridged(f"FORWARD of {table}-legacy", packets, remedy)


def _device_chains(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    """Find chains of single devices that drop frames which they do not accept.

    Such a chain outlives its device, and judges the next device of that name: another
    VM's.
    """
    by_index = {link.ifindex: link for link in links}
    with suppress(HostError):  # a kernel without nftables
        for chain in namespace.nft_device_chains() if leases else ():
            for lease in leases:
                device = by_index.get(lease.ifindex)
                lower = by_index.get(device.lower) if device else None
                names = [link.name for link in (device, lower) if link]
                at = [
                    name
                    for name in names
                    if name in chain.devices or name.startswith(chain.prefixes)
                ]
                if at and (chain.drops or _drops_rest(namespace, chain.place)):
                    yield Problem(
                        f"chain {chain.place} drops what it does not accept of device "
                        f"{at[0]}: the VM of lease {lease.name} ({lease.id}) may be "
                        "cut off",
                        "if it was made for a former device of that name: nft delete "
                        f"chain {chain.place}",
                    )


def _judging(
    namespace: Namespace, bridges: Sequence[Link]
) -> dict[str, tuple[str, str, str]]:
    """Return the families of nftables that judge frames of these bridges.

    For each, the packets that it judges, the program that br_netfilter names, and how
    to end that.
    """
    judging = {"bridge": ("", "", "")}
    for family, packets, table, calling in (
        (
            "ip6",
            "IPv6",
            "ip6tables",
            [each for each in bridges if each.calls_ip6tables],
        ),
        ("ip", "IPv4", "iptables", [each for each in bridges if each.calls_iptables]),
    ):
        # The file is there if br_netfilter is loaded.
        with suppress(OSError), namespace.inside(), open(f"{CALLS}{table}") as file:
            ends = [
                f"ip link set {bridge.name} type bridge nf_call_{table} 0"
                for bridge in calling
            ]
            if file.read().strip() == "1":
                ends.insert(0, f"sysctl -w net.bridge.bridge-nf-call-{table}=0")
            if ends:
                found = packets, table, " && ".join(ends)
                judging |= dict.fromkeys((family, "inet"), found)
    return judging


def _drops_rest(namespace: Namespace, chain: str) -> bool:
    """Return whether the last rule of a chain drops every packet, as firewalld's."""
    rules = [
        listed["rule"]["expr"]
        for listed in namespace.nft_list(f"chain {chain}")
        if "rule" in listed
    ]
    verdicts = {verdict for part in rules[-1] for verdict in part} if rules else set()
    return bool(verdicts & {"drop", "reject"}) and verdicts <= {
        "drop",
        "reject",
        "counter",
        "log",
    }


def _udev() -> Iterator[Problem]:
    if udev.interferes():
        yield Problem(
            "udev is not told to keep its hands off Tapster's devices: it gives some "
            "of them another MAC",
            "tapster install-service",
        )
