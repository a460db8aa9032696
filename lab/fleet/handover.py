# SPDX-License-Identifier: Apache-2.0
"""Hand a talking guest from host to host, and kill each command on the way.

Guest X runs on one of three hosts. A peer on each host asks X every few milliseconds,
and X answers. A hand-over follows docs/fleet.md. Each of its commands is first killed
with SIGKILL at a random system call, then typed again, as an administrator does.

Judges: the peers measure how long X is silent. Sockets on the uplink of each host, and
the taps of X, see each frame to and from X. etcdctl shows what etcd says.
"""

import json
import os
import random
import select
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import PACKET_OUTGOING, socket
from time import monotonic
from typing import Any, NamedTuple

from lab import frames
from lab.fleet.etcd import Cluster
from lab.fleet.switched import SwitchedHost, join_hosts
from tapster.fleet.keys import Keys
from tapster.fleet.registration import Epoch, parse_epoch

HOSTS = ("a", "b", "c")
X_MAC = "52:54:00:aa:bb:cc"
KIND = 0x88B5
"""The EtherType for experiments."""
TICK = 0.005
"""Seconds between two questions of a peer."""
ANSWER_SECONDS = 20.0
CALLS = ("sendto", "recvfrom", "ioctl", "pwrite64", "fcntl")
"""The system calls to kill at."""
CANCELLED = 0.1
"""The share of migrations that fail."""
SYNCED = 0.8
"""The share of hand-overs after which a host syncs before the next hand-over."""
RESTS = 0.2
"""The share of hand-overs after which every host syncs."""

BODY = struct.Struct("!cBIQ")
"""A question, an answer or an announcement; the peer; the phase; a number."""


class Phase(NamedTuple):
    """Where frames to X may arrive, and which host X runs on."""

    arriving: frozenset[str]
    running: str | None


class Peer(NamedTuple):
    """A guest that asks X."""

    host: str
    mac: str
    fd: int


class Conversation:
    """Peers that ask X all the time, in a thread, and the judge of their frames."""

    def __init__(self, peers: Sequence[Peer], uplinks: dict[str, socket]) -> None:
        self.peers = peers
        self.asked = self.answered = 0
        self.longest = 0.0
        """The longest time in seconds for which a peer did not hear X."""
        self.faults: list[str] = []
        self._uplinks = uplinks
        self._taps: dict[str, int] = {}
        self._closing: list[int] = []
        # Until X has spoken, the switch sends what is for X to all.
        self._phases = [Phase(frozenset(uplinks), None)]
        self._heard: dict[int, float] = {}
        self._silence = 0.0
        self._announced: set[int] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._done = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    # What the VMMs do

    def plug(self, host: str, tap: int) -> None:
        """Give X a tap on a host, on which X does not run yet."""
        with self._lock:
            self._taps[host] = tap

    def unplug(self, host: str) -> None:
        """End the VMM of a host."""
        with self._lock:
            self._closing.append(self._taps.pop(host))
            self._wait(lambda: not self._closing)

    def pause(self) -> None:
        """X runs nowhere; what is sent to X may still arrive where X ran."""
        with self._lock:
            self._phases.append(self._phases[-1]._replace(running=None))

    def resume(self, host: str) -> float:
        """Run X on a host. Return how long the peers did not hear X.

        X announces itself, as QEMU does, until each peer has heard X. From then on
        every switch on the way knows where X is.
        """
        with self._lock:
            before = self._phases[-1].arriving
            self._phases.append(Phase(before | {host}, host))
            self._announced.clear()
            self._silence = 0.0
            self._wait(lambda: len(self._announced) == len(self.peers))
            self._phases.append(Phase(frozenset({host}), host))
            now = len(self._phases) - 1
            self._wait(lambda: self._last_answer == now)
            return self._silence

    _last_answer = 0

    def _wait(self, met: Callable[[], bool]) -> None:
        if not self._done.wait_for(met, ANSWER_SECONDS):
            self.faults.append("X is not heard")

    # The guests

    def _talk(self) -> None:
        number = 0
        due = monotonic()
        while not self._ending.is_set():
            with self._lock:
                while self._closing:
                    os.close(self._closing.pop())
                taps = dict(self._taps)
            known: list[Any] = [
                *taps.values(),
                *(peer.fd for peer in self.peers),
                *self._uplinks.values(),
            ]
            ready, _, _ = select.select(known, [], [], max(due - monotonic(), 0))
            with self._lock:
                self._receive(taps, set(ready))
                if monotonic() >= due:
                    number += 1
                    due = monotonic() + TICK
                    self._ask(number)
                self._done.notify_all()

    def _ask(self, number: int) -> None:
        phase = len(self._phases) - 1
        running = self._phases[-1].running
        for index, peer in enumerate(self.peers):
            body = BODY.pack(b"?", index, phase, number)
            os.write(peer.fd, frames.ether(peer.mac, X_MAC, KIND, body))
            self.asked += 1
        if running and len(self._announced) < len(self.peers):
            body = BODY.pack(b"!", 0, phase, number)
            frame = frames.ether(X_MAC, frames.BROADCAST, KIND, body)
            os.write(self._taps[running], frame)

    def _receive(self, taps: dict[str, int], ready: set[Any]) -> None:
        for host, socket_ in self._uplinks.items():
            if socket_ in ready:
                self._judge_uplink(host, socket_)
        for host, tap in taps.items():
            if tap in ready and self._taps.get(host) == tap:
                self._answer(host, os.read(tap, 2048))
        for index, peer in enumerate(self.peers):
            if peer.fd in ready:
                self._hear(index, os.read(peer.fd, 2048))

    def _answer(self, host: str, frame: bytes) -> None:
        """Let X answer a question, if X runs there."""
        if frame[:6] != frames.mac(X_MAC) or not _is_ours(frame):
            return
        _, index, phase, number = BODY.unpack_from(frame, 14)
        self._check(host, phase, "a frame to X arrives at its tap")
        if self._phases[-1].running != host:
            return
        body = BODY.pack(b".", index, phase, number)
        peer = self.peers[index]
        os.write(self._taps[host], frames.ether(X_MAC, peer.mac, KIND, body))

    def _hear(self, index: int, frame: bytes) -> None:
        """Let a peer hear X, and measure the silence since the last time."""
        if frame[6:12] != frames.mac(X_MAC) or not _is_ours(frame):
            return
        kind, _, phase, _ = BODY.unpack_from(frame, 14)
        if kind == b"!":
            self._announced.add(index)
            return
        now = monotonic()
        silence = now - self._heard.get(index, now)
        self._silence = max(self._silence, silence)
        self.longest = max(self.longest, silence)
        self._heard[index] = now
        self._last_answer = phase
        self.answered += 1

    def _judge_uplink(self, host: str, uplink: socket) -> None:
        while True:
            try:
                frame, address = uplink.recvfrom(2048)
            except BlockingIOError:
                return
            leaves = address[2] == PACKET_OUTGOING
            if leaves and frame[6:12] == frames.mac(X_MAC):
                if not _is_ours(frame):
                    self.faults.append(f"host {host} itself sends from the MAC of X")
                elif host not in self._arriving(frame):
                    self.faults.append(f"a frame from X leaves host {host}")
            elif not leaves and frame[:6] == frames.mac(X_MAC) and _is_ours(frame):
                _, _, phase, _ = BODY.unpack_from(frame, 14)
                self._check(host, phase, "a frame to X arrives from the switch")

    def _arriving(self, frame: bytes) -> frozenset[str]:
        phase: int = BODY.unpack_from(frame, 14)[2]
        return self._phases[phase].arriving

    def _check(self, host: str, phase: int, what: str) -> None:
        right = self._phases[phase].arriving
        if host not in right:
            self.faults.append(f"{what} on {host}, not on {' or '.join(right)}")


def _is_ours(frame: bytes) -> bool:
    return frame[12:14] == KIND.to_bytes(2, "big")


class Figures:
    """What was seen."""

    def __init__(self) -> None:
        self.handed_over = self.cancelled = self.at_rest = 0
        self.kills: dict[str, int] = {}
        """How often each command was killed."""
        self.silences: list[float] = []
        """Of hand-overs whose `take` was not killed."""
        self.silences_killed: list[float] = []


class Relay:
    """A guest that is handed over again and again."""

    def __init__(
        self, hosts: Sequence[SwitchedHost], etcd: Cluster, seed: int, stack: ExitStack
    ) -> None:
        self.figures = Figures()
        self._hosts = hosts
        self._etcd = etcd
        self._random = random.Random(seed)
        self._unsynced: set[SwitchedHost] = set()
        self._calls: dict[tuple[str, str], int] = {}
        peers = []
        for host in hosts:
            lease = _printed(host.run("add", "--bridge=br0", "--no-vnet-hdr", "--json"))
            fd = host.open_tap(lease["name"])
            stack.callback(os.close, fd)
            peers.append(Peer(host.name, lease["mac"], fd))
        uplinks = {
            host.name: stack.enter_context(host.sniff("uplink")) for host in hosts
        }
        self.talk = Conversation(peers, uplinks)
        stack.callback(self.talk.close)
        self._at = hosts[0]
        self._lease = self._add(self._at)
        self._epoch = Epoch(0, 0)
        self._at.run("fleet", "sync")
        self.talk.plug(self._at.name, self._at.open_tap(self._lease["name"]))
        stack.callback(lambda: self.talk.unplug(self._at.name))
        self.talk.resume(self._at.name)

    def _add(self, host: SwitchedHost, *more: str) -> dict[str, str]:
        return _printed(host.run(*_ADD, "--json", *more))

    def step(self) -> None:
        """Hand X over to another host, or try to."""
        source = self._at
        target = self._random.choice([h for h in self._hosts if h is not source])
        epoch = source.run("fleet", "epoch", self._lease["id"]).strip()
        assert parse_epoch(epoch) == self._epoch
        incoming = ("--incoming", epoch, "--standby")
        if self._kill(target, *_ADD, *incoming):
            target.run("recover")
        for left in target.leases():
            if left["owner"] == "X" and left["state"] != "fin_wait":
                target.run("rm", left["id"])
        lease = self._add(target, *incoming)
        self.talk.plug(target.name, target.open_tap(lease["name"]))
        if self._random.random() < CANCELLED:
            self.talk.unplug(target.name)
            self._end(target, lease["id"])
            self.figures.cancelled += 1
            return
        self.talk.pause()
        killed = self._random.random() < 0.5 and self._kill(target, "take", lease["id"])
        target.run("take", lease["id"])
        silence = self.talk.resume(target.name)
        silences = (self.figures.silences, self.figures.silences_killed)[killed]
        silences.append(silence)
        ended, self._lease = self._lease, lease
        self._at, self._epoch = target, self._epoch._replace(step=self._epoch.step + 1)
        self.talk.unplug(source.name)
        after: list[Callable[[], None]] = [
            lambda: self._end(source, ended["id"]),
            lambda: self._sync(source),
            lambda: self._sync(target),
        ]
        self._unsynced |= {source, target}
        self._random.shuffle(after)
        for do in after:
            do()
        self.figures.handed_over += 1
        if self._random.random() < RESTS:
            self.rest()
        else:
            self._check()

    def _end(self, host: SwitchedHost, lease: str) -> None:
        if self._kill(host, "rm", lease):
            host.run("rm", lease, "--ignore-missing")
        self._unsynced.add(host)

    def _sync(self, host: SwitchedHost) -> None:
        if self._random.random() < SYNCED:
            if self._kill(host, "fleet", "sync"):
                host.run("fleet", "sync", allowed=(0, 1))
            self._unsynced.discard(host)

    def _kill(self, host: SwitchedHost, *arguments: str) -> bool:
        """Kill a command at a random system call. False if it ended before."""
        call = self._random.choice(CALLS)
        which = (arguments[0], call)
        most = self._calls.get(which, 4)
        number = self._random.randint(1, most)
        # The source reports the target until the source has released X.
        allowed = (0, 1) if arguments[0] == "fleet" else (0,)
        killed = host.killed(call, number, *arguments, allowed=allowed)
        # So many of these calls a command makes, as far as is known.
        self._calls[which] = max(most, 2 * number) if killed else max(number - 1, 1)
        kills = self.figures.kills
        kills[arguments[0]] = kills.get(arguments[0], 0) + killed
        return killed

    def rest(self) -> None:
        """Let each host sync, and check what etcd says."""
        for host in self._hosts:
            host.run("fleet", "sync")
        self._unsynced.clear()
        self._check()

    def _check(self) -> None:
        """Compare etcd with the truth, if each host has pushed all that it knows."""
        if self._unsynced:
            return
        (found,) = self._etcd.values(Keys().registration("default", X_MAC)).values()
        shown = (found["vm"], found["host"], found["lease"], found["epoch"])
        right = ("X", self._at.name, self._lease["id"], str(self._epoch))
        assert (*shown, found["state"]) == (*right, "active")
        rows = self._etcd.values(Keys().rows())
        holders = {key for key, row in rows.items() if row["mac"] == X_MAC}
        assert holders == {Keys().row(self._at.name, self._lease["id"])}
        self.figures.at_rest += 1


_ADD = (
    *("add", "--bridge=br0", "--no-vnet-hdr", "--owner=X", "--vm=X"),
    *("--mac", X_MAC, "--fin-wait=0.2"),
)


def _printed(text: str) -> dict[str, str]:
    lease: dict[str, str] = json.loads(text)["lease"]
    return lease


@contextmanager
def relay(folder: Path, etcd: Cluster, seed: int) -> Iterator[Relay]:
    """A guest that runs on the first of three hosts; in namespaces of the caller's."""
    with ExitStack() as stack:
        hosts = join_hosts(HOSTS, folder, etcd)
        for host in hosts:
            stack.callback(host.close)
        yield Relay(hosts, etcd, seed, stack)
