# SPDX-License-Identifier: Apache-2.0
"""A host in memory, behind the same port as the real kernel.

Its verbs consist of the same steps as the verbs of the real host: each message and each
ioctl is atomic. Between two steps, another program may act, or the process may die.
`FakeSystem.step` is called before each step, so a test can act there.
"""

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from errno import EBADFD, EBUSY, ENODEV, EOPNOTSUPP, EPERM
from functools import cached_property, partial
from shutil import rmtree
from tempfile import mkdtemp
from weakref import finalize

from tapster.errors import HostError, KernelError, NoSuchLink
from tapster.kernel.descriptors import closing_on_error
from tapster.kernel.port import (
    HERE,
    INTRUSIONS,
    GuardLimit,
    LinkChange,
    Namespace,
    NewMacvtap,
    StandIns,
    Vlans,
    Watch,
    give_or_restore,
)
from tapster.light import Any, NoReturn
from tapster.model import Life, Link, Netns, Process
from tapster.testing.backends import Attached, make_backends
from tapster.testing.descriptors import Descriptors
from tapster.testing.space import (
    MAX_ALTNAME_BYTES,
    MIN_IPV4_MTU,
    FakeDevice,
    Space,
    check_length,
    cut,
    has_ipv6,
    refusal,
)
from tapster.testing.stranger import Stranger
from tapster.testing.watch import FakeWatch
from tapster.testing.world import PIDNS, World

NAMED = "/run/netns"
FIRST_GROUP = 1 << 30


def _nothing(_: str) -> None:
    """Do nothing: the default for `FakeSystem.step`."""


class FakeSystem:
    """A host in memory, with one network namespace that has a `lo`.

    Its descriptors are real descriptors, and it notices when they are closed.
    """

    def __init__(self) -> None:
        self.world = World()
        self.step: Callable[[str], None] = _nothing
        """Called before each step of Tapster's, with a description of the step: "attach
        vnet0 1073741824", "join vnet0" (a further queue), "set 7 master=2 up=True",
        "delete group", and so on. The function may act as another program. An exception
        that it raises leaves the verb, as if the process had been killed there."""
        self._descriptors = Descriptors()
        self._watches: list[FakeWatch] = []
        self._awaited: dict[Process, list[int]] = {}
        """The writing ends of pipes whose reading ends wait for a process."""
        self.attached: Attached = {}
        """What the backends have attached: the wiring, by the name of the backend, the
        id of the ledger, and the id of the lease. A test may take something away."""

    # The port

    @cached_property
    def stand_ins(self) -> StandIns:
        """A ledger that is deleted with this object, and backends in memory."""
        folder = mkdtemp(prefix="tapster-")
        finalize(self, rmtree, folder, ignore_errors=True)
        make = partial(make_backends, self.attached, lambda step: self.begin(step))
        return StandIns(f"{folder}/ledger.db", make, _nothing)

    @property
    def boot_id(self) -> str:
        return self.world.boot_id

    def boottime(self) -> float:
        return self.world.boottime

    def wallclock(self) -> float:
        return self.world.wallclock

    def udev_interferes(self) -> bool:
        return False  # the host in memory has no udev

    def netns(self, where: str | None) -> "FakeNamespace":
        self.begin("open namespace")
        if where is None:
            return self._at(self.world.own)
        path = _path_of(where)
        if path not in self.world.paths:
            raise NoSuchLink(f"there is no network namespace {where!r}", name=where)
        return FakeNamespace(self, self.world.paths[path], path)

    def find(self, netns: Netns) -> "FakeNamespace | None":
        self.begin("find namespace")
        world, cookie = self.looked_at(), netns.cookie
        if netns.boot != world.boot_id:
            return None
        if cookie == world.own or cookie in world.paths.values():
            return self._at(cookie, netns.path)
        if netns.pidns != PIDNS:
            raise HostError(f"processes of pid namespace {netns.pidns} are not seen")
        if cookie in (
            *world.inhabitants.values(),
            *world.handles.values(),
            *world.files.values(),
        ):
            return FakeNamespace(self, cookie, netns.path)
        return None

    def namespaces(self) -> Generator["FakeNamespace"]:
        for cookie in [*self.looked_at().spaces]:
            if cookie in self.world.spaces:
                with closing(self._at(cookie)) as namespace:
                    yield namespace

    def ended_namespaces(self, netnses: Collection[Netns]) -> set[Netns]:
        ended = set()
        for netns in netnses:
            with suppress(HostError):
                namespace = self.find(netns)
                if namespace is None:
                    ended.add(netns)
                else:
                    namespace.close()
        return ended

    def open_vhost(self, _: int) -> tuple[int, ...]:
        return ()

    def process(self, pid: int, *, ended: bool = False) -> Process | None:
        # No process is a zombie here: each is waited for at once.
        return self.world.processes.get(pid)

    def life(self, process: Process) -> Life:
        if process.pidns != PIDNS:
            return Life.CANNOT_TELL
        lives = self.world.processes.get(process.pid) == process
        return Life.LIVES if lives else Life.ENDED

    def open_process(self, process: Process) -> int | None:
        life = self.life(process)
        if life is Life.CANNOT_TELL:
            raise KernelError(EPERM, f"opening process {process.pid}")
        if life is Life.ENDED:
            return None
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._awaited.setdefault(process, []).append(writing)
        return reading

    def watch(self, *, first: int, elsewhere: bool = False) -> FakeWatch:
        watch = FakeWatch(self.looked_at, self._link, first=first, elsewhere=elsewhere)
        self._watches = [watch for watch in self._watches if not watch.closed]
        self._watches.append(watch)
        return watch

    def watch_rules(self, *, first: int, elsewhere: bool = False) -> Sequence[Watch]:
        return ()  # the host in memory has no rules

    def _link(self, cookie: int, ifindex: int) -> Link | None:
        space = self.space(cookie)
        device = space.devices.get(ifindex)
        return _link(space, device) if device else None

    def _at(self, cookie: int, path: str = "") -> "FakeNamespace":
        """Return the namespace with this cookie, by the best path that leads to it."""
        paths = sorted(path for path, of in self.world.paths.items() if of == cookie)
        if path not in paths:
            path = paths[0] if paths else ""
        return FakeNamespace(self, cookie, path)

    # What a test does with the host

    def stranger(self, netns: str | None = None) -> Stranger:
        """Other programs, in this namespace."""
        cookie = self.world.own
        if netns is not None:
            cookie = self.world.paths[_path_of(netns)]
        return Stranger(self.looked_at, cookie)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.world.boottime = round(self.world.boottime + seconds, 3)
        self.set_wallclock(self.world.wallclock + seconds)

    def set_wallclock(self, seconds: float) -> None:
        """Set the wall clock, as an administrator does."""
        self.world.wallclock = round(seconds, 3)

    def add_netns(self, name: str) -> None:
        """Add a named namespace, as `ip netns add` does."""
        path = _path_of(name)
        if path in self.world.paths:
            raise ValueError(f"there is a network namespace {name!r}")
        self.world.paths[path] = self.world.new_space()

    def delete_netns(self, name: str) -> None:
        """Delete the name of a namespace, as `ip netns del` does. The namespace ends
        when no process is in it and no file of it is open."""
        del self.world.paths[_path_of(name)]
        self.world.bury()

    def start(self, pid: int, netns: str | None = None) -> Process:
        """Start a process, inside this namespace."""
        path = netns and _path_of(netns)
        cookie = self.world.paths[path] if path else self.world.own
        return self.world.start(pid, cookie)

    def end(self, pid: int) -> None:
        """End a process."""
        process = self.world.processes[pid]
        self.world.end(pid)
        for writing in self._awaited.pop(process, ()):
            os.close(writing)

    def deliver(self) -> None:
        """Wake the readers of every watch that is open."""
        for watch in self._watches:
            if not watch.closed:
                watch.deliver()

    def reboot(self) -> None:
        """Reboot the host; its open descriptors are closed."""
        self.world.reboot()
        self._descriptors.close_all_but(())

    def close_fd(self, fd: int) -> None:
        """Close a descriptor, also one that only a restored world has."""
        self.looked_at()
        file = self.world.descriptors[fd]
        if self._descriptors.has(file):
            os.close(fd)
            self.looked_at()
        else:
            self.world.close(file)

    def snapshot(self) -> World:
        """Return a copy of the world as it is now."""
        return self.looked_at().copy()

    def restore(self, snapshot: World) -> None:
        """Make the world what it was; the snapshot can be used again.

        Close descriptors that were opened since. A descriptor that was closed since is
        open in this world only: `close_fd` closes it.
        """
        self.world = snapshot.copy()
        self._descriptors.close_all_but(self.world.files)

    def render(self) -> str:
        """Return the whole world as text: equal for worlds that cannot be told
        apart."""
        return self.looked_at().render()

    # For FakeNamespace

    def number(self, cookie: int) -> int:
        """Give the namespace with this cookie a number, and let it be watched."""
        for watch in self._watches:
            if not watch.closed:
                watch.include(cookie)
        return cookie

    def space(self, cookie: int) -> Space:
        """Return the namespace with this cookie, as it is now."""
        return self.looked_at().spaces[cookie]

    def begin(self, step: str) -> None:
        """Begin a step."""
        self.step(step)

    def looked_at(self) -> World:
        """Return the world, with note taken of the descriptors that were closed."""
        for file in self._descriptors.hung_up():
            if file in self.world.files:
                self.world.close(file)
        return self.world

    def open(self, cookie: int) -> tuple[int, int]:
        """Open a file from inside a namespace; the file and its descriptor."""
        file = self.world.open(cookie)
        fd = self._descriptors.open(file)
        self.world.descriptors[fd] = file
        return file, fd


class FakeNamespace:
    """One network namespace of a FakeSystem."""

    def __init__(self, system: FakeSystem, cookie: int, path: str) -> None:
        self._system = system
        self._cookie = cookie
        self._netns = Netns(system.boot_id, cookie, path, PIDNS)
        self._handle = system.world.number()
        system.world.handles[self._handle] = cookie

    @property
    def netns(self) -> Netns:
        return self._netns

    def close(self) -> None:
        self.forget_changes()
        if self._system.world.handles.pop(self._handle, None):
            self._system.world.bury()

    def ifindex(self, name: str) -> int:
        link = self.named(name)
        return link.ifindex if link else 0

    def named(self, name: str) -> Link | None:
        with _failing(f"looking up {name!r}"):
            check_length(name, MAX_ALTNAME_BYTES)
            space = self._step(f"look up {name}")
            device = space.find(name)
            return _link(space, device) if device else None

    def link(self, ifindex: int) -> Link | None:
        if not ifindex:
            return None
        space = self._step(f"get {ifindex}")
        device = space.devices.get(ifindex)
        return _link(space, device) if device else None

    def links_with(self, ifindexes: Collection[int]) -> dict[int, Link]:
        found = map(self.link, ifindexes)
        return {link.ifindex: link for link in found if link}

    def links(self) -> list[Link]:
        space = self._step("dump")
        return [_link(space, device) for _, device in sorted(space.devices.items())]

    def names(self) -> dict[str, int]:
        space = self._step("list names")
        return {device.name: index for index, device in space.devices.items()}

    def ports(self, bridge: Link) -> int:
        with _failing(f"counting the ports of {bridge.name!r}"):
            space = self._step(f"count ports of {bridge.name}")
            found = space.find(bridge.name)
            if found is None:
                raise refusal(ENODEV)
            if found.kind != "bridge":
                raise refusal(EOPNOTSUPP)
            return len(space.ports(found.ifindex))

    def neighbours(self, ifindex: int) -> set[str]:
        device = self._step(f"list neighbours of {ifindex}").devices.get(ifindex)
        return set(device.neighbours) if device else set()

    def static_entries(self, bridge: int) -> dict[str, set[int]]:
        space = self._step(f"list static entries of {bridge}")
        entries: dict[str, set[int]] = {}
        for port in space.ports(bridge):
            for mac in {port.mac, *port.neighbours}:
                entries.setdefault(mac, set()).add(port.ifindex)
        return entries

    def vlans(self, ifindex: int) -> Vlans | None:
        device = self._step(f"list VLANs of {ifindex}").devices.get(ifindex)
        vlans = device.vlans if device else None
        return None if vlans == Vlans(None, ()) else vlans

    def inside(self) -> nullcontext[None]:
        return nullcontext()

    def nft(self, commands: str) -> NoReturn:
        raise HostError("the host in memory has no nftables")

    def nft_rules(self, table: str) -> NoReturn:
        raise HostError("the host in memory has no nftables")

    def nft_device_chains(self) -> NoReturn:
        raise HostError("the host in memory has no nftables")

    def nft_example(self, commands: str, what: str) -> NoReturn:
        raise HostError("the host in memory has no nftables")

    def guard(
        self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]
    ) -> NoReturn:
        raise HostError("the host in memory has no BPF")

    def unguard(self, ifindex: int) -> NoReturn:
        raise HostError("the host in memory has no BPF")

    def is_guarded(
        self, ifindex: int, *, judge: bool, limits: Sequence[GuardLimit]
    ) -> NoReturn:
        raise HostError("the host in memory has no BPF")

    def nft_list(self, what: str) -> NoReturn:
        raise HostError("the host in memory has no nftables")

    def redirect(self, ifindex: int, to: int, stamp: bytes) -> NoReturn:
        raise HostError("the host in memory has no traffic control")

    def redirection(self, ifindex: int) -> None:
        return None

    def unredirect(self, ifindex: int, stamp: bytes) -> None:
        """Do nothing: there is no redirection."""

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
        for _ in range(INTRUSIONS):
            fds = self._create_tap(
                name, ifindex, queues=queues, vnet_hdr=vnet_hdr, uid=uid, gid=gid
            )
            if (
                queues == 1
                or self._step(f"get {ifindex}").open_queues(ifindex) <= queues
            ):
                return fds
            for fd in fds:
                self._system.close_fd(fd)
            self.delete_links([ifindex])
        raise KernelError(EBUSY, f"making tap {name!r}")

    def _create_tap(
        self,
        name: str,
        ifindex: int,
        *,
        queues: int,
        vnet_hdr: bool,
        uid: int | None,
        gid: int | None,
    ) -> tuple[int, ...]:
        # As tapster.kernel.tun.create, step by step.
        with _failing(f"making tap {name!r}"), closing_on_error() as fds:
            first = self._open(fds)
            tap = self._step(f"attach {name} {ifindex}").attach(
                first,
                name,
                exclusive=True,
                multi_queue=queues > 1,
                vnet_hdr=vnet_hdr,
                ifindex=ifindex,
            )
            for _ in range(queues - 1):
                file = self._open(fds)
                space = self._step(f"join {name}")
                joined = _join(space, file, name, multi_queue=True, vnet_hdr=vnet_hdr)
                if joined.ifindex != self._space().attached(first).ifindex:
                    raise refusal(EBADFD)
            space = self._step(f"persist {name}")
            tap = space.attached(first)
            space.edit(tap.ifindex, persist=True, uid=uid, gid=gid)
        return tuple(fds)

    def open_tap(
        self, name: str, ifindex: int, *, multi_queue: bool, vnet_hdr: bool
    ) -> int:
        with _failing(f"opening tap {name!r}"), closing_on_error() as fds:
            found = self._step(f"find {name}").find(name)
            if found is None or found.ifindex != ifindex:
                raise refusal(EBADFD)
            file = self._open(fds)
            space = self._step(f"join {name}")
            joined = _join(
                space, file, name, multi_queue=multi_queue, vnet_hdr=vnet_hdr
            )
            if joined.ifindex != ifindex:
                raise refusal(EBADFD)
        return fds[0]

    def is_held(self, name: str, ifindex: int, *, vnet_hdr: bool) -> bool:
        return self._step(f"is {name} held").open_queues(ifindex) > 0

    def held_taps(self) -> set[int]:
        space = self._space()
        return {index for index in space.devices if space.open_queues(index)}

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
                file = self._system.world.descriptors[opened]
                with _failing(f"giving tap {name!r} another owner"):
                    space = self._step(f"give {name}")
                    space.edit(space.attached(file).ifindex, **_owners(uid, gid))
            finally:
                self._system.close_fd(opened)

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
        space = self._step(f"restore tap {ifindex}")
        if not space.open_queues(ifindex):
            return False
        space.edit(ifindex, persist=True, **_owners(uid, gid))
        return True

    def create_macvtap(
        self, device: NewMacvtap, *, beneath: Namespace | None = None
    ) -> None:
        with _failing(f"making macvtap {device.name!r}"):
            space = self._step(f"add {device.name} {device.ifindex}")
            cookie = self.netns.cookie if beneath is None else beneath.netns.cookie
            space.add_macvtap(device, self._system.world.spaces[cookie])

    def open_macvtap(
        self, ifindex: int, *, queues: int, vnet_hdr: bool
    ) -> tuple[int, ...]:
        with _failing(f"opening macvtap {ifindex}"), closing_on_error() as fds:
            for _ in range(queues):
                space = self._step(f"open {ifindex}")
                # The file belongs to the namespace of the process that opens it.
                file, fd = self._system.open(self._system.world.own)
                fds.append(fd)
                space.open_macvtap(file, ifindex)
        return tuple(fds)

    def macvtap_holders(self, ifindexes: Collection[int]) -> dict[int, int]:
        return {}  # files belong to no process here

    def announce(self, ifindex: int, mac: str, *, pids: Collection[int] = ()) -> bool:
        # No step: the host in memory has no frames, so nothing changes.
        device = self._space().devices.get(ifindex)
        return bool(device and device.up and self._space().open_queues(ifindex))

    def set_links(self, changes: Sequence[LinkChange]) -> None:
        for change in changes:
            with _failing(f"configuring device {change.ifindex}"):
                self._set(change)

    def rename_link(self, ifindex: int, name: str) -> None:
        with _failing(f"renaming device {ifindex} to {name!r}"):
            self._step(f"rename {ifindex}").rename(ifindex, name)

    def delete_links(self, ifindexes: Sequence[int]) -> set[int]:
        failures: list[OSError] = []
        found: set[int] = set()
        if len(ifindexes) < 2:
            for ifindex in ifindexes:
                with _collecting(failures, ignore=ENODEV):
                    self._step(f"delete {ifindex}").delete(ifindex)
                    found.add(ifindex)
            _raise_first(failures, "deleting a device")
            return set(ifindexes) - found
        group = FIRST_GROUP + self._system.world.number()
        for ifindex in ifindexes:
            with _collecting(failures, ignore=ENODEV):
                self._step(f"group {ifindex}").edit(ifindex, group=group)
                found.add(ifindex)
        with _collecting(failures, ignore=ENODEV):
            self._step("delete group").delete_group(group)
        _raise_first(failures, "deleting devices")
        return set(ifindexes) - found

    def number(self, other: Namespace) -> int:
        self._step("number")
        if other.netns.cookie == self.netns.cookie:
            return HERE
        return self._system.number(other.netns.cookie)

    def changed_links(self) -> set[int] | None:
        watches = self._step("read changes").watches
        changed = watches.get(self._handle)
        watches[self._handle] = set()
        return changed

    def forget_changes(self) -> None:
        if self._cookie in self._system.world.spaces:
            self._space().watches.pop(self._handle, None)

    def _set(self, change: LinkChange) -> None:
        ifindex = change.ifindex
        port = {field: getattr(change, field) for field in _PORT}
        unset: dict[str, Any] = dict.fromkeys((*_PORT, "neighbour", "vlans"))
        setting = change._replace(**unset)
        if any(value is not None for value in setting[1:]):
            self._step(f"set {_shown(setting)}").change(setting)
        if any(value is not None for value in port.values()):
            self._step(f"change port {ifindex}").change_port(ifindex, **port)
        if change.vlans is not None:
            self._step(f"set VLANs of {ifindex}").set_vlans(ifindex, change.vlans)
        if change.disable_ipv6 is not None:
            # Really a step of its own. No promise depends on the moment between.
            self._space().disable_ipv6(ifindex, disabled=change.disable_ipv6)
        if change.neighbour is not None:
            space = self._step(f"add neighbour of {ifindex}")
            space.add_neighbour(ifindex, change.neighbour)

    def _step(self, step: str) -> Space:
        """Begin a step. Return the namespace; the caller keeps nothing of it."""
        self._system.begin(step)
        return self._space()

    def _space(self) -> Space:
        return self._system.space(self._cookie)

    def _open(self, fds: list[int]) -> int:
        """Open /dev/net/tun inside this namespace. Return the file."""
        self._system.begin("open tun")
        file, fd = self._system.open(self._cookie)
        fds.append(fd)
        return file


_PORT = ("isolated", "learning", "root_guard", "bpdu_guard")
"""The fields of a change that only a bridge port has."""


def _join(
    space: Space, file: int, name: str, *, multi_queue: bool, vnet_hdr: bool
) -> FakeDevice:
    """Attach to the tap that has this name, as tapster.kernel.tun.join does."""
    if space.find(cut(name)) is None:
        raise refusal(EBADFD)
    return space.attach(
        file, name, exclusive=False, multi_queue=multi_queue, vnet_hdr=vnet_hdr
    )


def _owners(uid: int | None, gid: int | None) -> dict[str, int]:
    """Return the owner and the group of a tap that are to be set."""
    wanted = {"uid": uid, "gid": gid}
    return {key: value for key, value in wanted.items() if value is not None}


def _path_of(where: str) -> str:
    return where if "/" in where else f"{NAMED}/{where}"


def _link(space: Space, device: FakeDevice) -> Link:
    return Link(
        ifindex=device.ifindex,
        name=device.name,
        kind=device.kind,
        alias=device.alias,
        mac=device.mac,
        mtu=device.mtu,
        up=device.up,
        master=device.master,
        carrier=space.carrier(device),
        isolated=device.isolated,
        learning=device.learning,
        flood=device.learning,
        vlan_filtering=device.vlan_filtering,
        no_ipv6=device.no_ipv6 or device.ipv6_disabled or not has_ipv6(device),
        ipv6_disabled=device.ipv6_disabled or not has_ipv6(device),
        open=device.kind == "tun" and space.open_queues(device.ifindex) > 0,
        tap_owner=device.uid,
        tap_group=device.gid,
        persistent=device.kind != "tun" or device.persist,
        queues=space.open_queues(device.ifindex) if device.multi_queue else None,
        no_ipv4=device.no_ipv4 or device.mtu < MIN_IPV4_MTU,
        root_guard=device.root_guard,
        bpdu_guard=device.bpdu_guard,
        forwarding=bool(device.master) and device.up and space.carrier(device),
        mode=device.mode,
        lower=device.lower,
    )


def _shown(change: LinkChange) -> str:
    fields = zip(change._fields[1:], change[1:], strict=True)
    values = [f"{key}={value}" for key, value in fields if value is not None]
    return " ".join([str(change.ifindex), *values])


@contextmanager
def _failing(action: str) -> Iterator[None]:
    """Raise the errors of the host in memory as the port does."""
    try:
        yield
    except OSError as error:
        raise _failure(error, action) from error


@contextmanager
def _collecting(failures: list[OSError], *, ignore: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != ignore:
            failures.append(error)


def _raise_first(failures: Sequence[OSError], action: str) -> None:
    for error in failures:
        raise _failure(error, action) from error


def _failure(error: OSError, action: str) -> KernelError:
    return KernelError(error.errno or 0, action, error.strerror or "")
