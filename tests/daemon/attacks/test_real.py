# SPDX-License-Identifier: Apache-2.0
"""Requests with random values, on the real kernel: each is refused, or carried out.

A host in memory takes values that the kernel, nftables or Python's own calls do not.
FUZZ_SEED and FUZZ_ROUNDS choose another run, as for `test_fuzz`.
"""

import json
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lab import shell
from lab.daemon import ALICE, Daemon, user
from tapster.kernel import unix
from tapster.rpc import varlink
from tapster.rpc.interface import METHODS
from tests.daemon.attacks.test_fuzz import LIKELY, SEED, value_of

pytestmark = pytest.mark.kernel

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1500"))
EVERY = 40
"""Rounds after which recover must find nothing to do, and the devices are released."""
POLICY = f"""
[limits]
requests = 100000
devices = 1000
waiting = 1000

[[allow]]
users = ["{ALICE}"]
kinds = ["*"]
bridges = ["*"]
lower = ["*"]
templates = ["*"]
vlans = ["1-4094"]
features = ["*"]
"""
CHANCES = {"Acquire": 9, "Set": 6, "Reopen": 1, "Release": 1}
RATES = [
    {"average": average, "peak": peak, "burst": burst}
    for average in (1, 8, 1000, 17_000_000, 18_000_000)
    for peak in (None, average, 18_000_000)
    for burst in (None, 1, 1 << 16, 4_000_000)
]
REAL: dict[str, tuple[Any, ...]] = {
    "addresses": (
        *([], ["10.0.0.1"], ["10.0.0.1", "10.0.0.1"], ["10.0.0.0/24", "10.0.0.7"]),
        *(["2001:db8::/64", "fe80::1"], ["0.0.0.0/0"], ["::/0"]),
    ),
    "bridge": ("br0", "br0", "br1", None),
    "external_ids": ([],),
    "filter": (True, False),
    "inbound": (*[None] * 10, *RATES),
    "key": (None,),
    "labels": ([], [["a", "b"]]),
    "lower": ("eth0",),
    "mac": (None,),
    "name": ("vnet%d", "a%d", "b%d"),
    "naming": ("lowest", "next"),
    "netns": (None,),
    "outbound": (*[None] * 10, *RATES),
    "outbound_pps": (None, None, 1, 1 << 31, (1 << 32) - 1),
    "owner": ("", "o"),
    "redirect": (None,),
    "standby": (False, False, True),
    "trunks": ([],),
    "vlan": (None,),
    "vm": (None,),
}


def ask(made: socket.socket, method: str, parameters: Any) -> dict[str, Any]:
    """Call a method with any parameters. Descriptors that come are closed."""
    message = {"method": f"io.tapster.{method}", "parameters": parameters}
    text = json.dumps(message).encode()
    try:
        varlink.decode(text)
    except varlink.Malformed:
        return {"error": "Malformed"}  # the daemon would hang up
    made.sendall(text + b"\0")
    data = b""
    while b"\0" not in data:
        part, fds = unix.receive(made, 1 << 16, 64)
        unix.close(fds)
        assert part, f"the daemon hung up after {text!r}"
        data += part
    answer: dict[str, Any] = json.loads(data.partition(b"\0")[0])
    return answer


@pytest.fixture
def daemon(world: None) -> Iterator[Daemon]:
    shell.sh("ip link add br1 type bridge")
    shell.sh("ip link add eth0 type veth peer name eth1")
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        yield daemon


@pytest.mark.timeout(3000)
def test_each_request_is_refused_or_carried_out(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field, values in REAL.items():
        monkeypatch.setitem(LIKELY, field, values)
    chance = random.Random(SEED)
    takes = {method.name: method.takes for method in METHODS}
    methods = [name for name, times in CHANCES.items() for _ in range(times)]
    answers: Counter[str] = Counter()
    there: list[str] = []
    with daemon.connect() as root, socket.socket(socket.AF_UNIX) as made:
        with user(ALICE):
            made.connect(str(daemon.socket))
        made.settimeout(60)
        for number in range(1, ROUNDS + 1):
            method = chance.choice(methods)
            asked = value_of(takes[method], chance, noise=chance.choice((0, 0, 0.01)))
            if isinstance(asked, dict) and there and "lease" in asked:
                asked["lease"] = chance.choice(there)
            if isinstance(asked, dict) and method == "Acquire":
                asked["bind"] = "nothing"  # a lease may end at any moment otherwise
            if isinstance(asked, dict) and isinstance(asked.get("wiring"), dict):
                asked["fields"] = [*asked["wiring"]]
            answer = ask(made, method, asked)
            answers[answer.get("error", method).rpartition(".")[2]] += 1
            assert not daemon.logged("failed"), (method, asked)
            given = answer.get("parameters", {})
            leases = [device["lease"]["id"] for device in given.get("devices", ())]
            there += leases
            if method == "Set" and "lease" in given:
                leases.append(given["lease"]["id"])
            for lease in leases:
                looked = ask(made, "Get", {"lease": lease}).get("parameters", {})
                assert not looked.get("differences"), (method, asked, looked)
            if number % EVERY == 0:
                assert root.recover() == []
                for lease in there:
                    ask(made, "Release", {"lease": lease})
                there.clear()
                root.reap(now=True)
    sys.stderr.write(f"seed {SEED}: {dict(answers)}\n")
    assert answers["Acquire"] > ROUNDS // 30
    assert answers["Set"] > ROUNDS // 60
