# SPDX-License-Identifier: Apache-2.0
"""A VM manager that uses the command, and sometimes kills it.

Each of its threads starts VMs with `tapster add` or `tapster run`, and repairs with
`recover` and `reap`. What is killed is drawn at random: the command itself, at a random
moment; the VM that `run` started; `run` but not its VM; or both.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path
from threading import Event

from lab.lines import Lines
from soak import books, ground
from soak.marks import Marker
from soak.messages import Kill, Tally
from soak.part import (
    Part,
    boottime,
    given,
    ledger_path,
    stop_at_end_of_input,
    wait_ended,
    work_all,
)
from soak.random_specs import options, random_specs
from soak.refusals import hindered, refused
from soak.vm import BACKGROUND, FOREGROUND, Card, RunningVm

TAPSTER = str(Path(sys.executable).with_name("tapster"))
THREADS = 3
LONGEST = 1.5
"""Seconds that a VM runs."""
LATE = 2.0
"""Seconds at most after FIN WAIT until an owner removes its device once more."""
KILL_WITHIN = 0.4
"""Seconds within which a command is killed; a command takes about that long."""
END_SECONDS = 60.0
"""Seconds for anything to end by itself."""

OVER = "no lease has the name or id"
"""The error of `rm` for a lease that an outsider ended first."""


class Commander:
    """One thread of a commander."""

    def __init__(self, part: Part, thread: int, stop: Event) -> None:
        self._part = part
        self._stop = stop
        self._thread = thread
        self._name = f"{part.process}/{thread}"
        self._marker = Marker(self._name)
        self._random = part.random()
        self._again: deque[tuple[float, str, str]] = deque()
        self._environment = os.environ | {"TAPSTER_LEDGER": ledger_path(part.ledger)}

    def work(self) -> None:
        """Start and stop VMs until told to stop."""
        number = 0
        while not self._stop.is_set():
            number += 1
            self._random = self._part.random(self._thread, number)
            self._remove_again()
            draw = self._random.random()
            if draw < 0.45:
                self._run(number)
            elif draw < 0.85:
                self._add(number)
            else:
                self._mend()
        self._marker.close()

    # tapster add, tapster rm

    def _add(self, number: int) -> None:
        random, part = self._random, self._part
        owner = f"{self._name}.{number}"
        spec = random_specs(random, owner)[0]._replace(queues=1)
        kill_add, kill_rm = random.random() < 0.15, random.random() < 0.15
        nap = random.random() * LONGEST
        words = _words(options(spec))
        done = self._call(kill_add, "add", *words, "--netns", part.netns, "--json")
        if done is None or done.returncode:
            if done is not None:
                refused(self._marker, part, owner, done.stderr)
            for row in books.rows_of(part.ledger, f"{owner}."):
                # The device was made, and the command was killed before it said so.
                if row.state == "active":
                    self._remove(row.id, kill=False)
            return
        lease = json.loads(done.stdout)["lease"]
        card = Card.asked(spec, part.netns, part.ledger)._replace(
            name=lease["name"], ifindex=lease["ifindex"], mac=lease["mac"]
        )
        vm = RunningVm(self._marker, [card], bound=False)
        self._look(vm, card)
        self._stop.wait(nap)
        self._look(vm, card)
        vm.stop()
        self._remove(lease["id"], kill=kill_rm)
        due = boottime() + spec.fin_wait + random.random() * LATE
        self._again.append((due, lease["name"], spec.owner))

    def _remove_again(self) -> None:
        """Remove by name what was removed before: the name may be another VM's."""
        while self._again and self._again[0][0] < boottime():
            _, name, owner = self._again.popleft()
            options = ["--owner", owner] if self._random.random() < 0.5 else []
            done = self._call(False, "rm", name, *options, "--netns", self._part.netns)
            assert done is not None
            self._marker.say(
                self._part.netns, Tally({f"removed again: {_outcome(done)}": 1})
            )

    def _look(self, vm: RunningVm, card: Card) -> None:
        """Check where the device is: no process has it open, so it cannot send
        frames."""
        since = boottime()
        if card.bridge and ground.bridge_of(card.netns, card.ifindex) != card.bridge:
            vm.cut(card, since)

    def _remove(self, id: str, *, kill: bool) -> None:
        if kill:
            self._call(kill, "rm", id)
        done = self._call(False, "rm", id)
        assert done is not None
        assert done.returncode == 0 or OVER in done.stderr, done

    # tapster run

    def _run(self, number: int) -> None:
        random, part = self._random, self._part
        name = f"{part.name}-{self._thread}.{number}"
        specs = random_specs(random, name)
        nap = random.random() * LONGEST
        early = random.random() * KILL_WITHIN
        kill = random.choice(("nobody", "nobody", "early", "run", "VM", "both"))
        cards = [Card.asked(spec, part.netns, part.ledger) for spec in specs]
        command = [TAPSTER, "run", "--netns", part.netns]
        for spec in specs:
            command += ["--nic", _pairs(options(spec))]
        where = random.choice((FOREGROUND, BACKGROUND))
        command += ["--", sys.executable, "-m", "soak.vm", f"{name}/", where]
        for i, card in enumerate(cards):
            device = f"{{ifindex{i}}},{{name{i}}},{{mac{i}}},{{fds{i}}}"
            command += [json.dumps(card), device]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        ) as run:
            assert run.stderr
            if kill == "early":
                self._kill_within(run, early, "run, early")
            vm = self._wait_up(run)
            if vm is not None:
                self._stop.wait(nap)
                self._end(run, kill, vm, name)
                os.close(vm)
            run.wait(END_SECONDS)
            errors = run.stderr.read().decode()
        if vm is None and run.returncode >= 0:
            refused(self._marker, part, name, errors)

    def _wait_up(self, run: subprocess.Popen[bytes]) -> int | None:
        """Return a pidfd of the VM, or None if it is not started."""
        assert run.stdout
        try:
            up = Lines(run.stdout).wait_for("^up ([0-9]+)", END_SECONDS)
        except TimeoutError:
            return None
        return os.pidfd_open(int(up[1]))

    def _end(self, run: subprocess.Popen[bytes], kill: str, vm: int, name: str) -> None:
        assert run.stdin
        # `run` has ended if its VM is in the background.
        if kill in ("run", "both") and run.poll() is None:
            self._marker.say(self._part.netns, Kill("run"))
            run.kill()
        if kill in ("VM", "both"):
            self._marker.say(self._part.netns, Kill("VM", name))
            signal.pidfd_send_signal(vm, signal.SIGKILL)
        else:
            run.stdin.write(b"\n")
            run.stdin.flush()
        assert wait_ended(vm, END_SECONDS), f"{name} goes on"

    # tapster recover, reap, ls

    def _mend(self) -> None:
        kill = self._random.random() < 0.2
        verb = self._random.choice((["recover", "--json"], ["reap"], ["ls"]))
        done = self._call(kill, *verb)
        if done is None:
            return
        if done.returncode:
            hindered(self._marker, self._part, done.stderr)
        elif verb[0] == "recover":
            repairs = json.loads(done.stdout)["repairs"]
            what = Counter(f"recover: {repair['action']}" for repair in repairs)
            self._marker.say(self._part.netns, Tally(what))

    # Helpers

    def _call(
        self, kill: bool, *arguments: str
    ) -> subprocess.CompletedProcess[str] | None:
        """Run a verb; None if it was killed."""
        moment = self._random.random() * KILL_WITHIN
        process = subprocess.Popen(
            [TAPSTER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            text=True,
        )
        if kill:
            self._kill_within(process, moment, arguments[0])
        out, errors = process.communicate(timeout=END_SECONDS)
        if process.returncode < 0:
            return None
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    def _kill_within(
        self,
        process: subprocess.Popen[str] | subprocess.Popen[bytes],
        seconds: float,
        what: str,
    ) -> None:
        pidfd = os.pidfd_open(process.pid)
        if not wait_ended(pidfd, seconds):
            self._marker.say(self._part.netns, Kill(what))
            process.kill()
        os.close(pidfd)


def _outcome(done: subprocess.CompletedProcess[str]) -> str:
    """Return how `rm` answers an owner that removes a device again.

    It must not succeed unless the owner's own lease still waits.
    """
    if done.returncode == 0 and not done.stderr:
        return "the device still waited"
    assert done.returncode == 1, done
    if "no lease chosen has the name" in done.stderr:
        return "nothing was left"
    assert "belongs to owner" in done.stderr, done
    return "refused, another VM has the name"


def _words(options: dict[str, str]) -> list[str]:
    pairs = ((f"--{key}", value) for key, value in options.items())
    return [word for pair in pairs for word in pair if word]


def _pairs(options: dict[str, str]) -> str:
    return ",".join(
        f"{key}={value}" if value else key for key, value in options.items()
    )


def main() -> None:
    part, stop = given(), stop_at_end_of_input()
    work_all([Commander(part, n, stop).work for n in range(THREADS)], stop)


if __name__ == "__main__":
    main()
