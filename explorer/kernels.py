# SPDX-License-Identifier: Apache-2.0
"""Every state of the fake kernel that was reached, and what each call does to it.

To the kernel's own state belongs here who made each device, so that whoever
harms a device of another can be told from whoever minds his own.
"""

from typing import Any, NamedTuple

from explorer.calls import Call, freeze, raised
from tapster.errors import KernelError, TapsterError
from tapster.testing import Device, FakeNamespace, FakeSystem, World
from tapster.testing.space import Space

BRIDGE = "br0"
"""The bridge of every scenario. Nobody touches it."""
BRIDGE_IFINDEX = 2
LOWER = "low"
"""What macvtaps sit on in every scenario. Nobody touches it either."""
LOWER_IFINDEX = 4
LOOKS = ((BRIDGE,), (LOWER,))
"""Questions to the kernel that have one answer for ever."""
HOST = "the host"
"""Who made what was there from the start."""


class Change(NamedTuple):
    """What a call did to one device."""

    what: str
    """"made", "changed", "attached to" or "deleted"."""
    device: Device
    """As it was before; as it is, if it was made."""
    author: str
    """Who made it."""


class Did(NamedTuple):
    """What a call did."""

    state: int
    answer: Any
    changes: tuple[Change, ...]


class View(NamedTuple):
    """One state of the kernel."""

    devices: dict[int, Device]
    authors: dict[int, str]
    """Who made each device."""
    moved: frozenset[int]
    """The devices that an administrator has deleted or renamed: what becomes of
    those is nobody else's fault."""


class Kernels:
    """States are numbered; 0 has a bridge and nothing else."""

    def __init__(self, users: tuple[str, ...]) -> None:
        """Each of `users` has a handle of the namespace, and so a watch, of its own."""
        self._system = FakeSystem()
        stranger = self._system.stranger()
        stranger.add_bridge(BRIDGE, mac="02:00:00:00:00:fe")
        stranger.set_by_name(BRIDGE, mtu=1500)
        stranger.add_veth(LOWER, "far")
        assert stranger.show(LOWER) == self._system.space(1).devices[LOWER_IFINDEX]
        self._kernels = {user: FakeNamespace(self._system, 1, "") for user in users}
        self._worlds: list[World] = []
        self.views: list[View] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._done: dict[tuple[int, str, Call], Did] = {}
        devices = dict(self._system.space(1).devices)
        self._at = self._number(View(devices, {}, frozenset()))

    def do(self, state: int, who: str, call: Call) -> Did:
        """Make a call in a state."""
        key = (state, who, call)
        if key not in self._done:
            self._done[key] = self._execute(state, who, call)
        return self._done[key]

    def _execute(self, state: int, who: str, call: Call) -> Did:
        if self._at != state:
            self._system.restore(self._worlds[state])
            self._at = state
        outside = call.on == "outside"
        target = Outside(self._system) if outside else self._kernels[who]
        method = getattr(target, call.verb)
        try:
            answer = freeze(method(*call.args, **dict(call.named)))
        except TapsterError as error:
            answer = raised(error)
        except OSError as error:
            answer = raised(KernelError(error.errno or 0, call.verb))
        if call.verb in ("create_tap", "open_macvtap") and type(answer) is tuple:
            # Closed at once: no machine really runs.
            for fd in answer:
                self._system.close_fd(fd)
            answer = ()
        view, changes = self._compare(self.views[state], who, call, answer)
        self._at = self._number(view)
        return Did(self._at, answer, changes)

    def _compare(
        self, old: View, who: str, call: Call, answer: Any
    ) -> tuple[View, tuple[Change, ...]]:
        devices = dict(self._system.space(1).devices)
        changes = [
            Change(
                "changed" if ifindex in devices else "deleted",
                was,
                old.authors.get(ifindex, HOST),
            )
            for ifindex, was in old.devices.items()
            if devices.get(ifindex) != was
        ]
        authors = {one: of for one, of in old.authors.items() if one in devices}
        for ifindex, device in devices.items():
            if ifindex not in old.devices:
                authors[ifindex] = who
                changes.append(Change("made", device, who))
        if call.verb in ("open", "attach") and type(answer) is tuple:
            _, ifindex, _ = answer
            if ifindex in old.devices:
                author = authors.get(ifindex, HOST)
                changes = [Change("attached to", devices[ifindex], author)]
        moved = old.moved
        if who == "administrator":
            moved |= {change.device.ifindex for change in changes}
        return View(devices, authors, moved), tuple(changes)

    def _number(self, view: View) -> int:
        """The number of the state that the kernel is in now."""
        space = self._system.space(1)
        key = (
            frozenset(space.devices.values()),
            tuple(
                (watch, frozenset(seen))
                for watch, seen in sorted(space.watches.items())
            ),
            space.counter,
            space.macs,
            frozenset(space.queues.items()),
            frozenset(view.authors.items()),
            view.moved,
        )
        if key not in self._numbers:
            self._numbers[key] = len(self._worlds)
            self._worlds.append(self._system.snapshot())
            self.views.append(view)
        return self._numbers[key]


class Outside:
    """What programs do that are not Tapster: by name, most of it."""

    def __init__(self, system: FakeSystem) -> None:
        self._system = system
        self._stranger = system.stranger()

    def take(self, name: str) -> int:
        """Make a tap of one's own; fails if the name is in use."""
        return self._ifindex(self._stranger.add_tap(name))

    def free(self, ifindex: int) -> None:
        """Delete the very device that was made."""
        self._stranger.delete_by_ifindex(ifindex)

    def down(self, name: str) -> None:
        self._stranger.set_by_name(name, up=False)

    def nomaster(self, name: str) -> None:
        self._stranger.set_by_name(name, master="")

    def delete(self, name: str) -> None:
        self._stranger.delete_by_name(name)

    def rename(self, name: str, to: str) -> None:
        self._stranger.rename(name, to)

    # What the programs do that Tapster is compared with

    def exists(self, name: str) -> bool:
        return self._stranger.show(name) is not None

    def open(self, name: str) -> tuple[int, int, str]:
        """Open a tap, or make one, as TUNSETIFF does without IFF_TUN_EXCL.

        It goes with the machine that has it open. Handle, ifindex and name.
        """
        handle = self._stranger.open_tap(name)
        device = self._space.attached(handle)
        return handle, device.ifindex, device.name

    def close(self, handle: int) -> None:
        self._stranger.close(handle)

    def attach(self, name: str, ifindex: int) -> tuple[int, int, str]:
        """As Tapster makes a tap, but for IFF_TUN_EXCL."""
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
        """Onto the bridge, and up."""
        self._stranger.set_by_name(name, master=BRIDGE, up=True)

    @property
    def _space(self) -> Space:
        return self._system.space(1)

    def _ifindex(self, name: str) -> int:
        device = self._stranger.show(name)
        assert device is not None
        return device.ifindex
