# SPDX-License-Identifier: Apache-2.0
"""Varlink clients that are not ours: they are the judges of what we speak."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import varlink  # type: ignore[import-untyped] # it has no types
from asyncvarlink import (
    VarlinkClientProtocol,
    VarlinkMethodCall,
    connect_unix_varlink,
)
from varlink.scanner import Interface  # type: ignore[import-untyped] # nor has this

from lab.daemon import ALICE, Daemon, user
from tapster import Tap
from tapster.rpc.interface import INTERFACE
from tests.daemon.test_service import name_behind

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

_BR0 = Tap(bridge="br0")

Talk = Callable[[VarlinkClientProtocol], Awaitable[Any]]


def talk(daemon: Daemon, uid: int, talk: Talk) -> Any:
    """Talk to the daemon by asyncvarlink, as this user."""

    async def connected() -> Any:
        with user(uid):
            transport, protocol = await connect_unix_varlink(
                VarlinkClientProtocol, daemon.socket
            )
        try:
            return await talk(protocol)
        finally:
            transport.close()
            await transport.closed_future

    return asyncio.run(connected())


async def ask(protocol: VarlinkClientProtocol, method: str, parameters: Any) -> Any:
    """One call; the error, if any, and the parameters of the answer."""
    answered = await protocol.call(VarlinkMethodCall(method, parameters), [], None)
    assert answered
    return answered[0].error, answered[0].parameters


def test_the_python_reference_client_reads_the_interface(daemon: Daemon) -> None:
    with varlink.Client(address=f"unix:{daemon.socket}") as client:
        info = client.get_interfaces()
        assert set(info) == {"io.tapster", "org.varlink.service"}
        with client.open("io.tapster") as connection:
            assert connection.Ping() == {}
            assert connection.List() == {"leases": []}


def test_its_description_parses_by_the_reference_scanner(daemon: Daemon) -> None:
    async def describe(protocol: VarlinkClientProtocol) -> Any:
        method = "org.varlink.service.GetInterfaceDescription"
        _, given = await ask(protocol, method, {"interface": "io.tapster"})
        return given["description"]

    found = Interface(talk(daemon, ALICE, describe))
    assert found.name == "io.tapster"
    assert {
        name for name in found.members if f"method {name}" in found.description
    } >= {method.name for method in INTERFACE.methods}


def test_another_client_acquires_and_gets_descriptors(daemon: Daemon) -> None:
    async def acquire(protocol: VarlinkClientProtocol) -> None:
        parameters: Any = {"nics": [{"tap": {"bridge": "br0", "queues": 2}}]}
        call = VarlinkMethodCall("io.tapster.Acquire", parameters)
        taken = asyncio.get_running_loop().create_future()
        reply, fds = await protocol.call(call, [], taken) or (None, None)
        assert reply
        assert reply.error is None
        given: Any = reply.parameters
        (device,) = given["devices"]
        lease = device["lease"]
        assert lease["caller_uid"] == ALICE
        assert fds
        names = {name_behind(fds[place].fileno()) for place in device["fds"]}
        assert names == {"vnet0"}
        taken.set_result(None)
        released = await ask(protocol, "io.tapster.Release", {"lease": lease["id"]})
        assert released == (None, {})

    talk(daemon, ALICE, acquire)


def test_another_client_watches(daemon: Daemon) -> None:
    async def watch(protocol: VarlinkClientProtocol) -> list[str]:
        call = VarlinkMethodCall("io.tapster.Watch", {}, more=True)
        seen: list[str] = []
        async for reply, _ in protocol.call_more(call, []):
            given: Any = reply.parameters
            seen.append(given["event"]["event"])
            if seen[-1] == "watching":
                with daemon.connect(ALICE) as alice:
                    alice.acquire(_BR0).close()
            else:
                return seen
        return seen

    assert talk(daemon, ALICE, watch) == ["watching", "acquired"]


def test_errors_are_typed_and_say_what_to_do(daemon: Daemon) -> None:
    async def refused(protocol: VarlinkClientProtocol) -> list[Any]:
        return [await ask(protocol, method, wrong) for method, wrong in WRONG]

    replies = dict(talk(daemon, ALICE, refused))
    assert set(replies) == {
        "io.tapster.NotAllowed",
        "io.tapster.NoSuchLease",
        "org.varlink.service.InvalidParameter",
        "org.varlink.service.MethodNotFound",
        "org.varlink.service.InterfaceNotFound",
        "org.varlink.service.ExpectedMore",
    }
    assert "rule" in replies["io.tapster.NotAllowed"]["remedy"]
    assert "[[allow]]" in replies["io.tapster.NotAllowed"]["message"]


WRONG: list[tuple[str, Any]] = [
    ("io.tapster.Acquire", {"nics": [{"tap": {"bridge": "br9"}}]}),
    ("io.tapster.Acquire", {"nics": [{"tap": {"bridge": 9}}]}),
    ("io.tapster.Get", {"lease": "vnet9"}),
    ("io.tapster.Frobnicate", {}),
    ("io.frobnicate.It", {}),
    ("io.tapster.Watch", {}),
]


def test_a_client_may_send_several_requests_at_once_and_hang_up(
    daemon: Daemon,
) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(daemon.socket))
        plain.sendall(b'{"method":"io.tapster.Ping"}\0' * 3)
        plain.shutdown(socket.SHUT_WR)
        received = b""
        while data := plain.recv(4096):
            received += data
    assert received == b'{"parameters":{}}\0' * 3


def test_a_oneway_call_is_not_answered(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(daemon.socket))
        plain.sendall(b'{"method":"io.tapster.Ping","oneway":true}\0')
        plain.sendall(b'{"method":"io.tapster.List","parameters":{"all":true}}\0')
        assert plain.recv(4096) == b'{"parameters":{"leases":[]}}\0'
