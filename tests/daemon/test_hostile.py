# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm: the daemon stays up, serves others, and stays small."""

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest

from lab import iproute, library, shell
from lab.daemon import ALICE, BOB, SERVICE, Daemon, capabilities, user
from tapster import InternalError, Macvtap, Overloaded, Tap, TapsterError, connect
from tapster.kernel.unix import refuse_descriptors
from tapster.rpc.interface import METHODS
from tapster.rpc.varlink import encode
from tests.daemon.test_storm import usage

NOBODY = 61098
"""A user for whom there is no rule."""

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

SEED = int(os.environ.get("FUZZ_SEED", "1"))
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1500"))
GROWTH = 16 << 20

POLICY = f"""
[limits]
requests = 1000000
connections = 300
connections_per_user = 200
stall = 1.0
idle = 2.0

[[allow]]
users = ["{ALICE}", "{BOB}"]
bridges = ["br0"]
features = ["*"]
"""


@pytest.fixture
def daemon(world: None) -> Iterator[Daemon]:
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        yield daemon
        serves(daemon)


def plain(daemon: Daemon, uid: int = BOB) -> socket.socket:
    """A connection that says nothing by itself."""
    made = socket.socket(socket.AF_UNIX)
    with user(uid):
        made.connect(str(daemon.socket))
    made.settimeout(20)
    return made


def serves(daemon: Daemon) -> None:
    """It serves others, and devices too."""
    with daemon.connect() as root:
        lease = library.acquire(root, Tap(bridge="br0", fin_wait=0))
        root.release(lease.id)


def all_of(at: socket.socket) -> bytes:
    """What comes until the other end closes."""
    received = b""
    try:
        while data := at.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


# Messages


def test_garbage_is_refused_with_a_type_and_hung_up_on(daemon: Daemon) -> None:
    chance = random.Random(SEED)
    for _ in range(100):
        garbage = chance.randbytes(chance.randrange(1, 200)).replace(b"\0", b"") + b"\0"
        with plain(daemon) as client:
            client.sendall(garbage)
            said = all_of(client)
        assert b"io.tapster.RequestError" in said
        assert said.endswith(b"\0")


def test_a_message_of_a_gibibyte_costs_no_memory(daemon: Daemon) -> None:
    before, _ = usage(daemon.pid)
    sent = 0
    with plain(daemon) as client:
        try:
            while sent < 1 << 30:
                sent += client.send(b"[" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b"at most 65536 bytes" in all_of(client)
    assert sent < 1 << 22, "it hung up long before the end"
    after, _ = usage(daemon.pid)
    assert after - before < GROWTH


def test_a_deeply_nested_message_is_only_malformed(daemon: Daemon) -> None:
    with plain(daemon) as client:
        client.sendall(b'{"method":' + b"[" * 60000 + b"\0")
        assert b"RequestError" in all_of(client)


def test_a_slow_writer_and_a_slow_reader_are_dropped(daemon: Daemon) -> None:
    with plain(daemon) as writer, plain(daemon) as reader:
        writer.sendall(b'{"method":')
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        describe = encode(
            {
                "method": "org.varlink.service.GetInterfaceDescription",
                "parameters": {"interface": "io.tapster"},
            }
        )
        reader.settimeout(0.2)
        left = b""
        while True:
            left = left or describe * 50
            try:
                left = left[reader.send(left) :]
            except TimeoutError:
                # It takes no more before its answers are taken, for limits.stall.
                serves(daemon)
            except (BrokenPipeError, ConnectionResetError):
                break
        assert all_of(writer) == b""
    with daemon.connect() as root:
        dropped = {
            one.label: one.value for one in root.statistics() if one.name == "dropped"
        }
    assert dropped["stalled"] == 2


def test_a_flood_of_pings_starves_no_other_client(daemon: Daemon) -> None:
    with plain(daemon) as flood:
        flood.setblocking(False)
        ping = encode({"method": "io.tapster.Ping"}) * 1000
        with daemon.connect(ALICE) as alice:
            for _ in range(20):
                try:
                    flood.send(ping)
                    flood.recv(1 << 16)
                except BlockingIOError:
                    pass
                start = time.monotonic()
                alice.ping()
                assert time.monotonic() - start < 5


# Connections and descriptors


def test_thousands_of_idle_connections_exclude_no_client(daemon: Daemon) -> None:
    with ExitStack() as many:
        clients = [many.enter_context(plain(daemon)) for _ in range(2000)]
        serves(daemon)
        refused = 0
        for client in clients:
            client.setblocking(False)
            with suppress(BlockingIOError):
                refused += b"io.tapster.Overloaded" in client.recv(4096)
        with daemon.connect(ALICE) as alice:
            alice.ping()
    with daemon.connect(BOB) as bob:
        bob.ping()
    assert refused > 0


def test_a_user_with_too_many_connections_gets_an_error_of_its_own_type(
    world: None,
) -> None:
    with Daemon(policy=POLICY.replace("idle = 2.0", "idle = 600.0")) as daemon:
        daemon.start()
        with ExitStack() as many:
            for _ in range(200):
                many.enter_context(plain(daemon))
            with (
                daemon.connect(BOB) as bob,
                pytest.raises(Overloaded, match="close some"),
            ):
                bob.ping()
            with daemon.connect(ALICE) as alice:
                alice.ping()


def test_idle_connections_are_closed(daemon: Daemon) -> None:
    with plain(daemon) as client:
        assert all_of(client) == b""


def test_unrequested_descriptors_are_closed(daemon: Daemon) -> None:
    with daemon.connect() as root:
        root.ping()
        _, before = usage(daemon.pid)
    reader, writer = os.pipe()
    ping = encode({"method": "io.tapster.Ping"})
    try:
        for number in (1, 3, 8):
            with plain(daemon) as client:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds(reader, number))
                client.sendmsg([ping], [rights])
                client.sendmsg([ping], [rights])
                assert client.recv(100).count(b"\0") > 0
        for number in (9, 100, 250):
            with plain(daemon) as client:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds(reader, number))
                client.sendmsg([b"{"], [rights])
                assert all_of(client) == b"", "more than there is room for"
        with plain(daemon) as client:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds(writer, 8))
            for _ in range(100):
                client.sendmsg([b" "], [rights])
    finally:
        os.close(reader)
        os.close(writer)
    with daemon.connect() as root:
        for _ in range(1000):  # until it has seen that they left
            root.ping()
            if (after := usage(daemon.pid)[1]) <= before:
                break
        assert after <= before


def test_the_kernel_refuses_descriptors_from_a_user_for_whom_there_is_no_rule(
    daemon: Daemon,
) -> None:
    """Where it can, since Linux 6.16. A user with a rule may hand over a process."""
    theirs, ours = socket.socketpair()
    refuses = refuse_descriptors(theirs)
    ping = encode({"method": "io.tapster.Ping"})
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds(ours.fileno(), 1))
    for uid, refused in ((NOBODY, refuses), (ALICE, False)):
        with plain(daemon, uid) as client:
            client.sendall(ping)
            assert client.recv(100), "it has been admitted"
            if refused:
                with pytest.raises(PermissionError):
                    client.sendmsg([ping], [rights])
                client.sendall(ping)
            else:
                client.sendmsg([ping], [rights])
            assert client.recv(100)
    theirs.close()
    ours.close()


def fds(fd: int, number: int) -> bytes:
    return fd.to_bytes(4, sys.byteorder) * number


def test_a_descriptor_that_is_no_process_binds_nothing(daemon: Daemon) -> None:
    with daemon.connect(ALICE) as alice:
        lease = library.acquire(alice, Tap(bridge="br0"))
        pipe = os.pipe()
        for wrong, descriptors in ((0, pipe[:1]), (1, pipe[:1]), (-1, ()), (0, ())):
            asked = {"leases": [lease.id], "process": wrong}
            with pytest.raises(TapsterError, match="descriptor"):
                alice.call("Bind", asked, descriptors)
        library.close(pipe)
        assert alice.find(lease.id).process is None


def test_a_full_descriptor_table_refuses_and_recovers(world: None) -> None:
    with Daemon("prlimit", "--nofile=40:40", policy=POLICY) as daemon:
        daemon.start()
        with ExitStack() as many:
            for _ in range(60):
                many.enter_context(plain(daemon))
            daemon.wait_logged("not-accepted")
        # The connections are gone: waiting callers are served, and there is room for
        # devices.
        with daemon.connect() as root:
            with pytest.raises(TapsterError):
                root.acquire_all([Tap(bridge="br0", queues=60)])
            root.ping()
            assert root.leases(all=False) == []
            library.acquire(root, Tap(bridge="br0"))


# Wrong types in every field, made from the interface itself

ODD: list[Any] = [
    *(None, True, 0, -1, 1 << 62, 1 << 64, 0.5, 1e308, "", "a" * 300, "\ud800"),
    *([], [[]], {}, {"a": 1}, "../../x", "br0", "vnet%d", "%d%d", "a\0b", [None]),
]


def odd(kind: Any, chance: random.Random, depth: int = 0) -> Any:
    """A value that mostly looks like what is asked for, and somewhere does not."""
    if chance.random() < 0.15 or depth > 6:
        return chance.choice(ODD)
    if isinstance(kind, UnionType):
        return odd(get_args(kind)[0], chance, depth + 1)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return [odd(inner, chance, depth + 1) for _ in range(chance.randrange(3))]
    if hasattr(kind, "_fields"):
        return {
            name: odd(annotation, chance, depth + 1)
            for name, annotation in kind.__annotations__.items()
            if chance.random() < 0.6
        }
    if kind is str:
        return chance.choice(["br0", "vnet%d", "x", "52:54:00:00:00:01", "eth0"])
    if kind is bool:
        return chance.random() < 0.5
    if kind in (int, float):
        return chance.choice([0, 1, 2, 3, 100])
    return chance.choice([*kind])


@pytest.mark.timeout(300)
def test_wrong_types_in_every_field_are_answered_each_by_a_typed_error(
    daemon: Daemon,
) -> None:
    chance = random.Random(SEED)
    answers: dict[str, int] = {}
    before = 0
    for number in range(ROUNDS):
        if number == ROUNDS // 4:
            before, _ = usage(daemon.pid)
        method = chance.choice([one for one in METHODS if not one.more])
        message = {
            "method": f"io.tapster.{method.name}",
            "parameters": odd(method.takes, chance),
        }
        with plain(daemon, chance.choice([0, ALICE, BOB])) as client:
            client.sendall(json.dumps(message).encode() + b"\0")
            client.shutdown(socket.SHUT_WR)
            said = json.loads(all_of(client).removesuffix(b"\0"))
        error = said.get("error", "none")
        answers[error] = answers.get(error, 0) + 1
        assert "failed unexpectedly" not in str(said), (message, said)
        assert error == "none" or error.startswith(("io.tapster.", "org.varlink."))
    assert not daemon.logged("failed")
    after, _ = usage(daemon.pid)
    sys.stderr.write(f"seed {SEED}, {ROUNDS} requests: {answers}\n")
    assert after - before < GROWTH
    assert answers["org.varlink.service.InvalidParameter"] > ROUNDS // 10
    assert answers["none"] > ROUNDS // 20


@pytest.mark.timeout(120)
def test_mutated_requests_never_break_it(daemon: Daemon) -> None:
    chance = random.Random(SEED)
    good = encode(
        {
            "method": "io.tapster.Acquire",
            "parameters": {"nics": [{"tap": {"bridge": "br0"}}], "bind": "close"},
        }
    )
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with plain(daemon) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            all_of(client)
    assert not daemon.logged("failed")


BREAK = """
from tapster.daemon.methods.looking import Looking
Dispatcher._describe = Looking.list = lambda *_: 1 / 0
"""


def test_a_mistake_of_its_own_ends_one_call_and_not_all(world: None) -> None:
    with Daemon(policy=POLICY) as daemon:
        with Path("/run/test/lib/tapster/daemon/dispatch.py").open("a") as code:
            code.write(BREAK)
        daemon.start()
        with daemon.connect(ALICE) as alice:
            with pytest.raises(InternalError, match=r"ZeroDivisionError.* report it"):
                alice.leases()
            alice.ping()
        with plain(daemon) as client:
            client.sendall(encode({"method": "org.varlink.service.GetInfo"}))
            assert b"ZeroDivisionError" in client.recv(4096)
        serves(daemon)
        assert len(daemon.logged("failed")) == 2


# Who it runs as


@pytest.mark.parametrize("as_root", [False, True])
def test_the_daemon_serves_with_its_units_privileges_and_as_root(
    world: None, as_root: bool
) -> None:
    with Daemon(policy=POLICY, root=as_root) as daemon:
        daemon.start()
        lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        assert status["Uid"].split() == [str(0 if as_root else SERVICE)] * 4
        if not as_root:
            assert int(status["CapEff"], 16).bit_count() == len(capabilities())
        shell.sh("ip link add eth0 type veth peer name eth1")
        shell.sh("ip link set eth0 up")
        shell.sh("ip netns add blue")
        with daemon.connect(ALICE) as alice, daemon.connect() as root:
            tap = alice.acquire(Tap(bridge="br0", queues=2))
            macvtap = root.acquire(Macvtap("eth0"))
            with connect(daemon.socket, netns="blue") as blue:
                there = blue.acquire(Tap())
            library.close_all(tap, macvtap, there)
            assert iproute.ports() == {"vnet0"}
            child = os.fork()
            if not child:
                signal.pause()
            root.bind([macvtap], child)
            events = daemon.events()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert next(events).lease == macvtap.id
            alice.release(tap.id)
            assert root.recover() == []
            assert root.reap(now=True) >= 1
