# SPDX-License-Identifier: Apache-2.0
"""Who did what to which device, in one network namespace's row of reports and marks.

Pure: it is handed events and marks in the order of the kernel, and keeps account.

A *machine* runs from its mark `begin` to its mark `end`, or to the mark that its
process is to be killed. An *act* is what an administrator or a stranger does to a name,
from its mark `act` to its mark `acted`; it accounts for the changes that such an act
makes, and no more, on a device that had the name in that time. Everything else that
changes on a running machine's device, or on a foreign object, is harm.

An administrator may do what he likes, and Tapster may put back what he changed: a
running machine's device that differs from what was promised may become again as it was,
but not otherwise.

A stranger's cleanup is harm too if it meets a running machine: the name that it goes by
was to be kept from others until FIN WAIT was over. It is none where Tapster could not
keep the name: the stranger came too late; an administrator gave the machine that name;
or another outsider had taken the waiting device from under the name, and it is *another
ledger's* machine that has it now.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from soak.books import Row
from soak.events import Event, Look
from soak.marks import DEVICE, Mark

ADMIN, STRANGER = "admin", "stranger"

GONE = "gone"
ANY = None
EFFECTS: dict[str, tuple[tuple[str, object], ...]] = {
    "del": (("up", False), ("master", 0), (GONE, True)),
    "down": (("up", False),),
    "nomaster": (("master", 0),),
    "master": (("master", 0), ("master", ANY)),  # off one bridge, onto another
    "rename": (("name", ANY),),
}
"""What of a device an act changes, and to what; each once."""

REMEMBERED = 60.0
"""Seconds for which ended machines are kept in mind after their names are free."""
STORY = 15
"""How many of the last entries are told about a device."""


WRONG = "wrongly touched: "
BY_NOBODY = WRONG + "by nobody who says so"
BY_STRANGER = WRONG + "by a stranger before FIN WAIT was over"
CUT_OFF = WRONG + "a machine cut off"
NOT_AS_PROMISED = WRONG + "not as promised from the start"
TOO_SOON = WRONG + "a name given out, or let go, too soon"
NOT_RECORDED = WRONG + "the ledger says otherwise"
LEAK, BLIND = "leak", "blind"


class Finding(NamedTuple):
    """Something that must not be."""

    kind: str
    """`leak`, `blind` (something was not seen), or one of those that are wrong."""
    netns: str
    time: float
    what: str
    story: tuple[str, ...] = ()


class Stopped(NamedTuple):
    """A machine whose name a stranger may clean up until FIN WAIT is over."""

    token: str
    netns: str
    name: str
    until: float


@dataclass
class Machine:
    """A machine's network card."""

    token: str
    process: str
    ledger: str
    name: str
    ifindex: int
    wait: float
    bound: bool
    """It ends with its process."""
    fleeting: bool
    """Its device is replaced at release: for a moment nobody has the name."""
    wanted: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """How its device is to be; two values while its manager moves it."""
    differed: float = 0.0
    """Until when its device was not so, for a reason that is known."""
    running: bool = True
    lost: bool = False
    """An outsider has deleted its device."""
    until: float = inf
    """At least until then its ledger keeps the name from others."""
    unheld: bool = False
    """No device holds the name for it: another ledger may give it out."""

    def __str__(self) -> str:
        return f"{self.token} ({self.name}, ifindex {self.ifindex})"

    def is_to_hold(self, now: float) -> bool:
        """Whether its device is to be there still, stopped as it is."""
        return now < self.until and not self.fleeting

    def note_difference(self, look: Look, now: float) -> None:
        """Look whether the device is as wanted, and remember until when it was not."""
        if any(getattr(look, one) not in goal for one, goal in self.wanted.items()):
            self.differed = inf
        elif self.differed == inf:
            self.differed = now

    def is_mended(self, attribute: str, before: Look, after: Look) -> bool:
        """Whether a change is one for the better, of what was not as wanted."""
        goal = self.wanted.get(attribute, ())
        was, becomes = getattr(before, attribute, None), getattr(after, attribute, None)
        better = becomes in goal or (attribute == "master" and becomes == 0)
        return better and (was not in goal or len(goal) > 1)


@dataclass
class Act:
    """What an outsider does to a name, from one mark to the next."""

    by: str
    kind: str
    verb: str
    name: str
    late_for: Machine | None
    """Whose name it is that a stranger cleans up."""
    could: set[int]
    """The devices that have had the name meanwhile."""
    did: Counter[tuple[int, str, object]] = field(default_factory=Counter)
    over: float | None = None
    harm: list[tuple[Machine, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.by} ({self.verb} {self.name})"

    def effect(
        self, ifindex: int, attribute: str, becomes: object
    ) -> tuple[int, str, object] | None:
        """What it does, and has not done yet, that would account for a change."""
        for what, to in EFFECTS[self.verb] if ifindex in self.could else ():
            effect = ifindex, what, to
            if what == attribute and to in (ANY, becomes) and not self.did[effect]:
                return effect
        return None


@dataclass
class Device:
    """A device as the kernel reported it last."""

    look: Look
    altnames: tuple[str, ...]
    machine: Machine | None = None
    foreign: str = ""
    """Whose it is, if it is neither ours nor still without an owner."""
    touched: dict[str, Act] = field(default_factory=dict)
    """What outsiders have changed on it."""
    deleted: float | None = None
    """When it went, or somewhat earlier."""


class Judge:
    """The account of one network namespace."""

    def __init__(
        self,
        netns: str,
        stopped: Callable[[Stopped], None],
        rows: Callable[[], Mapping[str, Row]],
    ) -> None:
        """`stopped` hears of each machine that ends; `rows` are the leases by owner, as
        they were between the marks of the sample that is being judged."""
        self.tally: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.begun = False
        """Whether the ground is there."""
        self._netns = netns
        self._tell_stopped = stopped
        self._rows = rows
        self._now = 0.0
        self._numbers: dict[str, int] = {}
        self._devices: dict[int, Device] = {}
        self._deleted: dict[int, Device] = {}
        self._machines: dict[str, Machine] = {}
        self._acts: dict[str, Act] = {}
        self._killed: set[str] = set()
        self._sampled: list[Machine] = []
        self._recent: deque[Event | Mark] = deque(maxlen=2000)

    @property
    def names(self) -> set[str]:
        """The devices that are there."""
        return {device.look.name for device in self._devices.values()}

    def blind(self, what: str) -> None:
        """Something was not seen."""
        self._find(BLIND, what)

    # What the kernel reports

    def event(self, event: Event, heard: float) -> None:
        """A device has changed; if it is `mark`, somebody says something.

        `heard` is when the report was read: the change was not later than that.
        """
        if event.look.name == DEVICE:
            if event.look.alias:
                self._mark(Mark.read(event.look.alias))
            return
        self.tally["events"] += 1
        self._recent.append(event)
        device = self._devices.get(event.ifindex)
        if device is None:
            device = Device(event.look, event.altnames)
            self._devices[event.ifindex] = device
        for attribute in _changes(device.look, event):
            self._changed(event, device, attribute, heard)
        device.look, device.altnames = event.look, event.altnames
        if device.machine is not None:
            device.machine.note_difference(event.look, heard)
        if event.gone:
            self._deleted[event.ifindex] = self._devices.pop(event.ifindex)
            device.deleted = self._now
            return
        self._note_name(event.ifindex, device)

    def _note_name(self, ifindex: int, device: Device) -> None:
        """A device has a name that somebody may be at."""
        for act in self._acts.values():
            if _has_name(device, act.name):
                act.could.add(ifindex)

    def _changed(
        self, event: Event, device: Device, attribute: str, heard: float
    ) -> None:
        ifindex = event.ifindex
        machine = device.machine
        repairs = machine is not None and (
            machine.running and machine.is_mended(attribute, device.look, event.look)
        )
        becomes = True if attribute == GONE else getattr(event.look, attribute)
        act = self._cause(ifindex, attribute, becomes, spend=not repairs)
        if act is not None:
            device.touched[attribute] = act
        elif repairs:
            device.touched.pop(attribute, None)
        what = f"{attribute} of {device.look.name} (ifindex {ifindex})"
        if machine is None:
            self._charge_foreign(act, device, what, ifindex)
        elif repairs:
            self.tally["changes of running machines by Tapster, as wanted"] += 1
        elif machine.running:
            self._charge(act, machine, device.look.name, what, BY_NOBODY)
        elif act is not None and act.kind == STRANGER:
            self.tally["late cleanups that met a waiting device"] += 1
        elif act is None and attribute == GONE and machine.is_to_hold(heard):
            self._find(TOO_SOON, f"{what}, which holds {machine}'s name", ifindex)
        if machine is not None:
            self._unhold(machine, attribute, self._now)

    def _charge_foreign(
        self, act: Act | None, device: Device, what: str, ifindex: int
    ) -> None:
        """A device without a machine has been changed by `act`."""
        if device.foreign and act is None:
            self._find(BY_NOBODY, f"{what}, {device.foreign}'s", ifindex)
        elif device.foreign:
            self.tally["foreign objects hit by outsiders"] += 1

    def _cause(
        self, ifindex: int, attribute: str, becomes: object, *, spend: bool
    ) -> Act | None:
        """The act that accounts for a change; with `spend` for no other then."""
        for act in sorted(self._acts.values(), key=lambda act: act.kind != ADMIN):
            if effect := act.effect(ifindex, attribute, becomes):
                act.did[effect] += spend
                return act
        return None

    def _charge(
        self, act: Act | None, machine: Machine, name: str, what: str, unknown: str
    ) -> None:
        """A running machine's device, called `name`, has been changed by `act`.

        `unknown` is what that is called if there is none.
        """
        if act is None:
            self._find(unknown, f"{what}, {machine}'s", machine.ifindex)
        elif act.kind == ADMIN:
            self.tally["changes of running machines by administrators"] += 1
        elif _excused(act, machine, name):
            self.tally["late cleanups that Tapster could not fend off"] += 1
        else:
            act.harm.append((machine, f"{what}, {machine}'s, changed by {act}"))
            if act.over is not None:
                self._settle(act, act.over)

    def _settle(self, act: Act, over: float) -> None:
        """Judge a stranger's harm: did it come before FIN WAIT was over?"""
        for machine, text in act.harm:
            if act.late_for is not None and over > act.late_for.until:
                self.tally["late cleanups that Tapster could not fend off"] += 1
            else:
                text = f"{text} for {act.late_for}"
                self._find(BY_STRANGER, text, machine.ifindex)
        act.harm.clear()

    def _unhold(self, machine: Machine, attribute: str, since: float) -> None:
        """The device does not hold the name any more."""
        if attribute == "name":
            machine.unheld = True
        if attribute == GONE:
            machine.unheld = True
            if machine.running:
                machine.lost = True
                machine.until = since + machine.wait

    # What actors say

    def _mark(self, mark: Mark) -> None:
        self._recent.append(mark)
        expected = self._numbers.get(mark.by, 0) + 1
        if mark.number > expected:
            self.blind(f"{mark.by}'s marks from {expected} to {mark.number - 1}")
        if mark.number < expected:
            return  # a report of the mark's device for another reason
        self._numbers[mark.by] = mark.number
        self._now = max(self._now, mark.time)
        getattr(self, f"_on_{mark.does}")(mark, **mark.says)

    def _on_ground(self, _: Mark) -> None:
        """All that is there now is the storm's own, and foreign."""
        self.begun = True
        for device in self._devices.values():
            device.foreign = "the ground"

    def _on_begin(self, mark: Mark, *, on: str, tried: str, **says: Any) -> None:
        """A machine runs from here on; its device is as it was promised."""
        machine = Machine(process=mark.process, **says)
        self.tally["machines"] += 1
        self._machines[machine.token] = machine
        ifindex = machine.ifindex
        device = self._device(machine)
        if device is None:
            self._find(NOT_AS_PROMISED, f"{machine} has no device", ifindex)
            return
        device.machine = machine
        if device.deleted is None and device.look.name == machine.name:
            self._check_name(machine, mark.time)  # else an outsider was quicker
        machine.wanted = {"up": (True,), "master": (self._ifindex(on),)}
        machine.note_difference(device.look, mark.time)
        expected = {"name": machine.name, "up": True, "master": self._ifindex(on)}
        self._compare(ifindex, device, expected)
        if tried:
            self._count_steps(machine.name, tried)
        if machine.bound and mark.process in self._killed:
            self._stop(machine, mark.time)  # a last word between mark and kill

    def _compare(self, ifindex: int, device: Device, expected: dict[str, Any]) -> None:
        look, machine = device.look, device.machine
        seen = {attribute: getattr(look, attribute) for attribute in expected}
        wrong = {key for key, value in expected.items() if seen[key] != value}
        if machine and not look.alias.startswith("tapster:"):
            wrong.add("alias")
        if device.deleted is not None:
            wrong = {GONE}
        for attribute in wrong:
            what = f"{attribute} of {look.name} (ifindex {ifindex}) from the start"
            act = device.touched.get(attribute)
            if machine is not None:
                self._charge(act, machine, look.name, what, NOT_AS_PROMISED)
                self._unhold(machine, attribute, device.deleted or self._now)
            elif act is None:
                self._find(BY_NOBODY, f"{what}, {device.foreign}'s", ifindex)

    def _check_name(self, machine: Machine, now: float) -> None:
        """Nobody else has the name, or waits with it."""
        for other in self._machines.values():
            bars = other.ledger == machine.ledger or not other.unheld
            if other is machine or other.name != machine.name or not bars:
                continue
            if now < other.until:
                left = "runs" if other.running else f"waits until {other.until:.3f}"
                text = f"{machine} got the name of {other}, which {left}"
                self._find(TOO_SOON, text, machine.ifindex)

    def _count_steps(self, name: str, tried: str) -> None:
        """Count if a foreign device has a name that would have come first."""
        number = _number(tried, name)
        foreign = [
            _number(tried, other)
            for device in self._devices.values()
            if device.foreign
            for other in (device.look.name, *device.altnames)
        ]
        if any(other < number for other in foreign if other >= 0):
            self.tally["foreign names stepped around"] += 1

    def _on_end(self, mark: Mark, *, token: str, talks: int = 0) -> None:
        """The machine stops: from here on its device may be released."""
        self.tally["talks over the wire"] += talks
        machine = self._machines.get(token)
        if machine is not None and machine.running:
            self._stop(machine, mark.time)

    def _on_kill(self, mark: Mark, *, what: str = "", process: str = "") -> None:
        """A process is killed; the machines that are bound to it end with it."""
        if what:
            self.tally[f"kills: {what}"] += 1
        if process:
            self._killed.add(process)
            for machine in self._machines.values():
                if machine.process == process and machine.bound and machine.running:
                    self._stop(machine, mark.time)

    def _stop(self, machine: Machine, now: float) -> None:
        machine.running = False
        if not machine.lost:
            machine.until = now + machine.wait
        machine.unheld = machine.unheld or machine.fleeting
        self._tell_stopped(
            Stopped(machine.token, self._netns, machine.name, machine.until)
        )

    def _on_move(self, _: Mark, *, token: str, on: str) -> None:
        """Its manager is about to move a machine to another bridge."""
        self._machines[token].wanted["master"] += (self._ifindex(on),)

    def _on_moved(self, mark: Mark, *, token: str, on: str) -> None:
        """It has been moved there, or not."""
        machine = self._machines[token]
        machine.wanted["master"] = (self._ifindex(on),)
        device = self._device(machine)
        if device is not None and machine.running:
            machine.note_difference(device.look, mark.time)
            self._compare(machine.ifindex, device, {"master": self._ifindex(on)})

    def _on_cut(self, _: Mark, *, token: str, since: float) -> None:
        """Since then, a running machine's frames did not arrive."""
        machine = self._machines[token]
        if machine.running and not machine.lost and machine.differed < since:
            self._find(CUT_OFF, str(machine), machine.ifindex)

    def _on_act(
        self, mark: Mark, *, kind: str, verb: str, name: str, late_for: str = ""
    ) -> None:
        """An outsider is about to do something to whatever has this name."""
        could = {i for i, one in self._devices.items() if _has_name(one, name)}
        machine = self._machines.get(late_for)
        self._acts[mark.by] = Act(mark.by, kind, verb, name, machine, could)

    def _on_acted(self, mark: Mark) -> None:
        act = self._acts.pop(mark.by)
        act.over = mark.time
        self.tally[
            f"{act.kind}: {act.verb}" if act.did else f"{act.kind}: in vain"
        ] += 1
        self._settle(act, mark.time)

    def _on_take(
        self, mark: Mark, *, ifindex: int, name: str, up: bool, on: str, also: str
    ) -> None:
        """A squatter has made a device, and left it so; `also` is an altname."""
        device = self._devices.get(ifindex)
        if device is not None:  # else an outsider was quicker
            self.tally["devices of squatters"] += 1
            device.foreign = mark.by
            if also:  # of a device that is down the kernel does not report it
                device.altnames = (also,)
                self._note_name(ifindex, device)
            expected = {"name": name, "up": up, "master": self._ifindex(on)}
            self._compare(ifindex, device, expected)

    def _on_free(self, _: Mark, *, ifindex: int) -> None:
        """The squatter is about to delete it."""
        if device := self._devices.get(ifindex):
            device.foreign = ""

    def _on_count(self, _: Mark, *, what: dict[str, int]) -> None:
        """Something to count."""
        self.tally.update(what)

    def _on_leak(self, _: Mark, *, what: str) -> None:
        self._find(LEAK, what)

    def _on_sample(self, _: Mark) -> None:
        """The ledgers are about to be read."""
        late = self._now - REMEMBERED
        for token in [t for t, one in self._machines.items() if one.until < late]:
            del self._machines[token]
        for ifindex in list(self._deleted)[:-2000]:
            del self._deleted[ifindex]
        self._sampled = list(self._machines.values())

    def _on_sampled(self, mark: Mark) -> None:
        """They have been: what ran or waited all the time must be in them."""
        self.tally["samples of the ledgers"] += 1
        rows = self._rows()
        for machine in self._sampled:
            if machine.until <= mark.time:
                continue
            row = rows.get(machine.token)
            wrong = row is None or row.name != machine.name
            if machine.running and not machine.lost and row is not None:
                wrong = (row.name, row.ifindex, row.state) != (
                    *(machine.name, machine.ifindex),
                    "active",
                )
            if wrong:
                text = f"the ledger says of {machine}: {row or 'nothing'}"
                self._find(NOT_RECORDED, text, machine.ifindex)

    def _on_final(self, _: Mark) -> None:
        """All has been released, recovered and reaped: only the ground is left."""
        for ifindex, device in self._devices.items():
            if device.foreign != "the ground" and device.look.name != DEVICE:
                text = f"device {device.look.name} (ifindex {ifindex}) is left"
                self._find(LEAK, text, ifindex)
        for machine in self._machines.values():
            # One that lost its device was released by a recover. Then nobody may
            # say so: a manager that is killed meanwhile leaves nothing to adopt.
            if machine.running and not machine.lost:
                self._find(BLIND, f"{machine} was never said to end")

    # Helpers

    def _device(self, machine: Machine) -> Device | None:
        found = self._devices.get(machine.ifindex)
        return found or self._deleted.get(machine.ifindex)

    def _ifindex(self, name: str) -> int:
        """The ifindex of a device of the ground; 0 for none."""
        found = (i for i, one in self._devices.items() if one.look.name == name)
        return next(found, 0)

    def _find(self, kind: str, what: str, ifindex: int = 0) -> None:
        device = self._devices.get(ifindex) or self._deleted.get(ifindex)
        about: set[object] = {ifindex}
        if device is not None:
            about.add(device.look.name)
            if device.machine is not None:
                about |= {device.machine.name, device.machine.token}
        told = [_tell(one) for one in self._recent if _is_about(one, about)]
        story = tuple(told[-STORY:])
        self.findings.append(Finding(kind, self._netns, self._now, what, story))


def _changes(before: Look, event: Event) -> list[str]:
    if event.gone:
        return [GONE]
    after = event.look
    if before == after:
        return []
    return [one for one in Look._fields if getattr(before, one) != getattr(after, one)]


def _has_name(device: Device, name: str) -> bool:
    return device.look.name == name or name in device.altnames


def _excused(act: Act, machine: Machine, name: str) -> bool:
    """Whether Tapster could not have kept `name` from this machine."""
    if name != machine.name:
        return True  # an administrator gave it that name
    late_for = act.late_for
    return bool(late_for and late_for.ledger != machine.ledger and late_for.unheld)


def _number(template: str, name: str) -> int:
    """The number that a name of this template has, or -1."""
    prefix, _, suffix = template.partition("%d")
    digits = name.removeprefix(prefix).removesuffix(suffix)
    return int(digits) if prefix + digits + suffix == name and digits.isdigit() else -1


def _is_about(entry: Event | Mark, about: set[object]) -> bool:
    if isinstance(entry, Event):
        return not about.isdisjoint((entry.ifindex, entry.look.name))
    return any(
        isinstance(one, str | int) and one in about for one in entry.says.values()
    )


def _tell(entry: Event | Mark) -> str:
    if isinstance(entry, Mark):
        return f"{entry.time:.6f} {entry.by} says {entry.does} {entry.says}"
    look = entry.look
    state = "gone" if entry.gone else "up" if look.up else "down"
    on = f"on {look.master}" if look.master else "on no bridge"
    return f"{entry.ifindex} {look.name} is {state}, {on}, alias {look.alias!r}"
