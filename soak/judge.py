# SPDX-License-Identifier: Apache-2.0
"""Judge the account of a storm: find every change that must not happen.

Every change of a running VM's device, and of a foreign object, that no act accounts for
is harm. An administrator may do anything, and Tapster may put back what an
administrator changed: a running VM's device that differs from what was promised may
become again as it was, but not otherwise.

A stranger's late cleanup is harm too if it meets a running VM: the name that the
stranger uses was to be kept from others until FIN WAIT was over. It is no harm where
Tapster could not keep the name: the stranger came too late; an administrator gave the
VM that name; or another outsider had taken the waiting device from under the name, and
a VM of *another ledger* has it now.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, assert_never

from soak.account import (
    ADMIN,
    GONE,
    REBUILD,
    STRANGER,
    Account,
    ActRecord,
    DeviceChange,
    DeviceRecord,
    VmRecord,
)
from soak.books import LeaseRow
from soak.events import LinkEvent
from soak.marks import DEVICE, Mark
from soak.messages import (
    Acted,
    Acting,
    Begin,
    Cut,
    End,
    Final,
    Free,
    Ground,
    Kill,
    Leak,
    Move,
    Moved,
    Sample,
    Sampled,
    Take,
    Tally,
)

WRONG = "wrongly touched: "
BY_NOBODY = WRONG + "by nobody who says so"
BY_STRANGER = WRONG + "by a stranger before FIN WAIT was over"
CUT_OFF = WRONG + "a VM cut off"
NOT_AS_PROMISED = WRONG + "not as promised from the start"
TOO_SOON = WRONG + "a name given out, or let go, too soon"
NOT_RECORDED = WRONG + "the ledger says otherwise"
LEAK, BLIND = "leak", "blind"
GROUND = "the ground"
"""The owner of the devices that belong to the storm itself."""


class Finding(NamedTuple):
    """A fault that was found."""

    kind: str
    """`leak`, `blind` (a report was lost), or a kind of harm."""
    netns: str
    time: float
    what: str
    story: tuple[str, ...] = ()


class StoppedVm(NamedTuple):
    """A VM whose name a stranger may clean up until FIN WAIT is over."""

    token: str
    netns: str
    name: str
    until: float


class Judge:
    """The judge of one network namespace."""

    def __init__(
        self,
        netns: str,
        on_stopped: Callable[[StoppedVm], None],
        rows: Callable[[], Mapping[str, LeaseRow]],
    ) -> None:
        """Call `on_stopped` for each VM that ends. `rows` returns the leases by owner,
        as they were between the marks of the sample that is being judged."""
        self.tally: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.begun = False
        """Whether the ground exists."""
        self._netns = netns
        self._on_stopped = on_stopped
        self._rows = rows
        self._account = Account()
        self._numbers: dict[str, int] = {}
        self._sampled: list[VmRecord] = []

    @property
    def names(self) -> set[str]:
        """The names of the devices that exist."""
        return {device.look.name for device in self._account.devices.values()}

    def blind(self, what: str) -> None:
        """Record that a report was lost."""
        self._find(BLIND, what)

    # Reports of the kernel

    def event(self, event: LinkEvent, heard: float) -> None:
        """Judge a report of a changed device, or read a mark from it.

        `heard` is when the report was read: the change was not later than that.
        """
        if event.look.name == DEVICE:
            if event.look.alias:
                self._mark(Mark.read(event.look.alias))
            return
        self.tally["events"] += 1
        for change in self._account.changes(event, heard):
            self._judge(change, heard)

    def _judge(self, change: DeviceChange, heard: float) -> None:
        vm, act = change.vm, change.act
        if vm is None:
            self._charge_foreign(change)
        elif change.repairs:
            self.tally["changes of running VMs by Tapster, as wanted"] += 1
        elif vm.running:
            name = change.device.look.name
            self._charge(act, vm, name, str(change), BY_NOBODY)
        elif act is not None and act.kind == STRANGER:
            self.tally["late cleanups that met a waiting device"] += 1
        elif act is None and change.attribute == GONE and vm.is_to_hold(heard):
            self._find(TOO_SOON, f"{change}, which holds {vm}'s name", change.ifindex)

    def _charge_foreign(self, change: DeviceChange) -> None:
        """Judge the change of a device that has no VM."""
        owner = change.device.foreign
        if owner and change.act is None:
            self._find(BY_NOBODY, f"{change}, {owner}'s", change.ifindex)
        elif owner:
            self.tally["foreign objects hit by outsiders"] += 1

    def _charge(
        self, act: ActRecord | None, vm: VmRecord, name: str, what: str, unknown: str
    ) -> None:
        """Judge the change of a running VM's device, which is called `name`.

        `unknown` is the kind of finding if no act accounts for the change.
        """
        if act is None:
            self._find(unknown, f"{what}, {vm}'s", vm.ifindex)
        elif act.kind == ADMIN:
            self.tally["changes of running VMs by administrators"] += 1
        elif _excused(act, vm, name):
            self.tally["late cleanups that Tapster could not fend off"] += 1
        else:
            act.harm.append((vm, f"{what}, {vm}'s, changed by {act}"))
            if act.over is not None:
                self._judge_harm(act, act.over)

    def _judge_harm(self, act: ActRecord, over: float) -> None:
        """Judge a stranger's harm: did it come before FIN WAIT was over?"""
        for vm, text in act.harm:
            if act.late_for is not None and over > act.late_for.until:
                self.tally["late cleanups that Tapster could not fend off"] += 1
            else:
                self._find(BY_STRANGER, f"{text} for {act.late_for}", vm.ifindex)
        act.harm.clear()

    # Marks of actors

    def _mark(self, mark: Mark) -> None:
        self._account.note(mark)
        expected = self._numbers.get(mark.by, 0) + 1
        if mark.number > expected:
            self.blind(f"{mark.by}'s marks from {expected} to {mark.number - 1}")
        if mark.number < expected:
            return  # the kernel reports the mark's device for another reason
        self._numbers[mark.by] = mark.number
        self._account.now = max(self._account.now, mark.time)
        self._message(mark)

    def _message(self, mark: Mark) -> None:
        """Let each statement have its effect on the account and the tally."""
        account = self._account
        match mark.message:
            case Ground():
                self.begun = True
                for device in account.devices.values():
                    device.foreign = GROUND
            case Begin() as begin:
                self._begin(mark, begin)
            case End(token, talks):
                self.tally["talks over the wire"] += talks
                vm = account.vms.get(token)
                if vm is not None and vm.running:
                    self._stop(vm, mark.time)
            case Kill(what, process):
                self._kill(mark, what, process)
            case Move(token, on):
                vm = account.vms[token]
                account.promise(vm, *vm.on, on)
            case Moved(token, on):
                self._moved(mark, token, on)
            case Cut(token, since):
                vm = account.vms[token]
                if vm.running and not vm.lost and vm.differed < since:
                    self._find(CUT_OFF, str(vm), vm.ifindex)
            case Acting() as acting:
                account.begin_act(mark.by, acting)
            case Acted():
                self._acted(mark)
            case Take() as take:
                self._take(mark, take)
            case Free(ifindex):
                if freed := account.devices.get(ifindex):
                    freed.foreign = ""
            case Tally(counts):
                self.tally.update(counts)
            case Leak(leak):
                self._find(LEAK, leak)
            case Sample():
                account.forget()
                self._sampled = list(account.vms.values())
            case Sampled():
                self._compare_ledgers(mark)
            case Final():
                self._final()
            case never:
                assert_never(never)

    def _begin(self, mark: Mark, begin: Begin) -> None:
        account = self._account
        vm = account.begin(mark.process, begin)
        self.tally["VMs"] += 1
        device = account.device(vm.ifindex)
        if device is None:
            self._find(NOT_AS_PROMISED, f"{vm} has no device", vm.ifindex)
            return
        device.vm = vm
        if device.deleted is None and device.look.name == vm.name:
            self._check_name(vm, mark.time)  # otherwise an outsider was quicker
        vm.wanted = {"up": (True,), "name": (vm.name,), "mac": (begin.mac,)}
        account.promise(vm, begin.on)
        vm.note_difference(device.look, mark.time)
        bridge = account.bridge(begin.on)
        expected = {"name": vm.name, "up": True, "master": bridge, "mac": begin.mac}
        self._compare(vm.ifindex, device, expected)
        if begin.tried:
            self._count_steps(vm.name, begin.tried)
        if vm.bound and account.is_killed(mark.process):
            self._stop(vm, mark.time)  # a last message between mark and kill

    def _compare(
        self, ifindex: int, device: DeviceRecord, expected: dict[str, Any]
    ) -> None:
        """Find how a device differs from an actor's description of it."""
        look, vm = device.look, device.vm
        seen = {attribute: getattr(look, attribute) for attribute in expected}
        wrong = {key for key, value in expected.items() if seen[key] != value}
        if vm and not look.alias.startswith("tapster:"):
            wrong.add("alias")
        if device.deleted is not None:
            wrong = {GONE}
        for attribute in wrong:
            what = f"{attribute} of {look.name} (ifindex {ifindex}) from the start"
            act = device.touched.get(attribute)
            if vm is not None:
                self._charge(act, vm, look.name, what, NOT_AS_PROMISED)
                since = device.deleted or self._account.now
                self._account.unhold(vm, attribute, since)
            elif act is None:
                self._find(BY_NOBODY, f"{what}, {device.foreign}'s", ifindex)

    def _check_name(self, vm: VmRecord, now: float) -> None:
        """Find another VM that has the name, or reserves it."""
        for other in self._account.vms.values():
            bars = other.ledger == vm.ledger or not other.unheld
            if other is vm or other.name != vm.name or not bars:
                continue
            if now < other.until:
                left = "runs" if other.running else f"waits until {other.until:.3f}"
                text = f"{vm} got the name of {other}, which {left}"
                self._find(TOO_SOON, text, vm.ifindex)

    def _count_steps(self, name: str, tried: str) -> None:
        """Count if a foreign device has a name that would have come first."""
        number = _number(tried, name)
        foreign = [
            _number(tried, other)
            for device in self._account.devices.values()
            if device.foreign
            for other in (device.look.name, *device.altnames)
        ]
        if any(other < number for other in foreign if other >= 0):
            self.tally["foreign names stepped around"] += 1

    def _stop(self, vm: VmRecord, now: float) -> None:
        self._account.stop(vm, now)
        self._on_stopped(StoppedVm(vm.token, self._netns, vm.name, vm.until))

    def _kill(self, mark: Mark, what: str, process: str) -> None:
        if what:
            self.tally[f"kills: {what}"] += 1
        if process:
            for vm in self._account.kill(process):
                self._stop(vm, mark.time)

    def _moved(self, mark: Mark, token: str, on: str) -> None:
        account = self._account
        vm, bridge = account.vms[token], account.bridge(on)
        account.promise(vm, on)
        device = account.device(vm.ifindex)
        if device is not None and vm.running:
            vm.note_difference(device.look, mark.time)
            self._compare(vm.ifindex, device, {"master": bridge})

    def _acted(self, mark: Mark) -> None:
        act = self._account.end_act(mark.by, mark.time)
        if act.verb == REBUILD:
            bridge = self._account.device(self._account.ifindex(act.name))
            if bridge is not None:
                bridge.foreign = GROUND
        verb = act.verb if act.did else "in vain"
        self.tally[f"{act.kind}: {verb}"] += 1
        self._judge_harm(act, mark.time)

    def _take(self, mark: Mark, take: Take) -> None:
        device = self._account.devices.get(take.ifindex)
        if device is None:
            return  # an outsider was quicker
        self.tally["devices of squatters"] += 1
        device.foreign = mark.by
        if take.also:  # the kernel does not report it of a device that is down
            device.altnames = (take.also,)
            self._account.note_name(take.ifindex, device)
        bridge = self._account.bridge(take.on)
        expected = {"name": take.name, "up": take.up, "master": bridge}
        self._compare(take.ifindex, device, expected)

    def _compare_ledgers(self, mark: Mark) -> None:
        """Find VMs that ran or waited all the time but are not in their ledger."""
        self.tally["samples of the ledgers"] += 1
        rows = self._rows()
        for vm in self._sampled:
            if vm.until <= mark.time:
                continue
            row = rows.get(vm.token)
            wrong = row is None or row.name != vm.name
            if vm.running and not vm.lost and row is not None:
                recorded = row.name, row.ifindex, row.state
                wrong = recorded != (vm.name, vm.ifindex, "active")
            if wrong:
                text = f"the ledger says of {vm}: {row or 'nothing'}"
                self._find(NOT_RECORDED, text, vm.ifindex)

    def _final(self) -> None:
        """Find devices that are left, and VMs that no actor ended."""
        for ifindex, device in self._account.devices.items():
            if device.foreign != GROUND and device.look.name != DEVICE:
                text = f"device {device.look.name} (ifindex {ifindex}) is left"
                self._find(LEAK, text, ifindex)
        for vm in self._account.vms.values():
            # Recover releases a VM that lost its device. If its manager is killed at
            # that moment, no actor is left that would end the VM.
            if vm.running and not vm.lost:
                self._find(BLIND, f"{vm} was never said to end")

    def _find(self, kind: str, what: str, ifindex: int = 0) -> None:
        account = self._account
        story = account.story(ifindex)
        self.findings.append(Finding(kind, self._netns, account.now, what, story))


def _excused(act: ActRecord, vm: VmRecord, name: str) -> bool:
    """Say whether Tapster could not have kept `name` from this VM."""
    if name != vm.name:
        return True  # an administrator gave it that name
    late_for = act.late_for
    return bool(late_for and late_for.ledger != vm.ledger and late_for.unheld)


def _number(template: str, name: str) -> int:
    """Return the number that a name of this template has, or -1."""
    prefix, _, suffix = template.partition("%d")
    digits = name.removeprefix(prefix).removesuffix(suffix)
    return int(digits) if prefix + digits + suffix == name and digits.isdigit() else -1
