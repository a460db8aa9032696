# SPDX-License-Identifier: Apache-2.0
"""A VM manager that uses the library: threads that share a Host.

It may be killed at any moment. Its next generation adopts the leases that it left, as a
restarted daemon does.
"""

import os
import subprocess
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from soak import books
from soak.ground import BRIDGES
from soak.marks import Marker
from soak.messages import End, Tally
from soak.part import (
    BY_NAME,
    NO_WAIT,
    Part,
    boottime,
    given,
    ledger_path,
    stop_at_end_of_input,
    work_all,
)
from soak.random_specs import random_specs
from soak.refusals import hindered, refused
from soak.vm import Card, RunningVm
from tapster import Host, NoSuchLease, OpenDevice, Repair, TapsterError

THREADS = 3
LATE = 2.0
"""Seconds at most after FIN WAIT until a manager releases a device once more."""
LONGEST = 1.5
"""Seconds that a VM runs."""


class Manager:
    """One thread of a manager."""

    def __init__(self, part: Part, host: Host, thread: int, stop: Event) -> None:
        self._part = part
        self._host = host
        self._stop = stop
        self._name = f"{part.process}/{thread}"
        self._marker = Marker(self._name)
        self._thread = thread
        self._random = part.random()
        self._by_name: deque[tuple[float, str]] = deque()
        self._again: deque[tuple[float, OpenDevice, str]] = deque()

    def adopt(self) -> None:
        """Release what an earlier generation left."""
        for row in books.rows_of(self._part.ledger, f"{self._part.name}."):
            if row.state == "active":
                self._marker.say(self._part.netns, End(row.owner))
                self._host.release(row.id)

    def work(self) -> None:
        """Start and stop VMs until told to stop."""
        number = 0
        while not self._stop.is_set():
            number += 1
            self._random = self._part.random(self._thread, number)
            self._round(number)
            self._clean_up_by_name()
            self._release_again()
            self._look_after()
        self._marker.close()

    def _round(self, number: int) -> None:
        random = self._random
        owner = f"{self._name}.{number}"
        specs = random_specs(random, owner)
        bound = random.random() < 0.5
        nap, again = random.random() * LONGEST, random.random() < 0.5
        move = random.random() < 0.2
        asked = specs
        if self._part.broken == NO_WAIT:
            asked = [spec._replace(fin_wait=0) for spec in specs]
        try:
            leases = self._host.acquire_all(asked, pid=os.getpid() if bound else None)
        except TapsterError as error:
            refused(self._marker, self._part, owner, str(error))
            return
        cards = [
            Card.asked(spec, self._part.netns, self._part.ledger)._replace(
                name=lease.name,
                ifindex=lease.ifindex,
                mac=lease.mac,
                fds=lease.detach_fds(),
            )
            for spec, lease in zip(specs, leases, strict=True)
        ]
        vm = RunningVm(self._marker, cards, bound=bound)
        vm.talk()
        self._stop.wait(nap)
        if move:
            self._move(vm, cards[0], leases[0].id)
        if again:
            vm.talk()
        vm.stop()
        for spec, lease in zip(specs, leases, strict=True):
            self._host.release(lease)
            due = boottime() + spec.fin_wait + random.random() * LATE
            self._again.append((due, lease, spec.owner))
            if self._part.broken == BY_NAME:
                due = boottime() + lease.lease.fin_wait + random.random()
                self._by_name.append((due, lease.name))

    def _move(self, vm: RunningVm, card: Card, lease: str) -> None:
        """Move a running VM to the other bridge, if it is on one."""
        if not card.bridge:
            return
        (other,) = set(BRIDGES) - {card.bridge}
        with self._hindered():
            vm.move(card, other, lambda to: self._set_bridge(lease, to))

    def _set_bridge(self, lease: str, bridge: str) -> None:
        self._host.set(lease, bridge=bridge)

    @contextmanager
    def _hindered(self) -> Iterator[None]:
        """Count a refusal that an outsider or a repair caused."""
        try:
            yield
        except TapsterError as error:
            hindered(self._marker, self._part, str(error))

    def _clean_up_by_name(self) -> None:
        """Clean up by name, as a manager must not do: the storm has to find the
        harm."""
        while self._by_name and self._by_name[0][0] < boottime():
            _, name = self._by_name.popleft()
            command = ["ip", "-n", self._part.netns, "link", "set", name, "nomaster"]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def _release_again(self) -> None:
        """Release again what was released before: the name may be another VM's."""
        while self._again and self._again[0][0] < boottime():
            _, device, owner = self._again.popleft()
            self._host.release(device)
            try:
                waiting = self._host.look_up(device.name, owner=owner)
            except NoSuchLease:
                outcome = "nothing was left"
            else:
                assert waiting.id == device.id, (waiting, device)
                outcome = "the device still waited"
            self._marker.say(self._part.netns, Tally({f"removed again: {outcome}": 1}))

    def _look_after(self) -> None:
        """Sometimes do what any process may do at any time: recover, reap, list."""
        draw = self._random.randrange(25)
        with self._hindered():
            if draw == 0:
                self._host.reap()
            elif draw == 1:
                self._count(self._host.recover())
            elif draw == 2:
                self._count(self._host.settle())

    def _count(self, repairs: list[Repair]) -> None:
        what = Counter(f"recover: {repair.action}" for repair in repairs)
        self._marker.say(self._part.netns, Tally(what))


def open_taps() -> Iterator[str]:
    """The descriptors of taps and macvtaps that this process has open."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(("/dev/net/tun", "/tap")):
            yield target


def main() -> None:
    part, stop = given(), stop_at_end_of_input()
    netns = None if part.inside else part.netns
    with Host(ledger_path(part.ledger), netns=netns) as host:
        threads = [Manager(part, host, number, stop) for number in range(THREADS)]
        if part.generation:
            threads[0].adopt()
        work_all([thread.work for thread in threads], stop)
        left = list(open_taps())
        assert not left, left


if __name__ == "__main__":
    main()
