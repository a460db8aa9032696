# SPDX-License-Identifier: Apache-2.0
"""Print each change as the equivalent ip, bridge, nft, tc or ovs-vsctl command.

`System`, `Namespace` and `Backend` are wrapped, and handed to the Host in place of the
real ones, so that no other module knows of this one. A command is printed after the
kernel or the service has accepted the change. The commands name devices; Tapster itself
uses ifindexes. No command requests an ifindex for a tap, because ip(8) has no option.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence

from tapster.backends import Leases, htb, make, ovsport
from tapster.backends.backend import Backend, Leftover, Observation
from tapster.kernel import mirred, netns
from tapster.kernel.port import GuardLimit, LinkChange, Namespace, NewMacvtap, System
from tapster.light import Any, cast
from tapster.model import Lease, Netns, State, Wiring, stamp

Write = Callable[[str], None]

_SAFE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_ELEMENT = re.compile(r"^((?:create|add|delete) element .*?\{ )(\d+)", re.MULTILINE)
"""A command about an element, up to the ifindex with which the element's key begins."""
_COMMENT = re.compile(r"^[ \t]*#.*\n", re.MULTILINE)


def write(command: str) -> None:
    """Print a command on standard error, at once."""
    print(command, file=sys.stderr, flush=True)


def command(*words: object) -> str:
    """Return a command line for sh(1)."""
    return " ".join(quote(str(word)) for word in words if word != "")


def quote(word: str) -> str:
    # shlex would do, but importing it takes longer than everything here.
    return word if _SAFE.fullmatch(word) else "'" + word.replace("'", "'\"'\"'") + "'"


class VerboseSystem:
    """A System whose namespaces print what they change."""

    def __init__(self, system: System, write: Write) -> None:
        self._system = system
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def netns(self, where: str | None) -> Namespace:
        return self._verbose(self._system.netns(where))

    def find(self, netns: Netns) -> Namespace | None:
        namespace = self._system.find(netns)
        return namespace and self._verbose(namespace)

    def _verbose(self, namespace: Namespace) -> Namespace:
        return cast("Namespace", VerboseNamespace(namespace, self._write))


class VerboseNamespace:
    """A Namespace that prints what it changes."""

    def __init__(self, namespace: Namespace, write: Write) -> None:
        self.plain = namespace
        self._write = write
        here = netns.cookie() == namespace.netns.cookie
        self.prefix = () if here else ("nsenter", f"--net={namespace.netns.path}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def number(self, other: Namespace) -> int:
        return self.plain.number(_plain(other))

    def say(self, *words: object) -> None:
        """Print a command that is run in this namespace."""
        self._write(command(*self.prefix, *words))

    def name(self, ifindex: int) -> str:
        """Return a device's name, for a command about it."""
        link = self.plain.link(ifindex)
        return link.name if link else f"if{ifindex}"

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
        fds = self.plain.create_tap(
            name, ifindex, queues=queues, vnet_hdr=vnet_hdr, uid=uid, gid=gid
        )
        flags = ["multi_queue"] * (queues > 1) + ["vnet_hdr"] * vnet_hdr
        flags += ["user", str(uid)] if uid is not None else []
        flags += ["group", str(gid)] if gid is not None else []
        self.say("ip", "tuntap", "add", "dev", name, "mode", "tap", *flags)
        return fds

    def create_macvtap(
        self, device: NewMacvtap, *, beneath: Namespace | None = None
    ) -> None:
        there = self.plain if beneath is None else _plain(beneath)
        self.plain.create_macvtap(device, beneath=there)
        name, ifindex, lower, mode, mac, mtu, queues = device
        link = there.link(lower)
        self.say(
            *("ip", "link", "add", "link", link.name if link else lower),
            *("name", name),
            *("index", ifindex, "numtxqueues", queues, "numrxqueues", queues),
            *(("address", mac) if mac else ()),
            *(("mtu", mtu) if mtu else ()),
            *("type", "macvtap", "mode", str(mode)),
        )

    def set_links(self, changes: Sequence[LinkChange]) -> None:
        for change in changes:
            self.plain.set_links([change])
            for words in self._changes(change):
                self.say(*words)

    def _changes(self, change: LinkChange) -> Iterator[tuple[object, ...]]:
        name = self.name(change.ifindex)
        link = ("ip", "link", "set", "dev", name)
        if change.mac is not None:
            yield (*link, "address", change.mac)
        if change.mtu is not None:
            yield (*link, "mtu", change.mtu)
        if change.alias is not None:
            yield (*link, "alias", change.alias)
        if change.no_ipv4 is not None:
            strict, no_answer = (1, 8) if change.no_ipv4 else (0, 0)
            sysctl = f"net/ipv4/conf/{name}"
            yield ("sysctl", "-q", "-w", f"{sysctl}/rp_filter={strict}")
            yield ("sysctl", "-q", "-w", f"{sysctl}/arp_ignore={no_answer}")
        if change.no_ipv6:
            yield (*link, "addrgenmode", "none")
        if change.disable_ipv6 is not None:
            value = int(change.disable_ipv6)
            yield ("sysctl", "-q", "-w", f"net/ipv6/conf/{name}/disable_ipv6={value}")
        if change.master is not None:
            where = ("master", self.name(change.master)) if change.master else ()
            yield (*link, *(where or ("nomaster",)))
        if change.up is not None:
            yield (*link, "up" if change.up else "down")
        port = ("bridge", "link", "set", "dev", name)
        if change.isolated is not None:
            yield (*port, "isolated", _on(change.isolated))
        if change.learning is not None:
            learning = _on(change.learning)
            yield (*port, "learning", learning, "flood", learning)
        if change.root_guard is not None:
            yield (*port, "root_block", _on(change.root_guard))
        if change.bpdu_guard is not None:
            yield (*port, "guard", _on(change.bpdu_guard))
        if change.vlans is not None:
            vlan = ("bridge", "vlan")
            native, tagged = change.vlans
            yield (*vlan, "del", "dev", name, "vid", "1-4094")
            if native is not None:
                yield (*vlan, "add", "dev", name, "vid", native, "pvid", "untagged")
            for vid in tagged:
                yield (*vlan, "add", "dev", name, "vid", vid)
        if change.neighbour is not None:
            entry = (change.neighbour, "dev", name, "master", "static", "sticky")
            yield ("bridge", "fdb", "replace", *entry)

    def guard(self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]) -> None:
        self.plain.guard(ifindex, judge=judge, limits=limits)
        self.say("tc", "qdisc", "replace", "dev", self.name(ifindex), "clsact")
        self._write("# and at its ingress, pref 1: the BPF program tapster-guard")

    def redirect(self, ifindex: int, to: int, stamp: bytes) -> None:
        self.plain.redirect(ifindex, to, stamp)
        made = self.plain.redirection(ifindex)
        own = made is not None and made.own_qdisc
        if own:
            self.say("tc", "qdisc", "add", "dev", self.name(ifindex), "clsact")
        self.say(
            *("tc", "filter", "add", "dev", self.name(ifindex), "ingress"),
            *("pref", mirred.PREFERENCE, "handle", mirred.HANDLE, "matchall"),
            *("action", "mirred", "egress", "redirect", "dev", self.name(to)),
            *("cookie", mirred.cookie(stamp, own_qdisc=own).hex()),
        )

    def unredirect(self, ifindex: int, stamp: bytes) -> None:
        there = self.plain.redirection(ifindex)
        self.plain.unredirect(ifindex, stamp)
        if there is None or there.stamp != stamp:
            return
        name = self.name(ifindex)
        preference = ("pref", mirred.PREFERENCE)
        self.say("tc", "filter", "del", "dev", name, "ingress", *preference)
        if there.own_qdisc:
            self.say("tc", "qdisc", "del", "dev", name, "clsact")

    def unguard(self, ifindex: int) -> None:
        self.plain.unguard(ifindex)
        self.say("tc", "qdisc", "del", "dev", self.name(ifindex), "clsact")

    def give_tap(self, name: str, ifindex: int, **named: Any) -> bool:
        given = self.plain.give_tap(name, ifindex, **named)
        if given:
            # ip(8) cannot change the owner of a tap.
            self._write(f"# TUNSETOWNER and TUNSETGROUP of {self.name(ifindex)}: root")
        return given

    def restore_tap(self, ifindex: int, **named: Any) -> bool:
        restored = self.plain.restore_tap(ifindex, **named)
        if restored:
            # A tap that is open cannot be changed by ip(8).
            name = self.name(ifindex)
            self._write(f"# TUNSETOWNER, TUNSETGROUP and TUNSETPERSIST of {name}")
        return restored

    def rename_link(self, ifindex: int, name: str) -> None:
        before = self.name(ifindex)
        self.plain.rename_link(ifindex, name)
        self.say("ip", "link", "set", "dev", before, "name", name)

    def delete_links(self, ifindexes: Sequence[int]) -> set[int]:
        names = [link.name for i in ifindexes if (link := self.plain.link(i))]
        missing = self.plain.delete_links(ifindexes)
        for name in names:
            self.say("ip", "link", "del", "dev", name)
        return missing

    def nft(self, commands: str) -> None:
        def named(found: re.Match[str]) -> str:
            link = self.plain.link(int(found[2]))
            return f'{found[1]}"{link.name}"' if link else found[0]

        text = _ELEMENT.sub(named, _COMMENT.sub("", commands)).strip()
        self.plain.nft(commands)
        if text:
            first = command(*self.prefix, "nft", "-f", "-")
            self._write(f"{first} <<'END'\n{text}\nEND")


def _plain(namespace: Namespace) -> Namespace:
    """Return the namespace itself, without what prints."""
    if isinstance(namespace, VerboseNamespace):
        return namespace.plain
    return namespace


class VerboseBackend:
    """A Backend that prints what it changes outside the port of the kernel."""

    def __init__(self, backend: Backend, ledger: str, write: Write) -> None:
        self._backend = backend
        self._ledger = ledger
        self._write = write

    @property
    def name(self) -> str:
        return self._backend.name

    def concerns(self, wiring: Wiring) -> bool:
        return self._backend.concerns(wiring)

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        self._backend.check(namespace, wiring)

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        self._backend.attach(namespace, lease)
        mark = stamp(self._ledger, lease.id)
        if self.name == "ovs":
            if lease.state is not State.RESERVED:
                self._deleted(lease, mark)
            self._write(command(*_add_port(lease, mark)))
        elif lease.wiring.inbound and self.name == "inbound":
            for line in _shape(lease.name, htb.Class.of(lease.wiring.inbound)):
                self._say(namespace, line)

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        return self._backend.restore(namespace, leases)

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        self._backend.detach(namespace, lease)
        there = namespace and namespace.link(lease.ifindex)
        if self.name == "ovs":
            self._deleted(lease, stamp(self._ledger, lease.id))
        elif self.name == "inbound" and there:
            self._say(namespace, f"tc qdisc del dev {lease.name} root handle 1:")

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        return self._backend.observe(namespace, leases)

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        self._backend.remove(namespace, leftover)
        if self.name == "ovs":
            self._write(
                f"# deleted from Open vSwitch: the rows of lease {leftover.lease}"
            )

    def _deleted(self, lease: Lease, mark: str) -> None:
        self._write(command("ovs-vsctl", "--if-exists", "del-port", lease.name))
        self._write(_delete_limits(mark))

    def _say(self, namespace: Namespace | None, line: str) -> None:
        if isinstance(namespace, VerboseNamespace) and namespace.prefix:
            line = command(*namespace.prefix, "sh", "-c", line)
        self._write(line)


def _shape(name: str, figures: htb.Class) -> list[str]:
    """Return the commands that limit what goes to a guest."""
    leaf = f"tc qdisc replace dev {name} parent 1:1 handle 2:"
    return [
        f"tc qdisc replace dev {name} root handle 1: htb default 1",
        f"tc class replace dev {name} parent 1: classid 1:1 htb "
        f"rate {figures.rate}bps ceil {figures.ceil}bps "
        f"burst {figures.burst} cburst {figures.cburst} quantum 1600",
        " || ".join([*(f"{leaf} {kind} 2>&-" for kind in htb.LEAVES), "true"]),
    ]


def _add_port(lease: Lease, mark: str) -> tuple[object, ...]:
    """Return one transaction: the port, its VLANs, its ids and its rates."""
    port = ovsport.wanted(lease, mark)
    (bridge,) = port.bridge
    given = "=".join(dict(lease.wiring.external_ids))
    rate, burst = port.outbound
    ours = f'external_ids:{ovsport.KEY}="{mark}"'
    columns: list[object] = [
        *(f"tag={vlan}" for vlan in port.tag),
        *([f"trunks={','.join(map(str, sorted(port.trunks)))}"] if port.trunks else []),
        *(f"vlan_mode={mode}" for mode in port.vlan_mode),
        f"other_config:transient={port.transient}",
        ours,
        *([f'external_ids:{ovsport.REQUESTED}="{given}"'] if given else []),
    ]
    words: list[object] = ["ovs-vsctl", "add-port", bridge, lease.name]
    words += ["--", "set", "Port", lease.name, *columns]
    words += ["--", "set", "Interface", lease.name]
    words += [f'external_ids:{key}="{text}"' for key, text in port.external_ids.items()]
    words += [f"ingress_policing_rate={rate}", f"ingress_policing_burst={burst}"]
    if port.inbound:
        queue = [f"other_config:{key}={text}" for key, text in port.inbound.items()]
        words += ["--", "--id=@queue", "create", "Queue", *queue, ours]
        words += ["--", "--id=@qos", "create", "QoS", "type=linux-htb", ours]
        words += [f"other_config:max-rate={port.inbound['max-rate']}"]
        words += ["queues:0=@queue", "--", "set", "Port", lease.name, "qos=@qos"]
    return tuple(words)


def _delete_limits(mark: str) -> str:
    """Delete what limited a port's rate: these rows do not end with the port."""
    marked = quote(f'external_ids:{ovsport.KEY}="{mark}"')
    return (
        "for table in QoS Queue; do "
        f"ovs-vsctl --bare --columns=_uuid find $table {marked} | "
        "xargs -r -n 1 ovs-vsctl destroy $table; done"
    )


def _on(yes: bool) -> str:
    return "on" if yes else "off"


def backends(ledger: str, leases: Leases, write: Write = write) -> tuple[Backend, ...]:
    """Make the backends of a ledger, wrapped."""
    return tuple(
        VerboseBackend(backend, ledger, write) for backend in make(ledger, leases)
    )


def system(real: System, write: Write = write) -> System:
    """Return the system, wrapped."""
    return cast("System", VerboseSystem(real, write))
