# SPDX-License-Identifier: Apache-2.0
"""Structured nonsense: requests, policies and bridge.conf, made from what they may be.

FUZZ_SEED chooses another run, FUZZ_ROUNDS=20000 a longer one.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any, get_args, get_origin

import pytest

from lab.library import close
from tapster import model
from tapster.daemon import config, policy
from tapster.daemon.config import Config, check
from tapster.daemon.methods.call import Call, Unfinished
from tapster.daemon.policy import FEATURES, REQUIRABLE, Rule
from tapster.errors import InternalError, RequestError, TapsterError
from tapster.integrate import acl
from tapster.rpc import varlink
from tapster.rpc.interface import METHODS, Nic
from tests.daemon.parts import ALICE, BOB, ROOT, Parts, parts

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("FUZZ_SEED", "1"))
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1500"))

NUMBERS = (
    *(0, 1, 2, -1, -5, 3, 10, 68, 100, 1500, 4094, 4095, 65521, 65536),
    *(1 << 31, 1 << 32, 1 << 62, 1 << 64, -(1 << 70)),
)
TEXTS = (
    *("br0", "br1", "vnet0", "vnet%d", "%d%d", "ci%3d", "", " ", "a/b", "../x", "a\0b"),
    *("x" * 15, "x" * 16, "x" * 300, "\ud800", "\x1b[2J", "\u202e", "ü" * 8, "*", "["),
    *("52:54:00:00:00:01", "ff:ff:ff:ff:ff:ff", "10.0.0.1", "fe80::1", "10-", "9-3"),
    *("lab1", "/proc/1/ns/net", "labx/../../x", "$(x)", "0", "1000", "root", "nan"),
)
OTHERS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0.5,
        -0.0,
        1e308,
        float("inf"),
        [],
        [[]],
        {},
        {"a": 1},
        [None],
    ),
)


def anything(chance: random.Random) -> Any:
    return chance.choice((*NUMBERS, *TEXTS, *OTHERS))


LIKELY: dict[str, tuple[Any, ...]] = {
    "bridge": ("br0", "br1", None),
    "ovs": (None,),
    "redirect": (None, None, "eth0"),
    "lower": ("eth0",),
    "name": ("vnet%d", "vnet0", "ci%3d"),
    "mac": ("52:54:00:00:00:01", "52:54:00:00:00:02", None),
    "vlan": (*range(1, 4), None, -5, 4095),
    "mtu": (1500, 1300, None),
    "queues": (1, 1, 2),
    "fin_wait": (0, 5.0),
    "uid": (0, 1000, None),
    "netns": (None,),
    "bind": ("nothing",),
}
"""Values by the name of a field, so that many requests get as far as the policy, and
some make a device."""


def value_of(
    kind: Any, chance: random.Random, name: str = "", noise: float = 0.04
) -> Any:
    """A value of a type, for a field of this name. So often it is something else."""
    if chance.random() < noise:
        return anything(chance)
    if name in LIKELY and chance.random() < 0.8:
        return chance.choice(LIKELY[name])
    if isinstance(kind, UnionType):
        inner = [one for one in get_args(kind) if one is not type(None)]
        return None if chance.random() < 0.3 else value_of(inner[0], chance, "", noise)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        least = 1 if inner is Nic and chance.random() < 0.95 else 0
        number = chance.randrange(least, 4)
        return [value_of(inner, chance, "", noise) for _ in range(number)]
    if kind is Nic and chance.random() < 0.95:
        one = chance.choice(("tap", "tap", "macvtap"))
        (spec, _) = get_args(Nic.__annotations__[one])
        return {one: value_of(spec, chance, "", noise)}
    if hasattr(kind, "_fields"):
        given = chance.choice((0.03, 0.1, 0.3))
        return {
            field: value_of(annotation, chance, field, noise)
            for field, annotation in kind.__annotations__.items()
            if field not in kind._field_defaults
            or field in ("bridge", "bind")
            or chance.random() < given
        }
    if kind is str:
        return chance.choice(TEXTS)
    if kind is bool:
        return chance.random() < 0.5
    if kind in (int, float):
        return chance.choice(NUMBERS)
    return chance.choice([*kind])


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path) as made:
        made.system.stranger().add_bridge("br1")
        made.system.stranger().add_veth("eth0", "eth1")
        rules = (
            Rule(
                users=("1000",),
                kinds=("*",),
                bridges=("*",),
                lower=("*",),
                templates=("*",),
                vlans=("1-4094",),
                features=("*",),
            ),
            Rule(
                users=("1001",), bridges=("br0",), vlans=("1-10",), require=("filter",)
            ),
        )
        made.access.loaded = made.access.loaded._replace(rules=rules)
        yield made


@pytest.mark.timeout(900)
def test_no_request_meets_a_fault_of_the_daemon(made: Parts) -> None:
    answers = answers_to_requests(made)
    sys.stderr.write(f"seed {SEED}: {dict(answers)}\n")
    assert answers["none"] > ROUNDS // 20
    assert answers["RequestError"] > ROUNDS // 50


@pytest.mark.timeout(900)
def test_a_fault_of_the_policy_would_be_met_if_requests_were_not_checked_first(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vlan: -5` met a fault of the policy, which was asked before the check."""
    judge = policy.judge

    def judge_as_formerly(
        rules: tuple[Rule, ...],
        caller: policy.Caller,
        device: policy.DeviceRequest,
    ) -> str | None:
        vlan = getattr(device.spec, "vlan", None)
        if vlan is not None and vlan < 0:
            raise ValueError(f"{vlan} is no range")
        return judge(rules, caller, device)

    monkeypatch.setattr(policy, "judge", judge_as_formerly)
    answers_to_requests(made)
    unchecked = SimpleNamespace(**vars(model) | {"check_spec": lambda _: None})
    monkeypatch.setattr("tapster.daemon.methods.requests.model", unchecked)
    with pytest.raises(ValueError, match="is no range"):
        answers_to_requests(made)


def answers_to_requests(made: Parts) -> Counter[str]:
    """Call methods with what their parameters may be, and with what they may not be.

    Count the answers by the error's name, or "none".
    """
    chance = random.Random(SEED)
    methods = [one for one in METHODS if not one.more and one.name != "Ping"]
    answers: Counter[str] = Counter()
    for _ in range(ROUNDS):
        method = chance.choice(
            [*methods, *[one for one in methods if one.name == "Acquire"] * 6]
        )
        noise = chance.choice((0, 0, 0.01, 0.04))
        given = value_of(method.takes, chance, noise=noise)
        if isinstance(given, dict) and "lease" in given and chance.random() < 0.7:
            leases = made.host.leases()
            given["lease"] = chance.choice(leases).id if leases else "vnet0"
        text = json.dumps({"method": method.name, "parameters": given}, allow_nan=True)
        try:
            parameters = varlink.decode(text.encode("utf-8", "surrogatepass"))
            asked = varlink.from_json(method.takes, parameters["parameters"])
        except (varlink.Malformed, varlink.Unfit) as error:
            answers[type(error).__name__] += 1
            continue
        caller = chance.choice((ALICE, ALICE, BOB, ROOT))
        try:
            answer = made.service.call(method.name, Call(caller, -1, asked, ()))
            while isinstance(answer, Unfinished):
                answer = answer.go_on()
        except InternalError as error:
            raise AssertionError(f"{method.name} {given}") from error
        except TapsterError as error:
            answers[type(error).__name__] += 1
            continue
        answers["none"] += 1
        varlink.encode(varlink.to_json(answer.parameters))
        close(answer.fds)
        if len(made.host.leases()) > 30:
            for lease in made.host.leases():
                made.host.release(lease)
            made.host.reap(now=True)
    return answers


def line_of(key: str, value: Any, chance: random.Random) -> str:
    """A line of TOML, mostly."""
    if chance.random() < 0.05:
        return chance.choice(
            ("=", "[", "[[allow]", 'x = "', "x = [1,", "\x00", "é = 1")
        )
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float):
        text = str(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except ValueError:
            text = "nan"
    return f"{key} = {text}"


def policy_text(chance: random.Random) -> str:
    """A policy, mostly: with keys, words and values that are nearly right."""
    lines: list[str] = []
    words = (*sorted(FEATURES), *sorted(REQUIRABLE), "fin_wait", "*", "filters", "tap")
    for section, annotation in Config.__annotations__.items():
        if section == "allow":
            for _ in range(chance.randrange(3)):
                lines.append("[[allow]]")
                for key in chance.sample(
                    Rule._fields, chance.randrange(len(Rule._fields))
                ):
                    value = value_of(Rule.__annotations__[key], chance)
                    if isinstance(value, list) and chance.random() < 0.5:
                        value = [chance.choice(words) for _ in value]
                    lines.append(line_of(key, value, chance))
        elif chance.random() < 0.5:
            lines.append(f"[{section}]")
            if section == "fleet":
                continue
            for key, kind in annotation.__annotations__.items():
                if chance.random() < 0.4:
                    lines.append(line_of(key, value_of(kind, chance), chance))
    return "\n".join(lines)


@pytest.mark.timeout(900)
def test_no_policy_meets_a_fault_of_the_daemon(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    path = tmp_path / "tapster.toml"
    outcomes: Counter[bool] = Counter()
    for _ in range(ROUNDS):
        text = policy_text(chance)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        loaded, faults = check(str(path))
        outcomes[loaded is None] += 1
        assert loaded is not None or faults
        for fault in faults:
            assert fault.line is None or 1 <= fault.line <= text.count("\n") + 1
            str(fault)
        try:
            config.load(str(path))
        except RequestError:
            assert loaded is None
    sys.stderr.write(f"seed {SEED}: {outcomes[False]} usable, {outcomes[True]} not\n")
    assert outcomes[False] > ROUNDS // 50
    assert outcomes[True] > ROUNDS // 10


@pytest.mark.timeout(900)
def test_no_bridge_conf_meets_a_fault_of_the_daemon(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    path = tmp_path / "bridge.conf"
    words = ("allow", "deny", "include", "all", "#", "br0", str(path), str(tmp_path))
    outcomes: Counter[str] = Counter()
    for _ in range(ROUNDS):
        lines = [
            " ".join(
                chance.choice((*words, *TEXTS)) for _ in range(chance.randrange(4))
            )
            for _ in range(chance.randrange(6))
        ]
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        try:
            listed = acl.read(str(path))
        except (OSError, ValueError) as error:
            outcomes[type(error).__name__] += 1
            continue
        outcomes["read"] += 1
        acl.permits(listed, "br0")
    assert outcomes["read"] > ROUNDS // 20
    assert outcomes["ValueError"] > ROUNDS // 20
