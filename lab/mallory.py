# SPDX-License-Identifier: Apache-2.0
"""What a user without privileges can try against the daemon: one function each.

A function runs in a process of that user, again and again until it is killed.
"""

import itertools
import json
import os
import random
import signal
import socket
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import tapster
from lab.daemon import ALICE
from tapster import TapsterError
from tapster.kernel import unix
from tapster.rpc import varlink
from tapster.rpc.interface import METHODS

Attack = Callable[["Target"], None]
ATTACKS: dict[str, Attack] = {}

MALLORY = 61011
"""The user who attacks."""
METRICS = ("127.0.0.1", 9474)
POLICY = f"""
[limits]
connections = 200
idle = 300.0
stall = 1.0
keys = 20

[metrics]
listen = "{METRICS[0]}:{METRICS[1]}"
everybody = true

[[allow]]
users = ["{ALICE}"]
bridges = ["br0"]
features = ["fin-wait"]

[[allow]]
users = ["{MALLORY}"]
bridges = ["br0"]
templates = ["vnet%d", "m*"]
features = ["fin-wait", "naming"]
netns = ["lab*"]
vlans = ["1-100"]
devices = 4

[[allow]]
users = ["{MALLORY}"]
bridges = ["br1"]
features = ["mtu"]
"""
"""A policy for Mallory and for another user."""

"".encode("idna")  # to import it while the files of Python can be read
_kept: list[Any] = []
"""What an attack keeps open from one round to the next."""
_numbers = itertools.count()
_chance = random.Random(1)


class Target:
    """The daemon's sockets, and the id of a lease of another user."""

    def __init__(self, path: str, metrics: tuple[str, int], lease: str) -> None:
        self.path = path
        self.metrics = metrics
        self.lease = lease

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(self.path)
        made.settimeout(1)
        return made

    def client(self) -> tapster.Client:
        return tapster.connect(self.path)


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


def call(method: str, parameters: Any = None, **more: Any) -> bytes:
    given = {} if parameters is None else parameters
    message = {"method": f"io.tapster.{method}", "parameters": given, **more}
    return json.dumps(message).encode() + b"\0"


PING = call("Ping")


def pour(into: socket.socket, data: bytes, times: int = 100) -> None:
    """Send as much as fits, and read nothing."""
    into.setblocking(False)
    with suppress(OSError):
        for _ in range(times):
            into.send(data)


def keep(made: socket.socket, most: int = 40) -> None:
    """Keep a connection open, with the latest others."""
    _kept.append(made)
    if len(_kept) > most:
        _kept.pop(0).close()


def tap(**fields: Any) -> dict[str, Any]:
    return {"nics": [{"tap": {"bridge": "br0", **fields}}], "bind": "close"}


def ask(target: Target, data: bytes) -> dict[str, Any]:
    """Send one request; its answer."""
    with target.connect() as made:
        made.sendall(data)
        received = b""
        while b"\0" not in received and (part := made.recv(1 << 16)):
            received += part
    answer: dict[str, Any] = json.loads(received.partition(b"\0")[0] or b"{}")
    return answer


def acquired(made: socket.socket, asked: dict[str, Any]) -> str | None:
    """Acquire a device; return the id of its lease, or None if it is refused."""
    made.sendall(call("Acquire", asked))
    data, fds = unix.receive(made, 1 << 16, 8)
    unix.close(fds)
    answer = json.loads(data.partition(b"\0")[0])
    if "error" in answer:
        return None
    return str(answer["parameters"]["devices"][0]["lease"]["id"])


def lingering() -> tuple[int, socket.socket]:
    """A descriptor whose last close waits for an hour, and what ends that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    pour(sender, b"x" * 65536, 1000)
    sender.setblocking(True)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sender.detach(), receiver


def with_a_long_path() -> int:
    """A descriptor whose path has more bytes than the kernel shows."""
    here = os.open(".", os.O_PATH)
    try:
        os.chdir(tempfile.gettempdir())
        name = f"{os.getpid()}-".ljust(250, "x")
        for _ in range(20):
            os.mkdir(name)
            os.chdir(name)
        fd = os.open(".", os.O_RDONLY)
        for _ in range(20):
            os.chdir("..")
            os.rmdir(name)
    finally:
        os.fchdir(here)
        os.close(here)
    return fd


def close_aside(fd: int) -> None:
    """Close in a thread: if the daemon closed before, this close is the one that
    waits."""
    threading.Thread(target=os.close, args=[fd], daemon=True).start()


# Memory


@attack
def watch_and_send_bytes_that_end_no_request(target: Target) -> None:
    made = target.connect()
    made.sendall(call("Watch", more=True))
    pour(made, b"x" * 65536, 1000)
    keep(made)


@attack
def send_a_request_without_end(target: Target) -> None:
    made = target.connect()
    pour(made, b"[" * 65536, 1000)
    keep(made)


@attack
def begin_requests_and_stop(target: Target) -> None:
    made = target.connect()
    made.sendall(b'{"method":"io.tapster.Ping"' + b" " * 60000)
    keep(made)


@attack
def read_no_answer(target: Target) -> None:
    made = target.connect()
    describe = {"interface": "io.tapster"}
    method = "org.varlink.service.GetInterfaceDescription"
    message = json.dumps({"method": method, "parameters": describe}).encode() + b"\0"
    pour(made, message, 1000)
    keep(made)


@attack
def watch_and_read_nothing(target: Target) -> None:
    made = target.connect()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    made.sendall(call("Watch", more=True))
    keep(made)


# Descriptors


@attack
def hand_over_descriptors_whose_close_waits(target: Target) -> None:
    fd, receiver = lingering()
    _kept.append(receiver)
    with target.connect() as made, suppress(OSError):
        for _ in range(8):
            unix.send(made, PING, [fd] * 8)
    close_aside(fd)


@attack
def leave_descriptors_unread_whose_close_waits(target: Target) -> None:
    fd, receiver = lingering()
    _kept.append(receiver)
    with target.connect() as made, suppress(OSError):
        made.sendall(b"not a request\0")
        unix.send(made, b"x", [fd] * 8)
    close_aside(fd)


@attack
def hand_over_many_descriptors(target: Target) -> None:
    with target.connect() as made, suppress(OSError):
        for number in (1, 8, 9, 250):
            unix.send(made, PING, [0] * number)


@attack
def hand_over_a_descriptor_with_a_long_path(target: Target) -> None:
    fd = with_a_long_path()
    try:
        with target.connect() as made, suppress(OSError):
            unix.send(made, PING, [fd])
            made.recv(100)
    finally:
        os.close(fd)


@attack
def hand_over_descriptors_behind_one_whose_close_waits(target: Target) -> None:
    fd, receiver = lingering()
    _kept.append(receiver)
    while len(_kept) < 20:
        _kept.append(target.connect())
    with suppress(OSError):
        unix.send(_kept[-1], PING, [fd])
    close_aside(fd)
    for made in _kept[1:]:
        with suppress(OSError):
            unix.send(made, PING, [0] * 8)
            made.recv(100)


@attack
def bind_a_lease_to_many_processes(target: Target) -> None:
    with target.client() as client:
        with client.acquire(tapster.Tap(bridge="br0", fin_wait=0)) as opened:
            for _ in range(20):
                pid = os.fork()
                if not pid:
                    os._exit(0)
                with suppress(TapsterError):
                    client.bind([opened], pid)
                os.waitpid(pid, 0)
        with suppress(TapsterError):
            client.release(opened)


# Floods


@attack
def flood_with_pings_on_one_connection(target: Target) -> None:
    if not _kept:
        _kept.append(target.connect())
    pour(_kept[0], PING * 1000)
    with suppress(OSError):
        _kept[0].recv(1 << 20)


@attack
def flood_with_pings_on_many_connections(target: Target) -> None:
    while len(_kept) < 60:
        _kept.append(target.connect())
    for made in _kept:
        pour(made, PING * 500, 2)
        with suppress(OSError):
            made.recv(1 << 20)


@attack
def flood_with_oneway_requests(target: Target) -> None:
    made = target.connect()
    pour(made, call("List", oneway=True) * 500)
    keep(made)


@attack
def flood_with_methods_that_do_not_exist(target: Target) -> None:
    made = target.connect()
    pour(made, call("Frobnicate") * 500)
    keep(made)


@attack
def connect_and_leave(target: Target) -> None:
    for _ in range(50):
        target.connect().close()


@attack
def connect_and_stay(target: Target) -> None:
    with suppress(OSError):
        keep(target.connect(), 500)


@attack
def reset_connections_in_the_middle_of_a_request(target: Target) -> None:
    for _ in range(20):
        with target.connect() as made:
            made.sendall(PING[:-4])


@attack
def hold_the_metrics_listener(target: Target) -> None:
    with suppress(OSError):
        made = socket.create_connection(target.metrics, 1)
        made.sendall(b"GET / HT")
        keep(made, 100)


# Work that nobody waits for


@attack
def ask_for_devices_and_leave(target: Target) -> None:
    with target.connect() as made:
        made.sendall(call("Acquire", tap(fin_wait=0)))


@attack
def ask_for_devices_and_read_nothing(target: Target) -> None:
    made = target.connect()
    made.sendall(call("Acquire", tap(fin_wait=0)) * 3)
    keep(made, 20)


@attack
def ask_for_the_history_and_leave(target: Target) -> None:
    for _ in range(10):
        with target.connect() as made:
            made.sendall(call("History", {"name": "vnet0"}))


@attack
def fill_the_history(target: Target) -> None:
    with target.client() as client, suppress(TapsterError):
        opened = client.acquire(tapster.Tap(bridge="br0", fin_wait=0))
        opened.close()
        client.release(opened)


@attack
def use_new_keys_for_stable_names(target: Target) -> None:
    key = f"{os.getpid()}-{next(_numbers)}".ljust(255, "x")
    ask(target, call("Acquire", tap(name="m%d", naming="stable", key=key, fin_wait=0)))


@attack
def name_thousands_of_leases_and_devices(target: Target) -> None:
    with target.connect() as made:
        id = acquired(made, {**tap(fin_wait=0), "bind": "nothing"})
        if id is None:
            return
        ask(target, call("Bind", {"leases": [id] * 3000}))
        ask(target, call("Reap", {"leases": [f"{n:x}" for n in range(7000)]}))
        fields = {"lease": id, "fields": ["up"] * 8000, "wiring": {"up": True}}
        ask(target, call("Set", fields))
        nics = [{"tap": {"bridge": "br0"}}] * 2000 + [{"tap": {"queues": -4000}}]
        ask(target, call("Acquire", {"nics": nics}))
        many = [f"10.0.{n >> 8}.{n & 255}" for n in range(3500)]
        ask(target, call("Acquire", tap(filter=True, addresses=many)))
        ask(target, call("Release", {"lease": id}))


@attack
def ask_for_a_history_of_long_labels_and_read_nothing(target: Target) -> None:
    labels = tuple((f"k{number}", "x" * 250) for number in range(4))
    with suppress(TapsterError), target.client() as client:
        for _ in range(0 if _kept else 60):
            opened = client.acquire(
                tapster.Tap(bridge="br0", fin_wait=0, labels=labels)
            )
            opened.close()
            client.release(opened)
    for method in ("History", "Events"):
        made = target.connect()
        keep(made, 60)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with suppress(OSError):
            made.sendall(call(method, more=True))


@attack
def acquire_more_than_allowed(target: Target) -> None:
    wanted = {"nics": [{"tap": {"bridge": "br0"}}] * 60}
    answer = ask(target, call("Acquire", wanted))
    assert answer["error"] == "io.tapster.QuotaExceeded", answer


# Steps over the policy: each must be refused


def refused(target: Target, data: bytes, *names: str) -> None:
    answer = ask(target, data)
    assert answer.get("error", "").rpartition(".")[2] in names, answer


@attack
def climb_out_of_the_names_of_namespaces(target: Target) -> None:
    for netns in ("labx/../../../proc/1/ns/net", "/proc/1/ns/net", "../x", "lab/../x"):
        wanted = {**tap(), "netns": netns}
        refused(target, call("Acquire", wanted), "NotAllowed")
        get = {"lease": "vnet0", "netns": netns}
        refused(target, call("Get", get), "NotAllowed")


@attack
def change_a_lease_to_what_could_not_be_acquired(target: Target) -> None:
    with target.connect() as made:
        id = acquired(made, tap(fin_wait=0))
        if id is None:
            return
        for wiring in ({"mtu": 68}, {"bridge": "br1"}, {"vlan": 700}):
            changed = {"lease": id, "fields": list(wiring), "wiring": wiring}
            refused(target, call("Set", changed), "NotAllowed", "NoSuchLease")


@attack
def ask_for_vlans_that_are_none(target: Target) -> None:
    for vlan in (-5, 0, 4095, 1 << 40):
        refused(target, call("Acquire", tap(vlan=vlan)), "RequestError")
        refused(target, call("Acquire", tap(trunks=[vlan])), "RequestError")


@attack
def ask_for_another_bridge(target: Target) -> None:
    for bridge in ("br9", "BR0", "br0 ", "./br0"):
        wanted = {"nics": [{"tap": {"bridge": bridge}}]}
        refused(target, call("Acquire", wanted), "NotAllowed", "BadName")


@attack
def ask_for_names_that_a_shell_expands(target: Target) -> None:
    for name in ("m$(x)", "m;x", "m`x`", "m|x"):
        refused(target, call("Acquire", tap(name=name)), "NotAllowed")


@attack
def look_for_leases_of_others(target: Target) -> None:
    for theirs, unknown in ((target.lease, "0" * 16), ("vnet0", "vnet99")):
        answers = (
            json.dumps(ask(target, call("Get", {"lease": one}))).replace(one, "")
            for one in (theirs, unknown)
        )
        assert len(set(answers)) == 1, "another user's lease is as one that is not"
    refused(target, call("Release", {"lease": target.lease}), "NoSuchLease")
    refused(target, call("Reopen", {"lease": target.lease}), "NoSuchLease")
    refused(target, call("Bind", {"leases": [target.lease]}), "NoSuchLease")
    fields = {"lease": target.lease, "fields": ["up"], "wiring": {"up": False}}
    refused(target, call("Set", fields), "NoSuchLease")


@attack
def call_what_is_for_administrators(target: Target) -> None:
    for method in ("Reap", "Recover", "Examine", "GetStatistics"):
        refused(target, call(method), "NotAllowed")
    refused(target, call("RemoveLeftovers", {"ledger": "0"}), "NotAllowed")
    refused(target, call("Explain", {"user": "0"}), "NotAllowed")


@attack
def bind_a_lease_to_a_process_of_root(target: Target) -> None:
    with target.client() as client, suppress(tapster.ConflictError):
        with client.acquire(tapster.Tap(bridge="br0", fin_wait=0)) as opened:
            try:
                client.bind([opened], 1)
            except (tapster.NotAllowed, tapster.RequestError):
                pass
            else:
                raise AssertionError("bound to process 1")
        client.release(opened)


@attack
def bind_a_lease_to_what_is_no_process(target: Target) -> None:
    with target.client() as client, suppress(tapster.ConflictError):
        opened = client.acquire(tapster.Tap(bridge="br0", fin_wait=0))
        opened.close()
        with suppress(TapsterError):
            client.call("Bind", {"leases": [opened.id], "process": 0}, [0])
        client.release(opened)


# Malformed requests


@attack
def send_garbage(target: Target) -> None:
    for _ in range(20):
        garbage = _chance.randbytes(200).replace(b"\0", b"") + b"\0"
        refused(target, garbage, "RequestError")


@attack
def nest_a_request_deeply(target: Target) -> None:
    refused(target, b'{"method":' + b"[" * 60000 + b"\0", "RequestError")


@attack
def send_many_ends_of_requests(target: Target) -> None:
    made = target.connect()
    pour(made, b"\0" * 65536)
    keep(made)


@attack
def send_numbers_that_do_not_fit(target: Target) -> None:
    wrong: list[Any] = [1 << 64, -(1 << 70), 1e308, True, None, [], "1"]
    for value in wrong:
        wanted = tap(queues=value)
        refused(
            target,
            call("Acquire", wanted),
            *("InvalidParameter", "RequestError", "NotAllowed", "QuotaExceeded"),
            "",
        )


@attack
def send_text_that_is_none(target: Target) -> None:
    for text in ("\ud800", "\x1b[2J", "a" * 60000, "\0", "\u202e"):
        data = call("Acquire", tap(owner=text))
        ask(target, data)
        ask(target, call("Get", {"lease": text}))


@attack
def call_every_method_with_nothing(target: Target) -> None:
    for method in METHODS:
        if not method.more:
            ask(target, call(method.name))
            ask(target, call(method.name, {"x": 1}))


@attack
def send_a_request_byte_by_byte(target: Target) -> None:
    with target.connect() as made:
        for byte in PING:
            made.sendall(bytes([byte]))
        made.recv(100)


@attack
def change_the_case_of_the_protocol(target: Target) -> None:
    refused(target, b'{"METHOD":"io.tapster.Ping"}\0', "RequestError")
    refused(target, b'{"method":"IO.TAPSTER.Ping"}\0', "InterfaceNotFound")
    assert varlink.SERVICE == "org.varlink.service"


@contextmanager
def attacked(attack: Attack, target: Target) -> Iterator[None]:
    """Let Mallory attack for the time of a block."""
    ready, begun = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(MALLORY)
            os.setuid(MALLORY)
            attack(target)
            os.write(begun, b"!")
            while True:
                attack(target)
        except (BrokenPipeError, ConnectionResetError, TimeoutError, BlockingIOError):
            status = 0  # the daemon has hung up, or makes Mallory wait
            os.write(begun, b"!")
            signal.pause()
        except BaseException:  # noqa: BLE001 - it is another process
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(begun)
    try:
        assert os.read(ready, 1) == b"!", "the attack failed"
        yield
    finally:
        os.close(ready)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert (ended, status) == (0, 0), "the attack failed"
