# SPDX-License-Identifier: Apache-2.0
"""Malformed input of every kind has the code of the specification, and says why."""

import io
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tapster.cni import __main__ as program
from tapster.cni import config, protocol
from tapster.cni.protocol import Code
from tapster.model import Macvtap, Mode, Rate, Tap

CALL = {
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_PATH": "/nowhere",
}
NETWORK = {"cniVersion": "1.1.0", "name": "net", "type": "tapster-cni"}
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
ATTACHMENT_VERBS = ("ADD", "DEL", "CHECK")


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: bytes,
    **environment: str,
) -> tuple[int, Any]:
    """Run the program in this process; return its exit status and its answer."""
    for key in [key for key in os.environ if key.startswith("CNI_")]:
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    status = program.main()
    return status, json.loads(capsys.readouterr().out)


def encode(**changes: Any) -> bytes:
    return json.dumps({**NETWORK, **changes}).encode()


@pytest.mark.parametrize("command", ["", "add", "UPDATE"])
def test_an_unknown_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    status, error = run(monkeypatch, capsys, encode(), CNI_COMMAND=command, **CALL)
    assert (status, error["code"]) == (1, Code.ENVIRONMENT)
    assert error["msg"].startswith(f"CNI_COMMAND is {command!r}, not one of ADD")
    assert error["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("verb", ATTACHMENT_VERBS)
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "-c1"),
        ("CNI_CONTAINERID", "c/1"),
        ("CNI_CONTAINERID", "../../c1"),
        ("CNI_CONTAINERID", "c1\n"),
        ("CNI_CONTAINERID", "ç1"),
        ("CNI_CONTAINERID", "c" * 201),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "eth%d"),
        ("CNI_IFNAME", "sixteen-letters0"),
        ("CNI_ARGS", "novalue"),
        ("CNI_ARGS", "=x"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    variable: str,
    value: str,
) -> None:
    given = {**CALL, "CNI_COMMAND": verb, variable: value}
    status, error = run(monkeypatch, capsys, encode(), **given)
    assert (status, error["code"]) == (1, Code.ENVIRONMENT)
    assert variable in error["msg"]


def test_every_wrong_variable_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, error = run(monkeypatch, capsys, encode(), CNI_COMMAND="ADD")
    for variable in ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"):
        assert variable in error["msg"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        (b"", Code.DECODING, "not JSON"),
        (b"{", Code.DECODING, "not JSON"),
        (b"\xff\xfe\xff", Code.DECODING, "not JSON"),
        (b"[" * 100_000, Code.DECODING, "not JSON"),
        (b"[]", Code.DECODING, "not a JSON object but list"),
        (b"7", Code.DECODING, "not a JSON object but int"),
        (b" " * (1 << 20) + b"{}", Code.DECODING, "more than 1048576 bytes"),
        (b"{}", Code.VERSION, "cniVersion is null, not text"),
        (encode(cniVersion=1), Code.VERSION, "cniVersion is 1, not text"),
        (encode(cniVersion="0.2.0"), Code.VERSION, "incompatible cniVersion '0.2.0'"),
        (encode(cniVersion="9"), Code.VERSION, "incompatible cniVersion '9'"),
        (encode(name=""), Code.CONFIGURATION, "name '' is not letters"),
        (encode(name="../net"), Code.CONFIGURATION, "name '../net' is not letters"),
        (encode(name=7), Code.CONFIGURATION, "name 7 is not letters"),
        (encode(name="n" * 201), Code.CONFIGURATION, "name has 201 characters, and at"),
    ],
)
def test_a_wrong_configuration_is_refused_by_every_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    text: bytes,
    code: Code,
    reason: str,
) -> None:
    status, error = run(monkeypatch, capsys, text, CNI_COMMAND=verb, **CALL)
    assert (status, error["code"]) == (1, code)
    assert reason in error["msg"]


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"bridgex": "br0"}, Code.FIELD, "field 'bridgex' with the value 'br0'"),
        ({"ipMasq": True}, Code.FIELD, "field 'ipMasq' with the value True"),
        ({"bridge": 7}, Code.CONFIGURATION, "bridge must be text, not 7"),
        ({"mtu": "1500"}, Code.CONFIGURATION, "mtu must be a whole number, not '1500'"),
        ({"mtu": True}, Code.CONFIGURATION, "mtu must be a whole number, not True"),
        ({"queues": 1.5}, Code.CONFIGURATION, "queues must be a whole number, not 1.5"),
        ({"filter": 1}, Code.CONFIGURATION, "filter must be true or false, not 1"),
        ({"finWait": "5s"}, Code.CONFIGURATION, "finWait must be a number, not '5s'"),
        ({"inbound": 5}, Code.CONFIGURATION, "inbound must be an object, not 5"),
        ({"uid": None}, Code.CONFIGURATION, "uid must be a whole number, not None"),
        ({"runtimeConfig": []}, Code.CONFIGURATION, "runtimeConfig must be an object"),
        ({"prevResult": "x"}, Code.CONFIGURATION, "prevResult must be an object"),
        (
            {"prevResult": {"interfaces": {}}},
            Code.CONFIGURATION,
            "prevResult.interfaces must be a list of objects",
        ),
        (
            {"prevResult": {"ips": [{}]}},
            Code.CONFIGURATION,
            "prevResult.ips has {}, without address",
        ),
        ({"ipam": "host-local"}, Code.CONFIGURATION, "ipam must be an object"),
        ({"ipam": {"x": 1}}, Code.CONFIGURATION, "ipam.type is None"),
        ({"ipam": {"type": "../x"}}, Code.CONFIGURATION, "ipam.type is '../x'"),
        ({"vlan": 5}, Code.CONFIGURATION, "vlan needs the key bridge"),
        ({"filter": True}, Code.CONFIGURATION, "filter needs the key bridge"),
        (
            {"redirect": True, "bridge": "br0"},
            Code.CONFIGURATION,
            "bridge does not go with the key redirect",
        ),
        ({"mode": "vepa"}, Code.CONFIGURATION, "mode needs the key link"),
        (
            {"link": "eth0", "bridge": "br0"},
            Code.CONFIGURATION,
            "bridge does not go with the key link",
        ),
        (
            {"link": "eth0", "uid": 5},
            Code.CONFIGURATION,
            "uid does not go with the key link",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    changes: dict[str, Any],
    code: Code,
    reason: str,
) -> None:
    text = encode(**changes)
    status, error = run(monkeypatch, capsys, text, CNI_COMMAND=verb, **CALL)
    assert (status, error["code"]) == (1, code)
    assert reason in error["msg"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"link": "eth0", "mode": "x"}, "mode 'x' is not one of bridge, vepa"),
        ({"inbound": {"averag": 5}}, "inbound must be an object with average"),
        ({"inbound": {"average": "5"}}, "inbound must be an object with average"),
        ({"runtimeConfig": {"mac": 5}}, "runtimeConfig.mac must be text: 5"),
        (
            {"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}},
            "runtimeConfig.bandwidth.ingressRate must be a number of bits, not '1M'",
        ),
        ({"runtimeConfig": {"bandwidth": 5}}, "bandwidth must be an object, not 5"),
        (
            {"link": "eth0", "runtimeConfig": {"bandwidth": {"egressRate": 8000}}},
            "runtimeConfig.bandwidth does not go with the key link",
        ),
        ({"ipam": {"type": "absent"}}, "there is no IPAM plugin 'absent'"),
    ],
)
def test_add_refuses_before_it_makes_anything(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    reason: str,
) -> None:
    text = encode(**changes)
    status, error = run(monkeypatch, capsys, text, CNI_COMMAND="ADD", **CALL)
    assert status == 1
    assert error["code"] == (Code.IPAM if "ipam" in changes else Code.CONFIGURATION)
    assert reason in error["msg"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "GC needs cni.dev/valid-attachments, a list of attachments: None"),
        ({config.VALID: {}}, "a list of attachments: {}"),
        ({config.VALID: ["c1"]}, "has 'c1', not an object"),
        ({config.VALID: [{"containerID": "c1"}]}, "not an object with containerID"),
    ],
)
def test_gc_without_a_list_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    reason: str,
) -> None:
    status, error = run(monkeypatch, capsys, encode(**changes), CNI_COMMAND="GC")
    assert (status, error["code"]) == (1, Code.CONFIGURATION)
    assert reason in error["msg"]


@pytest.mark.parametrize("verb", ["GC", "STATUS"])
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_a_command_that_came_later_needs_its_version(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    version: str,
) -> None:
    text = encode(cniVersion=version)
    status, error = run(monkeypatch, capsys, text, CNI_COMMAND=verb)
    assert (status, error["code"]) == (1, Code.VERSION)
    assert error["msg"] == f"{verb} needs cniVersion 1.1.0, not '{version}'"
    assert error["cniVersion"] == version


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        (b"", "1.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "9.0.0"}', "1.1.0"),
    ],
)
def test_version_tells_what_is_supported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: bytes,
    spoken: str,
) -> None:
    status, answer = run(monkeypatch, capsys, text, CNI_COMMAND="VERSION")
    supported = ["0.4.0", "1.0.0", "1.1.0"]
    assert status == 0
    assert answer == {"cniVersion": spoken, "supportedVersions": supported}


def test_a_fault_of_the_plugin_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "read_network", lambda *_: 1 / 0)
    status, error = run(monkeypatch, capsys, encode(), CNI_COMMAND="DEL", **CALL)
    assert (status, error["code"]) == (1, Code.INTERNAL)
    assert "ZeroDivisionError" in error["msg"]


def spec(arguments: str = "", **changes: Any) -> Tap | Macvtap:
    """Return the request that a configuration makes."""
    call = protocol.read_call({**CALL, "CNI_COMMAND": "ADD", "CNI_ARGS": arguments})
    configuration = {**NETWORK, **changes}
    return config.spec_of(config.read_network(call, configuration, "1.1.0"), call)


LABELS = (("cni-network", "net"), ("cni-container", "c1"), ("cni-ifname", "eth0"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Tap(name="eth0", fin_wait=0.0)),
        ({"device": "tap0"}, Tap(name="tap0", fin_wait=0.0)),
        ({"finWait": 3}, Tap(name="eth0", fin_wait=3.0)),
        (
            {"uid": 5, "gid": 6, "queues": 4, "mtu": 1400, "mac": "52:54:00:00:00:01"},
            Tap(
                *(None, "eth0"),
                uid=5,
                gid=6,
                queues=4,
                mtu=1400,
                mac="52:54:00:00:00:01",
                fin_wait=0.0,
            ),
        ),
        (
            {"bridge": "br0", "vlan": 7, "filter": True, "outbound": {"average": 9}},
            Tap(bridge="br0", vlan=7, filter=True, outbound=Rate(9)),
        ),
        (
            {
                "inbound": {"average": 1, "peak": 2, "burst": 3},
                "bridge": "br0",
                "device": "p%d",
            },
            Tap(bridge="br0", name="p%d", inbound=Rate(1, 2, 3)),
        ),
        ({"redirect": True}, Tap(name="tap%d", redirect="eth0", fin_wait=0.0)),
        (
            {"redirect": True, "device": "tap7"},
            Tap(name="tap7", redirect="eth0", fin_wait=0.0),
        ),
        (
            {"link": "eth1"},
            Macvtap("eth1", name="eth0", fin_wait=0.0, lower_netns=""),
        ),
        (
            {"link": "eth1", "linkInContainer": True, "mode": "vepa"},
            Macvtap("eth1", mode=Mode.VEPA, name="eth0", fin_wait=0.0),
        ),
    ],
)
def test_a_configuration_is_a_request(
    changes: dict[str, Any], expected: Tap | Macvtap
) -> None:
    assert spec(**changes) == expected._replace(owner="c1", labels=LABELS)


def test_what_the_runtime_asks_for_comes_before_the_configuration() -> None:
    bandwidth = {
        "ingressRate": 1_000_001,
        "ingressBurst": 8193,
        "egressRate": 8000,
        "egressBurst": (1 << 31) - 1,
    }
    asked = spec(
        "MAC=52:54:00:00:00:02;IgnoreUnknown=1",
        bridge="br0",
        mac="52:54:00:00:00:01",
        inbound={"average": 5},
        runtimeConfig={"mac": "52:54:00:00:00:03", "bandwidth": bandwidth},
    )
    assert asked.mac == "52:54:00:00:00:03"
    assert isinstance(asked, Tap)
    assert asked.inbound == Rate(126, burst=2)
    assert asked.outbound == Rate(1)
    assert spec("MAC=52:54:00:00:00:02").mac == "52:54:00:00:00:02"


def test_reserved_keys_of_the_specification_are_accepted() -> None:
    reserved: dict[str, Any] = {"cni.dev/attachments": [], "args": {"cni": {}}}
    assert spec(**reserved) == spec()
