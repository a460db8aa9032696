# SPDX-License-Identifier: Apache-2.0
"""The real kernel behind the port."""

import os
import time
from errno import (
    EAFNOSUPPORT,
    EBADFD,
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    ENODEV,
    ENOENT,
    ENOTDIR,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
)

from tapster.errors import HostError, KernelError, NoSuchLink
from tapster.kernel import boot, netns, process, rtnl, tun
from tapster.kernel.descriptors import close_all, closing_on_error
from tapster.kernel.failure import failure
from tapster.kernel.port import (
    HERE,
    INTRUSIONS,
    GuardLimit,
    LinkChange,
    Namespace,
    NewMacvtap,
    NftDeviceChain,
    NftRule,
    Redirection,
    Vlans,
    Watch,
    give_or_restore,
)
from tapster.light import (
    TYPE_CHECKING,
    AbstractContextManager,
    Any,
    Collection,
    Generator,
    Sequence,
    cached_property,
    closing,
    suppress,
)
from tapster.model import Life, Link, Netns, Process

if TYPE_CHECKING:
    from tapster.kernel.ingress import Guards
    from tapster.kernel.macvtap_nodes import MacvtapNodes
    from tapster.kernel.nft import NamespaceNft
    from tapster.kernel.watch import LinkWatch

_NO_TUN = (ENOENT, ENOTDIR, EISDIR, ENODEV, ENXIO, ENOTTY)
"""The errors of /dev/net/tun if it is missing or another device."""


class LinuxSystem:
    """The host that this process runs on."""

    stand_ins = None

    @cached_property
    def boot_id(self) -> str:
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                return file.read().strip()
        except OSError as error:
            raise failure(error, "reading the boot's id") from error

    def boottime(self) -> float:
        return boot.boottime()

    def wallclock(self) -> float:
        # No finer than it is printed. So a printed time can be used in a query.
        return round(time.time(), 3)

    def udev_interferes(self) -> bool:
        from tapster.kernel import udev

        return udev.interferes()

    def netns(self, where: str | None) -> "LinuxNamespace":
        path = "" if where is None else netns.path_of(where)
        opened = path or netns.OWN
        try:
            path = path or netns.known_path()
            fd = netns.open_netns(opened)
        except (FileNotFoundError, ValueError):  # no path has such a character
            raise NoSuchLink(
                f"there is no network namespace {where!r}", name=where
            ) from None
        except OSError as error:
            raise failure(
                error, f"opening network namespace {opened!r}", "CAP_SYS_ADMIN"
            ) from error
        return self._namespace(fd, path)

    def find(self, wanted: Netns) -> Namespace | None:
        try:
            return self._find(wanted)
        except OSError as error:
            raise failure(
                error, "looking for a network namespace", "CAP_SYS_ADMIN"
            ) from error

    def namespaces(self) -> Generator[Namespace]:
        from tapster.kernel.all_namespaces import named_and_others  # rarely needed

        try:
            for fd, path in named_and_others():
                with closing(self._namespace(os.dup(fd), path)) as found:
                    yield found
        except OSError as error:
            raise failure(
                error, "looking for all network namespaces", "CAP_SYS_PTRACE"
            ) from error

    def ended_namespaces(self, netnses: Collection[Netns]) -> set[Netns]:
        here, pidns = self.boot_id, netns.pidns()
        ended = {
            wanted
            for wanted in netnses
            if wanted.boot != here or wanted.cookie in self._ended_cookies
        }
        # First the paths, then all namespaces: a namespace that gets another path in
        # between is found.
        lost = [
            wanted
            for wanted in netnses
            if wanted not in ended
            and pidns
            and wanted.pidns == pidns
            and netns.is_nothing_at(wanted.path)
        ]
        if lost:
            from tapster.kernel.all_namespaces import cookies  # rarely needed

            with suppress(OSError):  # `find` says what prevents it
                found = cookies()
                gone = {wanted for wanted in lost if wanted.cookie not in found}
                self._ended_cookies.update(wanted.cookie for wanted in gone)
                ended |= gone
        return ended

    @cached_property
    def _ended_cookies(self) -> set[int]:
        """The cookies of namespaces that have ended. No namespace gets one again."""
        return set()

    def _find(self, wanted: Netns) -> Namespace | None:
        if wanted.boot != self.boot_id:
            return None
        if netns.cookie() == wanted.cookie:
            return self.netns(None)
        if namespace := self._at(wanted.path, wanted.cookie):
            return namespace
        # The host's has no name. All processes are looked at only for others.
        for path in (*netns.named(), netns.HOST):
            if namespace := self._at(path, wanted.cookie):
                return namespace
        if not netns.sees_all(wanted.pidns):
            raise HostError(
                f"whether a process is in network namespace {wanted.cookie} "
                f"({wanted.path or 'which has no path'}) can only be told from the "
                "pid namespace in which its lease was made, or outside all containers"
            )
        from tapster.kernel.all_namespaces import everywhere  # rarely needed

        for fd in everywhere():
            with netns.inside(fd):
                found = netns.cookie() == wanted.cookie
            if found:
                return self._namespace(os.dup(fd), wanted.path)
        return None

    def _at(self, path: str, cookie: int) -> "LinuxNamespace | None":
        """Return the namespace at `path` if it has this cookie."""
        try:
            namespace = self._namespace(netns.open_netns(path), path)
        except netns.GONE:
            return None
        except PermissionError:
            if path.startswith("/proc/"):
                return None  # of a process: all processes are looked at below
            raise
        except OSError as error:
            if error.errno == EINVAL:
                return None  # no namespace any more
            raise
        except KernelError as error:
            if error.errno == EINVAL:
                return None  # as above, found out while entering it
            raise
        if namespace.netns.cookie == cookie:
            return namespace
        namespace.close()
        return None

    def _namespace(self, fd: int, path: str) -> "LinuxNamespace":
        try:
            return LinuxNamespace(fd, self.boot_id, path)
        except BaseException:
            os.close(fd)
            raise

    def open_vhost(self, count: int) -> tuple[int, ...]:
        from tapster.kernel import vhost

        try:
            return vhost.open_vhost(count)
        except OSError as error:
            raise failure(error, "opening /dev/vhost-net") from error

    def process(self, pid: int, *, ended: bool = False) -> Process | None:
        try:
            return process.process(pid, ended=ended)
        except OSError as error:
            raise failure(error, f"looking at process {pid}") from error

    def life(self, bound: Process) -> Life:
        return process.life(bound)

    def open_process(self, wanted: Process) -> int | None:
        try:
            return process.open_process(wanted)
        except OSError as error:
            raise KernelError(
                error.errno or 0, f"opening process {wanted.pid}", error.strerror or ""
            ) from error

    def watch(self, *, first: int, elsewhere: bool = False) -> Watch:
        from tapster.kernel.watch import LinkWatch

        try:
            return LinkWatch(first=first, elsewhere=elsewhere)
        except OSError as error:
            action = "watching the devices"
            raise failure(error, action, "CAP_NET_BROADCAST") from error

    def watch_rules(self, *, first: int, elsewhere: bool = False) -> Sequence[Watch]:
        from tapster.kernel.rule_watch import rule_watches  # late: the daemon's alone

        try:
            return rule_watches(first=first, elsewhere=elsewhere)
        except OSError as error:
            action = "watching the rules"
            raise failure(error, action, "CAP_NET_BROADCAST") from error


def _tun_failure(error: OSError, action: str) -> HostError:
    """Return the error of a call on /dev/net/tun as an error of Tapster."""
    if error.errno in _NO_TUN:
        return HostError(
            f"{tun.DEVICE} is missing or another device ({error.strerror}): "
            f"{tun.REMEDY}"
        )
    opening = error.filename == tun.DEVICE
    return failure(error, f"opening {tun.DEVICE}" if opening else action)


class LinuxNamespace:
    """One network namespace, with sockets in it for requests and notifications."""

    def __init__(self, fd: int, boot_id: str, path: str) -> None:
        """Take over `fd`, a descriptor of the namespace, unless this raises."""
        self.fd = fd
        self._watch: LinkWatch | None = None
        try:
            with self.inside():
                self._netns = Netns(boot_id, netns.cookie(), path, netns.pidns())
                self._rtnl = rtnl.Rtnl()
        except OSError as error:
            raise failure(
                error,
                f"entering network namespace {path or netns.OWN!r}",
                "CAP_SYS_ADMIN",
            ) from error

    @property
    def netns(self) -> Netns:
        return self._netns

    def inside(self) -> AbstractContextManager[None]:
        return netns.inside(self.fd)

    def close(self) -> None:
        for opened in (self._rtnl, self._watch):
            if opened is not None:
                opened.close()
        for part in ("_nft", "_nodes"):
            if part in self.__dict__:
                self.__dict__.pop(part).close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def ifindex(self, name: str) -> int:
        try:
            return self._rtnl.find(name)
        except OSError as error:
            raise failure(error, f"looking up {name!r}") from error

    def link(self, ifindex: int) -> Link | None:
        try:
            return self._rtnl.get(ifindex) if ifindex else None
        except OSError as error:
            raise failure(error, f"reading device {ifindex}") from error

    def links_with(self, ifindexes: Collection[int]) -> dict[int, Link]:
        try:
            return self._rtnl.get_some(ifindexes)
        except OSError as error:
            raise failure(error, "reading devices") from error

    def named(self, name: str) -> Link | None:
        try:
            return self._rtnl.named(name)
        except OSError as error:
            raise failure(error, f"looking up {name!r}") from error

    def links(self) -> list[Link]:
        try:
            return self._rtnl.dump()
        except OSError as error:
            raise failure(error, "reading the devices") from error

    def names(self) -> dict[str, int]:
        try:
            return self._rtnl.names()
        except OSError as error:
            raise failure(error, "reading the devices' names") from error

    def ports(self, bridge: Link) -> int:
        from tapster.kernel import bridge_ports  # late: to list needs none

        assert bridge.kind == "bridge"
        try:
            return bridge_ports.count(self._rtnl.fileno(), bridge.name)
        except OSError as error:
            raise failure(error, f"counting the ports of {bridge.name!r}") from error

    def neighbours(self, ifindex: int) -> set[str]:
        try:
            return self._rtnl.neighbours(ifindex)
        except OSError as error:
            action = f"reading the MACs behind device {ifindex}"
            raise failure(error, action) from error

    def static_entries(self, bridge: int) -> dict[str, set[int]]:
        try:
            return self._rtnl.static_entries(bridge)
        except OSError as error:
            raise failure(error, f"reading the MACs of bridge {bridge}") from error

    def vlans(self, ifindex: int) -> Vlans | None:
        try:
            return self._rtnl.vlans(ifindex)
        except OSError as error:
            raise failure(error, f"reading the VLANs of device {ifindex}") from error

    def nft(self, commands: str) -> None:
        self._nft.run(commands)

    def nft_list(self, what: str) -> list[dict[str, Any]]:
        return self._nft.list(what)

    def nft_rules(self, table: str) -> list[NftRule]:
        from tapster.kernel.nft_rules import rules

        try:
            with self.inside():
                return rules(table)
        except OSError as error:
            raise failure(error, "listing the rules of nftables") from error

    def nft_device_chains(self) -> list[NftDeviceChain]:
        from tapster.kernel.nft_rules import device_chains

        try:
            with self.inside():
                return device_chains()
        except OSError as error:
            raise failure(error, "listing the chains of nftables") from error

    def nft_example(self, commands: str, what: str) -> list[dict[str, Any]]:
        return self._nft.example(commands, what)

    @cached_property
    def _nft(self) -> "NamespaceNft":
        from tapster.kernel.nft import NamespaceNft  # slow to import

        return NamespaceNft(self.fd)

    def guard(self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]) -> None:
        self._guards.attach(ifindex, judge, limits)

    def unguard(self, ifindex: int) -> None:
        self._guards.detach(ifindex)

    def is_guarded(
        self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]
    ) -> bool:
        return self._guards.is_first(ifindex, judge, limits)

    @cached_property
    def _guards(self) -> "Guards":
        from tapster.kernel.ingress import Guards

        return Guards(self._rtnl)

    def redirect(self, ifindex: int, to: int, stamp: bytes) -> None:
        from tapster.kernel import mirred

        try:
            mirred.add(self._rtnl, ifindex, to, stamp)
        except OSError as error:
            action = f"redirecting device {ifindex} to {to}"
            raise failure(error, action) from error

    def redirection(self, ifindex: int) -> Redirection | None:
        from tapster.kernel import mirred

        try:
            return mirred.get(self._rtnl, ifindex)
        except OSError as error:
            if error.errno in (ENODEV, EINVAL):
                return None  # the device is gone, or has no qdisc for filters
            raise failure(error, f"reading the filters of device {ifindex}") from error

    def unredirect(self, ifindex: int, stamp: bytes) -> None:
        from tapster.kernel import mirred

        try:
            mirred.delete(self._rtnl, ifindex, stamp)
        except OSError as error:
            if error.errno not in (ENODEV, EINVAL):
                action = f"ending the redirection of device {ifindex}"
                raise failure(error, action) from error

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
        flags = tun.flags(queues=queues, vnet_hdr=vnet_hdr)
        action = f"making tap {name!r}"
        for _ in range(INTRUSIONS):
            try:
                with self.inside():
                    fds = tun.create(
                        name, ifindex, queues=queues, flags=flags, uid=uid, gid=gid
                    )
            except OSError as error:
                raise _tun_failure(error, action) from error
            try:
                if queues == 1 or not self._is_intruded(ifindex, queues):
                    return fds
                self.delete_links([ifindex])
            except BaseException:
                with suppress(HostError):
                    self.delete_links([ifindex])
                close_all(fds)
                raise
            close_all(fds)
        raise KernelError(EBUSY, action, "other processes open it before it has a user")

    def _is_intruded(self, ifindex: int, queues: int) -> bool:
        """Return whether another process has a queue of a new tap.

        Until the tap has an owner, any process may attach a queue by the tap's name.
        The kernel has no call that makes a tap with an owner. If a process detached its
        queue for a time (TUNSETQUEUE), the queue still counts.
        """
        link = self.link(ifindex)
        return link is not None and (link.queues or 0) > queues

    def open_tap(
        self, name: str, ifindex: int, *, multi_queue: bool, vnet_hdr: bool
    ) -> int:
        # The kernel opens a tap by name only. So look the name up first, and look up
        # the name of the device behind the descriptor afterwards.
        flags = tun.flags(queues=1 + multi_queue, vnet_hdr=vnet_hdr)
        try:
            if self._rtnl.find(name) != ifindex:
                raise OSError(EBADFD, f"another device is called {name!r}")
            with self.inside(), closing_on_error() as fds:
                fds.append(self._join(name, ifindex, flags))
                if self._rtnl.find(tun.name_of(fds[0])) != ifindex:
                    raise OSError(EBADFD, "the tap was renamed while it was opened")
        except OSError as error:
            raise _tun_failure(error, f"opening tap {name!r}") from error
        return fds[0]

    def _join(self, name: str, ifindex: int, flags: int) -> int:
        try:
            return tun.join(name, flags)
        except OSError as error:
            if error.errno == EBUSY and self._rtnl.find(name) != ifindex:
                raise OSError(EBADFD, f"no tap is called {name!r} any more") from error
            raise

    def is_held(self, name: str, ifindex: int, *, vnet_hdr: bool) -> bool:
        try:
            os.close(self.open_tap(name, ifindex, multi_queue=False, vnet_hdr=vnet_hdr))
        except KernelError as error:
            if error.errno not in (EBUSY, EBADFD):
                raise
            return error.errno == EBUSY
        return False

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
        def give() -> None:
            opened = self.open_tap(
                name, ifindex, multi_queue=multi_queue, vnet_hdr=vnet_hdr
            )
            try:
                tun.give(opened, uid=uid, gid=gid)
            except OSError as error:
                action = f"giving tap {name!r} another owner"
                raise failure(error, action) from error
            finally:
                os.close(opened)

        def restore() -> bool:
            return self.restore_tap(ifindex, uid=uid, gid=gid, pids=pids)

        return give_or_restore(give, restore)

    def restore_tap(
        self,
        ifindex: int,
        *,
        uid: int | None,
        gid: int | None,
        pids: Collection[int] = (),
    ) -> bool:
        try:
            with closing(self._open_taps(ifindex, pids)) as taps:
                for tap in taps:
                    tun.restore(tap, uid=uid, gid=gid)
                    return True
        except OSError as error:
            action = f"restoring the owner and the persistence of device {ifindex}"
            raise failure(error, action) from error
        return False

    def held_taps(self) -> set[int]:
        from tapster.kernel.open_files import held_taps  # rarely needed

        try:
            return held_taps(self.fd, self._rtnl.find)
        except OSError as error:
            raise failure(error, "looking for processes that have taps open") from error

    def _open_taps(self, ifindex: int, pids: Collection[int]) -> Generator[int]:
        """Yield copies of a tap's descriptors, of this process and of `pids` first."""
        from tapster.kernel.open_files import open_taps  # rarely needed

        return open_taps(self.fd, ifindex, self._rtnl.find, [os.getpid(), *pids])

    def create_macvtap(
        self, device: NewMacvtap, *, beneath: Namespace | None = None
    ) -> None:
        if beneath is None or beneath.netns.cookie == self._netns.cookie:
            self.send_macvtap(device, None)
            return
        assert isinstance(beneath, LinuxNamespace)
        beneath.send_macvtap(device, self.fd)

    def send_macvtap(self, device: NewMacvtap, into: int | None) -> None:
        """Create a macvtap on a device of this namespace, in the namespace `into`."""
        # The kernel looks for the lower device in the namespace of the socket.
        message = rtnl.macvtap_message(device, into)
        action = f"making macvtap {device.name!r}"
        try:
            self._execute([message], action)
        except KernelError as error:
            if error.errno != EOPNOTSUPP:
                raise
            reason = "the kernel has no macvtap: modprobe macvtap"
            raise KernelError(EOPNOTSUPP, action, reason) from error

    def open_macvtap(
        self, ifindex: int, *, queues: int, vnet_hdr: bool
    ) -> tuple[int, ...]:
        return self._nodes.open(ifindex, queues=queues, vnet_hdr=vnet_hdr)

    def macvtap_holders(self, ifindexes: Collection[int]) -> dict[int, int]:
        return self._nodes.holders(ifindexes)

    @cached_property
    def _nodes(self) -> "MacvtapNodes":
        from tapster.kernel.macvtap_nodes import MacvtapNodes  # taps need none

        return MacvtapNodes(self.fd)

    def announce(self, ifindex: int, mac: str, *, pids: Collection[int] = ()) -> bool:
        from tapster.kernel.open_files import opened  # rarely needed

        link = self.link(ifindex)
        try:
            if link is None:
                return False
            if link.kind == "tun":
                files = self._open_taps(ifindex, pids)
            else:  # the number of a macvtap is its own
                files = opened(self._nodes.device(ifindex), [os.getpid(), *pids])
            with closing(files):
                return any(tun.announce(file, mac) for file in files)
        except OSError:
            return False

    def set_links(self, changes: Sequence[LinkChange]) -> None:
        for change in changes:
            try:
                self._set(change)
            except KernelError as error:
                if error.errno != EAFNOSUPPORT:
                    raise
                # The kernel has no IPv6, or none at an MTU below 1280. Then there is
                # nothing to switch off.
                self._set(change._replace(no_ipv6=None))

    def _set(self, change: LinkChange) -> None:
        # One message at a time: a device that did not get its MAC must not come up.
        for message in rtnl.set_messages(change):
            self._execute([message], f"configuring device {change.ifindex}")
        if change.disable_ipv6 is not None:
            self._disable_ipv6(change.ifindex, disabled=change.disable_ipv6)
        if change.neighbour is not None:
            self._add_neighbour(change.ifindex, change.neighbour)

    def _disable_ipv6(self, ifindex: int, *, disabled: bool) -> None:
        from tapster.kernel import ipv6  # only acquire and set need it

        try:
            with self.inside():
                ipv6.set_disabled(lambda: self._rtnl.name(ifindex), disabled=disabled)
        except OSError as error:
            raise failure(error, f"configuring device {ifindex}") from error

    def _add_neighbour(self, ifindex: int, mac: str) -> None:
        # The new entry replaces an entry that the bridge has learnt, or an earlier one
        # of ours. A static entry of another program stays.
        action = f"adding a static bridge entry for {mac} behind device {ifindex}"
        try:
            added = rtnl.neighbour_message(ifindex, mac, replace=False)
            self._execute([added], action)
        except KernelError as error:
            if error.errno != EEXIST:
                raise
            link = self.link(ifindex)
            entries = self.static_entries(link.master if link else 0)
            ports = entries.get(mac, set())
            if ports - {ifindex}:
                others = ", ".join(map(self._name_of, sorted(ports - {ifindex})))
                raise KernelError(
                    EEXIST, action, f"there is a static entry for it on {others}"
                ) from error
            replaced = rtnl.neighbour_message(ifindex, mac, replace=True)
            self._execute([replaced], action)

    def _name_of(self, ifindex: int) -> str:
        link = self.link(ifindex)
        return link.name if link else str(ifindex)

    def rename_link(self, ifindex: int, name: str) -> None:
        message = rtnl.rename_message(ifindex, name)
        self._execute([message], f"renaming device {ifindex} to {name!r}")

    def delete_links(self, ifindexes: Sequence[int]) -> set[int]:
        if len(ifindexes) < 2:
            messages = [rtnl.delete_message(ifindex) for ifindex in ifindexes]
            missing = self._execute(messages, "deleting a device", ignore=ENODEV)
            return {ifindexes[place] for place in missing}
        # A new random group: no foreign device is in it, unless its owner drew the
        # same number of 2^30, which people and tools do not use.
        group = (1 << 30) + int.from_bytes(os.urandom(4), "big") % (1 << 30)
        joined = [rtnl.group_message(ifindex, group) for ifindex in ifindexes]
        deleted = rtnl.delete_group_message(group)
        messages = [*joined, deleted]
        missing = self._execute(messages, "deleting devices", ignore=ENODEV)
        return {ifindexes[place] for place in missing if place < len(joined)}

    def number(self, other: Namespace) -> int:
        if other.netns.cookie == self._netns.cookie:
            return HERE
        assert isinstance(other, LinuxNamespace)
        try:
            return self._rtnl.nsid(other.fd)
        except OSError as error:
            raise failure(error, "giving a network namespace a number") from error

    def changed_links(self) -> set[int] | None:
        from tapster.kernel.watch import LinkWatch

        try:
            if self._watch is None:
                with self.inside():
                    self._watch = LinkWatch()
                return None
            return self._watch.changed()
        except OSError as error:
            raise failure(error, "watching the devices") from error

    def forget_changes(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _execute(
        self, messages: Sequence[rtnl.Message], action: str, *, ignore: int = 0
    ) -> list[int]:
        """Execute messages; return the places of those whose error was ignored."""
        try:
            results = self._rtnl.execute(messages)
        except OSError as error:
            raise failure(error, action) from error
        for error_ in results:
            if error_ is not None and error_.errno != ignore:
                raise failure(error_, action)
        return [place for place, error_ in enumerate(results) if error_ is not None]
