# SPDX-License-Identifier: Apache-2.0
"""One storm, from bare namespaces to the account.

Run as the first process of a pid namespace: every other process of the namespace ends
with it. A storm ends when its time is over, or sooner at the end of its input.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from lab.lines import Lines, readable
from soak import books, ground
from soak.commander import TAPSTER
from soak.judge import BLIND, LEAK, TOO_SOON, Finding
from soak.marks import DEVICE, Marker
from soak.messages import Final, Ground, Kill, Message, Tally
from soak.part import LEDGERS, NAMESPACES, Part, boottime, ledger_path, wait_ended
from soak.table import table
from soak.watcher import WatcherReport, tell

ACTOR_SECONDS = 90.0
"""Seconds for an actor to finish its work."""
REAPING = 30.0
"""Seconds for the reapers to end: the longest FIN WAIT, and then some."""
LONGEST_CALM = 3.0
"""Seconds at most from one kill to the next."""

CAST = {
    "manager": (
        ("m0", "n1", "a", True),
        ("m1", "n2", "a", False),
        ("m2", "n3", "a", False),
        ("m3", "n1", "b", False),
        ("m4", "n2", "b", True),
    ),
    "commander": (
        ("c0", "n1", "a", False),
        ("c1", "n3", "a", False),
        ("c2", "n2", "b", False),
    ),
    "squatter": tuple((f"squatter-{n}", n, "", False) for n in NAMESPACES),
    "outsiders": tuple((f"admin-{n}", n, "", False) for n in NAMESPACES),
}
"""The actors by their modules: name, namespace, ledger, whether they live inside."""


class ActorProcess:
    """A running actor."""

    def __init__(self, module: str, part: Part, stdin: int = subprocess.PIPE) -> None:
        self.module = module
        self.part = part
        self._process = subprocess.Popen(part.command(module), stdin=stdin)
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def ended(self) -> bool:
        return wait_ended(self._pidfd, 0)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.tell_to_end()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def tell_to_end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self) -> str:
        """Wait until the actor has ended. Return how it failed, or ""."""
        if not wait_ended(self._pidfd, ACTOR_SECONDS):
            # Python then prints where it hangs.
            self._process.send_signal(signal.SIGABRT)
            self._process.wait()
            return f"{self.part.process} hung"
        status = self._process.wait()
        return f"{self.part.process} ended with status {status}" if status else ""


class Storm:
    """The conductor: casts the parts, kills, and clears up."""

    def __init__(self, seed: int, broken: str) -> None:
        self._seed = seed
        self._broken = broken
        self._random = Random(f"{seed}/storm")
        self._marker = Marker("storm")
        self._actors: list[ActorProcess] = []
        self._stopped: list[ActorProcess] = []
        self._failures: list[str] = []
        ground.found()
        reading, writing = os.pipe()
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "soak.watcher", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[writing],
        )
        os.close(writing)
        assert self._watcher.stdout
        self._heard = Lines(self._watcher.stdout)
        self._heard.wait_for("^ready$", ACTOR_SECONDS)
        ground.build()
        self._say(Ground())
        self._ground = {netns: _names(netns) for netns in NAMESPACES}
        self._strangers = ActorProcess("outsiders", Part(seed, "strangers"), reading)
        os.close(reading)

    def rage(self, seconds: float) -> None:
        """Let all actors loose for so long."""
        print("soak: the storm begins", flush=True)
        for module, parts in CAST.items():
            for name, netns, ledger, inside in parts:
                part = Part(self._seed, name, netns, ledger, 0, inside, self._broken)
                self._actors.append(ActorProcess(module, part))
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not self._failed():
            calm = self._random.random() * LONGEST_CALM
            if readable(sys.stdin.fileno(), min(end, now + calm)):
                break
            self._wake()
            self._strike()
        self._wake()

    def calm(self) -> None:
        """Let every actor finish, then repair everything."""
        for actor in self._actors:
            actor.tell_to_end()
        self._failures += [wrong for actor in self._actors if (wrong := actor.wait())]
        assert self._watcher.stdin
        self._watcher.stdin.write(b"calm\n")
        self._watcher.stdin.flush()
        self._failures += filter(None, [self._strangers.wait()])
        for ledger in LEDGERS:
            for verb in ("recover", "reap"):
                command = [TAPSTER, "--ledger", ledger_path(ledger), verb]
                done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
                if done.returncode:
                    self._failures.append(f"{verb} ended with {done.returncode}")
                self._wait_reapers(ledger)
        self._say(Final())

    def account(self) -> int:
        """Print the table, and what is wrong; the exit status."""
        assert self._watcher.stdin
        self._watcher.stdin.close()
        (line,) = self._heard.until(time.monotonic() + ACTOR_SECONDS)
        report = WatcherReport.read(line)
        self._watcher.wait()
        findings = [*report.findings, *self._look_around(report)]
        for finding in findings[len(report.findings) :]:
            tell(finding)
        print(table(self._seed, report.tally, findings))
        for failure in self._failures:
            print(f"soak: {failure}", file=sys.stderr)
        return 1 if findings or self._failures else 0

    def _strike(self) -> None:
        """Kill a manager, or reapers, or let a manager stand still for a while."""
        managers = [actor for actor in self._actors if actor.module == "manager"]
        manager, ledger = self._random.choice(managers), self._random.choice(LEDGERS)
        draw, both = self._random.random(), self._random.random() < 0.5
        if draw < 0.4:
            self._kill_manager(manager)
        elif draw < 0.7:
            self._kill_reapers(ledger, both=both)
        else:
            manager.signal(signal.SIGSTOP)
            self._stopped.append(manager)
            self._marker.say(manager.part.netns, Tally({"standstills": 1}))

    def _wake(self) -> None:
        while self._stopped:
            self._stopped.pop().signal(signal.SIGCONT)

    def _kill_reapers(self, ledger: str, *, both: bool) -> None:
        found = _reapers(ledger)
        for pid in found if both else found[:1]:
            self._marker.say(NAMESPACES[0], Kill("reaper"))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _kill_manager(self, manager: ActorProcess) -> None:
        if manager.ended:
            return
        for netns in NAMESPACES:
            what = "manager" if netns == manager.part.netns else ""
            self._marker.say(netns, Kill(what, manager.part.process))
        manager.kill()
        part = manager.part._replace(generation=manager.part.generation + 1)
        self._actors[self._actors.index(manager)] = ActorProcess("manager", part)

    def _failed(self) -> bool:
        return any(actor.ended for actor in [*self._actors, self._strangers])

    def _wait_reapers(self, ledger: str) -> None:
        """Wait for the end of the reapers: they end when no lease waits."""
        while reapers := _reapers(ledger):
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(reapers[0])
                ended = wait_ended(pidfd, REAPING)
                os.close(pidfd)
                if not ended:
                    self._failures.append(f"reaper {reapers[0]} does not end")
                    return

    def _look_around(self, report: WatcherReport) -> list[Finding]:
        """Return what is left, or was wrong, by witnesses other than the kernel's
        reports."""
        found = []

        def find(kind: str, where: str, what: str) -> None:
            found.append(Finding(kind, where, boottime(), what))

        for netns in NAMESPACES:
            names = _names(netns)
            if names != set(report.names[netns]):
                find(BLIND, netns, f"{report.names[netns]} were reported, not {names}")
            for name in names ^ self._ground[netns]:
                find(LEAK, netns, f"{name} is left, or was taken")
        for link in ground.links(ground.AWAY):
            if link["ifname"] != "lo":
                find(LEAK, ground.AWAY, f"{link} is left")
        for ledger in LEDGERS:
            for row in books.rows(ledger):
                find(LEAK, f"ledger {ledger}", f"{row} is left")
            for shared in books.shared_names(ledger):
                find(TOO_SOON, f"ledger {ledger}", shared)
        for pid in _others():
            find(LEAK, "/proc", f"process {pid} is left: {_command(pid)}")
        return found

    def _say(self, message: Message) -> None:
        for netns in NAMESPACES:
            self._marker.say(netns, message)


def _names(netns: str) -> set[str]:
    return {link["ifname"] for link in ground.links(netns)} - {DEVICE}


def _reapers(ledger: str) -> list[int]:
    """Return the processes that reap for this ledger, the leader first."""
    wanted = ["-m", "tapster.reaper", ledger_path(ledger)]
    return sorted(
        (pid for pid in _others() if _command(pid)[2:5] == wanted), reverse=True
    )


def _others() -> list[int]:
    """Return all processes but this one and the first."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid not in (1, os.getpid())]


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def run(seed: int, seconds: float, broken: str) -> int:
    storm = Storm(seed, broken)
    storm.rage(seconds)
    storm.calm()
    return storm.account()


def main() -> None:
    """Be the first process: it also has to wait for orphans."""
    seed, seconds, broken = sys.argv[1:]
    storm = os.fork()
    if not storm:
        sys.exit(run(int(seed), float(seconds), broken))
    while True:
        pid, status = os.wait()
        if pid == storm:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
