# SPDX-License-Identifier: Apache-2.0
"""The account of one network namespace: its devices, its VMs, and every change.

Pure: the account takes the kernel's reports and the actors' marks in the order of the
kernel. It only records. The judge decides what is harm.

A VM runs from its message `Begin` to its message `End`, or to the message that its
process is to be killed. An *act* is what an administrator or a stranger does to a name,
from `Acting` to `Acted`. An act accounts for the changes that such an act makes, and no
more, on a device that had the name in that time.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from soak.events import LinkEvent, LinkLook
from soak.marks import Mark
from soak.messages import Acting, Begin

ADMIN, STRANGER = "admin", "stranger"

REBUILD = "rebuild"
GONE = "gone"
ANY = None
EFFECTS: dict[str, tuple[tuple[str, object], ...]] = {
    "del": (("up", False), ("master", 0), (GONE, True)),
    "down": (("up", False),),
    "nomaster": (("master", 0),),
    "master": (("master", 0), ("master", ANY)),  # off one bridge, onto another
    "rename": (("name", ANY),),
    "address": (("mac", ANY),),
    # Into another namespace, where the storm does not look.
    "away": (("up", False), ("master", 0), (GONE, True)),
    # A bridge is deleted, and made again.
    REBUILD: (("up", False), (GONE, True)),
}
"""The attributes that an act changes, and their new values; each effect counts once."""
PORT_EFFECTS: tuple[tuple[str, object], ...] = (("master", 0),)
"""The same for the ports of a bridge that is deleted."""

REMEMBERED = 60.0
"""Seconds that the account remembers an ended VM after its name is free."""
STORY = 15
"""How many of a device's last entries a report shows."""


@dataclass
class VmRecord:
    """A network card of a VM, and the promises of its actor."""

    token: str
    process: str
    """The process that announced the VM."""
    ledger: str
    name: str
    ifindex: int
    wait: float
    bound: bool
    """The VM ends with its process."""
    fleeting: bool
    """Tapster replaces the device at release: for a moment no device has the name."""
    wanted: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The promised state of the device; two values while a manager moves the VM."""
    on: tuple[str, ...] = ()
    """The bridges that `wanted` promises, by name: a bridge may be made again."""
    differed: float = 0.0
    """Until when the device differed from the promise, for a known reason."""
    running: bool = True
    lost: bool = False
    """An outsider has deleted its device."""
    until: float = inf
    """Until then, at least, the ledger reserves the name."""
    unheld: bool = False
    """No device holds the name, so another ledger may give it to a VM."""

    def __str__(self) -> str:
        return f"{self.token} ({self.name}, ifindex {self.ifindex})"

    def is_to_hold(self, now: float) -> bool:
        """Say whether the device of the stopped VM must still exist."""
        return now < self.until and not self.fleeting

    def note_difference(self, look: LinkLook, now: float) -> None:
        """Remember until when the device differed from the promise."""
        if any(getattr(look, key) not in goal for key, goal in self.wanted.items()):
            self.differed = inf
        elif self.differed == inf:
            self.differed = now

    def is_mended(self, attribute: str, before: LinkLook, after: LinkLook) -> bool:
        """Say whether a change restores the promised state."""
        if attribute == "mtu":
            # A device that was made with its bridge's MTU takes that of the next.
            return len(self.on) > 1
        goal = self.wanted.get(attribute, ())
        was, becomes = getattr(before, attribute, None), getattr(after, attribute, None)
        if attribute == "up" and not becomes:
            # Tapster takes a port down while it joins a bridge.
            bridges = self.wanted.get("master", ())
            return len(bridges) > 1 or before.master not in bridges
        better = becomes in goal or (attribute == "master" and becomes == 0)
        return better and (was not in goal or len(goal) > 1)


@dataclass
class ActRecord:
    """An outsider's act on a name, from one mark to the next."""

    by: str
    kind: str
    verb: str
    name: str
    late_for: VmRecord | None
    """The ended VM that a stranger cleans up after."""
    could: set[int]
    """The devices that had the name during the act."""
    ports: set[int] = field(default_factory=set)
    """The ports of the bridge that is rebuilt."""
    did: Counter[tuple[int, str, object]] = field(default_factory=Counter)
    over: float | None = None
    harm: list[tuple[VmRecord, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.by} ({self.verb} {self.name})"

    def effect(
        self, ifindex: int, attribute: str, becomes: object
    ) -> tuple[int, str, object] | None:
        """Return this act's unspent effect that accounts for a change."""
        effects = PORT_EFFECTS if ifindex in self.ports else ()
        for what, to in EFFECTS[self.verb] if ifindex in self.could else effects:
            effect = ifindex, what, to
            if what == attribute and to in (ANY, becomes) and not self.did[effect]:
                return effect
        return None


@dataclass
class DeviceRecord:
    """A device as the kernel reported it last."""

    look: LinkLook
    altnames: tuple[str, ...]
    vm: VmRecord | None = None
    foreign: str = ""
    """The owner, if the device is neither Tapster's nor still without an owner."""
    touched: dict[str, ActRecord] = field(default_factory=dict)
    """The attributes that outsiders have changed."""
    deleted: float | None = None
    """When the device was deleted, or slightly earlier."""


class DeviceChange(NamedTuple):
    """One attribute of a device has changed; the device's record is as before."""

    ifindex: int
    device: DeviceRecord
    attribute: str
    act: ActRecord | None
    """The act that accounts for the change."""
    repairs: bool
    """The change restores a running VM's device."""

    @property
    def vm(self) -> VmRecord | None:
        return self.device.vm

    def __str__(self) -> str:
        return f"{self.attribute} of {self.device.look.name} (ifindex {self.ifindex})"


class Account:
    """Everything that is known about one network namespace."""

    def __init__(self) -> None:
        self.now = 0.0
        self.devices: dict[int, DeviceRecord] = {}
        self.vms: dict[str, VmRecord] = {}
        self._deleted: dict[int, DeviceRecord] = {}
        self._acts: dict[str, ActRecord] = {}
        self._killed: set[str] = set()
        self._recent: deque[LinkEvent | Mark] = deque(maxlen=2000)

    # Reports of the kernel

    def changes(self, event: LinkEvent, heard: float) -> Iterator[DeviceChange]:
        """Yield each change that a report tells of, then record what it shows.

        `heard` is when the report was read: the change was not later than that.
        """
        self._recent.append(event)
        device = self.devices.get(event.ifindex)
        if device is None:
            device = DeviceRecord(event.look, event.altnames)
            left = self._deleted.get(event.ifindex)
            if left is not None and left.look.alias == event.look.alias != "":
                device.touched = left.touched  # it was moved away, and is back
            self.devices[event.ifindex] = device
            self._renumber(event.look.name)
        for attribute in _changes(device.look, event):
            yield self._attribute(event, device, attribute)
            if device.vm is not None:
                self.unhold(device.vm, attribute, self.now)
        device.look, device.altnames = event.look, event.altnames
        if device.vm is not None:
            device.vm.note_difference(event.look, heard)
        if event.gone:
            self._deleted[event.ifindex] = self.devices.pop(event.ifindex)
            device.deleted = self.now
        else:
            self.note_name(event.ifindex, device)

    def _attribute(
        self, event: LinkEvent, device: DeviceRecord, attribute: str
    ) -> DeviceChange:
        """Find the act behind a change. Spend it unless the change is a repair."""
        vm = device.vm
        repairs = vm is not None and (
            vm.running and vm.is_mended(attribute, device.look, event.look)
        )
        becomes = True if attribute == GONE else getattr(event.look, attribute)
        act = self._cause(event.ifindex, attribute, becomes, spend=not repairs)
        if act is not None:
            device.touched[attribute] = act
        elif repairs:
            device.touched.pop(attribute, None)
        return DeviceChange(event.ifindex, device, attribute, act, repairs)

    def _cause(
        self, ifindex: int, attribute: str, becomes: object, *, spend: bool
    ) -> ActRecord | None:
        """Return the act that accounts for a change; `spend` uses its effect up."""
        for act in sorted(self._acts.values(), key=lambda act: act.kind != ADMIN):
            if effect := act.effect(ifindex, attribute, becomes):
                act.did[effect] += spend
                return act
        return None

    def note_name(self, ifindex: int, device: DeviceRecord) -> None:
        """Let acts on the device's name reach the device."""
        for act in self._acts.values():
            if has_name(device, act.name):
                act.could.add(ifindex)
            if act.verb == REBUILD and device.look.master in act.could:
                act.ports.add(ifindex)

    def promise(self, vm: VmRecord, *bridges: str) -> None:
        """Record that a VM's device is to be on this bridge; on one of two while it
        moves; on none if the name is empty."""
        vm.on = bridges
        vm.wanted["master"] = tuple(map(self.bridge, bridges))

    def _renumber(self, bridge: str) -> None:
        """Let the VMs of a bridge that was made again be promised the new bridge."""
        for vm in self.vms.values():
            if bridge in vm.on:
                self.promise(vm, *vm.on)

    def unhold(self, vm: VmRecord, attribute: str, since: float) -> None:
        """Record that the device may not hold the VM's name any more."""
        if attribute == "name":
            vm.unheld = True
        if attribute == GONE:
            vm.unheld = True
            if vm.running:
                vm.lost = True
                vm.until = since + vm.wait

    # Marks of actors

    def note(self, mark: Mark) -> None:
        self._recent.append(mark)

    def begin(self, process: str, begin: Begin) -> VmRecord:
        """Record a VM that runs from here on."""
        says = begin._asdict()
        del says["on"], says["tried"], says["mac"]
        vm = VmRecord(process=process, **says)
        self.vms[vm.token] = vm
        return vm

    def stop(self, vm: VmRecord, now: float) -> None:
        vm.running = False
        if not vm.lost:
            vm.until = now + vm.wait
        vm.unheld = vm.unheld or vm.fleeting

    def kill(self, process: str) -> list[VmRecord]:
        """Record that a process is killed; return the running VMs bound to it."""
        self._killed.add(process)
        return [
            vm
            for vm in self.vms.values()
            if vm.process == process and vm.bound and vm.running
        ]

    def is_killed(self, process: str) -> bool:
        return process in self._killed

    def begin_act(self, by: str, acting: Acting) -> None:
        could = {
            i for i, device in self.devices.items() if has_name(device, acting.name)
        }
        late_for = self.vms.get(acting.late_for)
        self._acts[by] = ActRecord(
            by, acting.kind, acting.verb, acting.name, late_for, could
        )
        for ifindex, device in self.devices.items():
            self.note_name(ifindex, device)

    def end_act(self, by: str, now: float) -> ActRecord:
        act = self._acts.pop(by)
        act.over = now
        return act

    def forget(self) -> None:
        """Forget VMs whose names have long been free, and devices long deleted."""
        late = self.now - REMEMBERED
        for token in [token for token, vm in self.vms.items() if vm.until < late]:
            del self.vms[token]
        for ifindex in list(self._deleted)[:-2000]:
            del self._deleted[ifindex]

    # Questions

    def device(self, ifindex: int) -> DeviceRecord | None:
        """Return a device that exists, or that was deleted not long ago."""
        return self.devices.get(ifindex) or self._deleted.get(ifindex)

    def ifindex(self, name: str) -> int:
        """Return the ifindex of a device of the ground; 0 if there is none."""
        named = (i for i, device in self.devices.items() if device.look.name == name)
        return next(named, 0)

    def bridge(self, name: str) -> int:
        """Return the ifindex of a bridge; 0 for no bridge, -1 for one that is gone."""
        return (self.ifindex(name) or -1) if name else 0

    def story(self, ifindex: int) -> tuple[str, ...]:
        """Tell the last entries about a device."""
        device = self.device(ifindex)
        about: set[object] = {ifindex}
        if device is not None:
            about.add(device.look.name)
            if device.vm is not None:
                about |= {device.vm.name, device.vm.token}
        told = [_tell(entry) for entry in self._recent if _is_about(entry, about)]
        return tuple(told[-STORY:])


def _changes(before: LinkLook, event: LinkEvent) -> list[str]:
    if event.gone:
        return [GONE]
    after = event.look
    if before == after:
        return []
    return [
        key for key in LinkLook._fields if getattr(before, key) != getattr(after, key)
    ]


def has_name(device: DeviceRecord, name: str) -> bool:
    return device.look.name == name or name in device.altnames


def _is_about(entry: LinkEvent | Mark, about: set[object]) -> bool:
    if isinstance(entry, LinkEvent):
        return not about.isdisjoint((entry.ifindex, entry.look.name))
    values = entry.message._asdict().values()
    return any(isinstance(value, str | int) and value in about for value in values)


def _tell(entry: LinkEvent | Mark) -> str:
    if isinstance(entry, Mark):
        return f"{entry.time:.6f} {entry.by} says {entry.message}"
    look = entry.look
    state = "gone" if entry.gone else "up" if look.up else "down"
    on = f"on {look.master}" if look.master else "on no bridge"
    return f"{entry.ifindex} {look.name} is {state}, {on}, alias {look.alias!r}"
