# SPDX-License-Identifier: Apache-2.0
"""Every state of the kernel that was reached, and what each call does to it.

The kernel is the one in memory (`tapster.testing`). A state also records which actor
made each device. So an invariant can tell an actor that changes its own device from an
actor that changes the device of another.
"""

from errno import ENODEV, ENOENT, ENXIO, EPERM
from typing import Any, NamedTuple

from explorer.calls import PLACES, Call, Raised, freeze, raised
from tapster.errors import KernelError, TapsterError
from tapster.kernel.port import LinkChange
from tapster.model import parse_stamp
from tapster.testing import FakeDevice, FakeNamespace, FakeSystem, World
from tapster.testing.space import Space

BRIDGE = "br0"
"""The bridge of every scenario. No actor changes it."""
BRIDGE_IFINDEX = 2
LOWER = "low"
"""The lower device of every macvtap. No actor changes it."""
LOWER_IFINDEX = 4
CONSTANT_QUERIES = ((BRIDGE,), (LOWER,))
"""The arguments of queries whose answer never changes."""
HOST = "the host"
"""The author of the devices that exist at the start."""
ADMINISTRATOR = "administrator"
USER = 4711
"""The user id of a tap's user, in the scenarios that have one."""


class Change(NamedTuple):
    """What a call did to one device."""

    what: str
    """"made", "changed", "attached to" or "deleted"."""
    device: FakeDevice
    """The device before the call; if it was made, after the call."""
    author: str
    """Which actor made the device."""


class KernelAnswer(NamedTuple):
    """What a call did."""

    state: int
    answer: Any
    changes: tuple[Change, ...]


class KernelState(NamedTuple):
    """One state of the kernel."""

    devices: dict[int, FakeDevice]
    """The devices of the first namespace, by ifindex."""
    elsewhere: dict[int, FakeDevice]
    """The devices of the second namespace."""
    authors: dict[int, str]
    """Which actor made each device."""
    disturbed: frozenset[int]
    """The devices that an administrator has deleted, renamed or moved. No promise is
    made about their connection."""
    numbers: dict[int, int]
    """The number of each macvtap, by which its node is opened."""

    def find(self, ifindex: int) -> FakeDevice | None:
        """Return a device of either namespace."""
        return self.devices.get(ifindex) or self.elsewhere.get(ifindex)


class KernelStates:
    """States are numbered. State 0 has a bridge and a lower device."""

    def __init__(self, users: tuple[str, ...]) -> None:
        """Give each of `users` a handle of its own, and so a watch, in each
        namespace."""
        self._system = FakeSystem()
        self._system.add_netns("pod")
        stranger = self._system.stranger()
        stranger.add_bridge(BRIDGE, mac="02:00:00:00:00:fe")
        stranger.set_by_name(BRIDGE, mtu=1500)
        stranger.add_veth(LOWER, "far")
        assert stranger.show(LOWER) == self._space("kernel").devices[LOWER_IFINDEX]
        self._namespaces = {
            (user, place): FakeNamespace(self._system, netns.cookie, netns.path)
            for user in users
            for place, netns in PLACES.items()
        }
        self._worlds: list[World] = []
        self.views: list[KernelState] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._done: dict[tuple[int, str, Call], KernelAnswer] = {}
        devices, elsewhere = self._devices()
        self._at = self._number(KernelState(devices, elsewhere, {}, frozenset(), {}))

    def do(self, state: int, user: str, call: Call) -> KernelAnswer:
        """Make a call in a state."""
        key = (state, user, call)
        if key not in self._done:
            self._done[key] = self._execute(state, user, call)
        return self._done[key]

    def _execute(self, state: int, user: str, call: Call) -> KernelAnswer:
        if call.verb in ("number_of", "open_number"):
            return KernelAnswer(state, self._ask_number(state, call), ())
        if self._at != state:
            self._system.restore(self._worlds[state])
            self._at = state
        named = dict(call.named)
        keeps_open = named.pop("keeps_open", False)
        others = OtherPrograms(self._system)
        target = others if call.on == "outside" else self._namespaces[user, call.on]
        try:
            answer = freeze(getattr(target, call.verb)(*call.args, **named))
        except TapsterError as error:
            answer = raised(error)
        except OSError as error:
            answer = raised(KernelError(error.errno or 0, call.verb))
        if call.verb == "create_tap" and type(answer) is tuple:
            # The descriptors are the VM's. It has them open only in a scenario that
            # is about that.
            for fd in answer:
                self._system.close_fd(fd)
            answer = ()
            if keeps_open:
                others.hold(call.args[1])
        view, changes = self._compare(self.views[state], user, call, answer)
        self._at = self._number(view)
        return KernelAnswer(self._at, answer, changes)

    def _ask_number(self, state: int, call: Call) -> Any:
        """Answer what the number of a macvtap is, or which macvtap has a number."""
        (asked,) = call.args
        numbers = self.views[state].numbers
        if call.verb == "number_of":
            return numbers.get(asked) or Raised(KernelError, "number", ENOENT)
        for ifindex, number in numbers.items():
            if number == asked:
                return ifindex
        return Raised(KernelError, "open", ENXIO)

    def _compare(
        self, old: KernelState, user: str, call: Call, answer: Any
    ) -> tuple[KernelState, tuple[Change, ...]]:
        devices, elsewhere = self._devices()
        changes: list[Change] = []
        for before, after in ((old.devices, devices), (old.elsewhere, elsewhere)):
            changes += [
                Change(
                    "changed" if ifindex in after else "deleted",
                    device,
                    old.authors.get(ifindex, HOST),
                )
                for ifindex, device in before.items()
                if after.get(ifindex) != device
            ]
        exist = {**elsewhere, **devices}
        authors = {index: by for index, by in old.authors.items() if index in exist}
        numbers = {index: n for index, n in old.numbers.items() if index in exist}
        for ifindex, device in exist.items():
            if old.find(ifindex) is None:
                authors[ifindex] = user
                changes.append(Change("made", device, user))
                if device.kind == "macvtap":
                    numbers[ifindex] = _lowest_free(numbers)
        if call.verb in ("open", "attach") and type(answer) is tuple:
            _, ifindex, _ = answer
            if ifindex in old.devices:
                author = authors.get(ifindex, HOST)
                changes = [Change("attached to", devices[ifindex], author)]
        disturbed = old.disturbed
        if user == ADMINISTRATOR:
            disturbed |= {change.device.ifindex for change in changes}
        view = KernelState(devices, elsewhere, authors, disturbed, numbers)
        return view, tuple(changes)

    def _number(self, view: KernelState) -> int:
        """Return the number of the state that the kernel is in now."""
        parts: list[object] = [
            frozenset(view.authors.items()),
            view.disturbed,
            frozenset(view.numbers.items()),
        ]
        for place in PLACES:
            space = self._space(place)
            parts += [
                frozenset(space.devices.values()),
                frozenset(
                    (watch, frozenset(seen)) for watch, seen in space.watches.items()
                ),
                space.counter,
                space.macs,
                frozenset(space.queues.items()),
            ]
        key = tuple(parts)
        if key not in self._numbers:
            self._numbers[key] = len(self._worlds)
            self._worlds.append(self._system.snapshot())
            self.views.append(view)
        return self._numbers[key]

    def _devices(self) -> tuple[dict[int, FakeDevice], dict[int, FakeDevice]]:
        here, pod = self._space("kernel").devices, self._space("pod").devices
        loopback = 1
        return dict(here), {i: device for i, device in pod.items() if i != loopback}

    def _space(self, place: str) -> Space:
        return self._system.space(PLACES[place].cookie)


def _lowest_free(numbers: dict[int, int]) -> int:
    """Return the number that the kernel gives to a new macvtap: tap_get_minor()."""
    return min(set(range(1, len(numbers) + 2)) - set(numbers.values()))


class OtherPrograms:
    """What programs other than Tapster do, most of it by name."""

    def __init__(self, system: FakeSystem) -> None:
        self._system = system
        self._stranger = system.stranger()

    def take(self, name: str) -> int:
        """Make a tap of the program's own; fails if the name is in use."""
        return self._ifindex(self._stranger.add_tap(name))

    def free(self, ifindex: int) -> None:
        """Delete exactly the device that was made."""
        self._stranger.delete_by_ifindex(ifindex)

    def down(self, name: str) -> None:
        self._stranger.set_by_name(name, up=False)

    def nomaster(self, name: str) -> None:
        self._stranger.set_by_name(name, master="")

    def address(self, name: str, mac: str) -> None:
        self._stranger.set_by_name(name, mac=mac)

    def overrun(self) -> None:
        """Change so many devices that the kernel drops the reports of every watch."""
        self._space.watches.clear()

    def delete(self, name: str) -> None:
        self._stranger.delete_by_name(name)

    def rename(self, name: str, to: str) -> None:
        self._stranger.rename(name, to)

    def move(self, name: str) -> None:
        """Move a device to the second namespace, as `ip link set netns pod` does.

        dev_change_net_namespace(): the device goes down and off its bridge, and keeps
        its ifindex, its alias and the files that have it open. A device without a stamp
        is left alone: nothing tells whose it is after that.
        """
        here, pod = self._space, self._system.space(PLACES["pod"].cookie)
        device = here.find(name)
        if device is None or parse_stamp(device.alias) is None:
            raise OSError(ENODEV, name)
        ifindex = device.ifindex
        here.change(LinkChange(ifindex, up=False, master=0))
        device = here.get(ifindex)
        files = [file for file, index in here.queues.items() if index == ifindex]
        for file in files:
            del here.queues[file]
        here.delete(ifindex)
        pod.devices[ifindex] = device
        pod.names[name] = ifindex
        pod.queues.update(dict.fromkeys(files, ifindex))
        pod.edit(ifindex)  # so that watches there report it

    def hold(self, ifindex: int) -> None:
        """Open a tap, and keep it open."""
        # The number of the file follows from the device: it makes no difference
        # between two states that have the same future.
        file, world = -ifindex, self._system.world
        device = self._space.get(ifindex)
        world.files[file] = PLACES["kernel"].cookie
        try:
            self._space.attach(
                file,
                device.name,
                exclusive=False,
                multi_queue=device.multi_queue,
                vnet_hdr=device.vnet_hdr,
            )
        except OSError:
            del world.files[file]
            raise

    def hold_by_name(self, name: str) -> int:
        """Open the tap that has this name, and keep it open. Return its ifindex."""
        ifindex = self._ifindex(name)
        self.hold(ifindex)
        return ifindex

    def hold_as_user(self, name: str, uid: int) -> int:
        """Open a tap by name as a process of a user: tun_not_capable()."""
        device = self._space.get(self._ifindex(name))
        if device.uid not in (None, uid):
            raise OSError(EPERM, name)
        return self.hold_by_name(name)

    def let_go(self, ifindex: int) -> None:
        """Close a tap that is held open."""
        if -ifindex in self._system.world.files:
            self._system.world.close(-ifindex)

    # What the programs do that Tapster is compared with

    def exists(self, name: str) -> bool:
        return self._stranger.show(name) is not None

    def open(self, name: str) -> tuple[int, int, str]:
        """Open a tap, or make one, as TUNSETIFF does without IFF_TUN_EXCL.

        The tap ends with the VM that has it open. Return handle, ifindex and name.
        """
        handle = self._stranger.open_tap(name)
        device = self._space.attached(handle)
        return handle, device.ifindex, device.name

    def close(self, handle: int) -> None:
        self._stranger.close(handle)

    def attach(self, name: str, ifindex: int) -> tuple[int, int, str]:
        """Make a tap as Tapster does, but without IFF_TUN_EXCL."""
        handle = self._system.world.open(1)
        try:
            device = self._space.attach(
                handle,
                name,
                exclusive=False,
                multi_queue=False,
                vnet_hdr=True,
                ifindex=ifindex,
            )
            self._space.edit(device.ifindex, persist=True)
        finally:
            self._stranger.close(handle)
        return handle, device.ifindex, device.name

    def connect(self, name: str) -> None:
        """Put a device on the bridge, and set it up."""
        self._stranger.set_by_name(name, master=BRIDGE, up=True)

    @property
    def _space(self) -> Space:
        return self._system.space(PLACES["kernel"].cookie)

    def _ifindex(self, name: str) -> int:
        device = self._stranger.show(name)
        if device is None:
            raise OSError(ENODEV, name)
        return device.ifindex
