# SPDX-License-Identifier: Apache-2.0
"""Who may do what: the rules, by themselves."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tapster.daemon import policy
from tapster.daemon.config import load
from tapster.daemon.policy import Caller, Need, Rule, allows, needs, refusal
from tapster.daemon.throttle import Throttle
from tapster.errors import RequestError
from tapster.integrate import acl
from tapster.model import Macvtap, Mode, Naming, Tap

ALICE = Caller(1000, (1000, 107), "alice", ("alice", "kvm"))
ROOT = Caller(0, (0,), "root", ("root",))
BASIC = Rule(users=("alice",), bridges=("br0", "lab*"))


def permits(rule: Rule, spec: Tap | Macvtap, caller: Caller = ALICE) -> bool:
    return refusal((rule,), caller, needs(spec, caller)) is None


def test_nobody_but_root_may_do_what_no_rule_allows() -> None:
    assert refusal((), ROOT, needs(Tap("br0"), ROOT)) is None
    assert "no rule of the policy is for user alice" in (
        refusal((), ALICE, needs(Tap("br0"), ALICE)) or ""
    )


@pytest.mark.parametrize("who", ["alice", "1000", "*"])
def test_a_user_goes_by_name_or_id(who: str) -> None:
    assert permits(Rule(users=(who,), bridges=("br0",)), Tap("br0"))


@pytest.mark.parametrize("who", ["kvm", "107"])
def test_a_group_goes_by_name_or_id(who: str) -> None:
    assert permits(Rule(groups=(who,), bridges=("br0",)), Tap("br0"))
    assert not permits(Rule(users=("kvm",), bridges=("br0",)), Tap("br0"))


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (Tap("br1"), BASIC._replace(bridges=("br1",))),
        (Tap("br0", name="ci%d"), BASIC._replace(templates=("ci%d",))),
        (Tap("br0", mac="52:54:00:00:00:01"), BASIC._replace(features=("mac",))),
        (Tap("br0", queues=2), BASIC._replace(features=("queues",))),
        (Tap("br0", fin_wait=9), BASIC._replace(features=("fin-wait",))),
        (Tap("br0", uid=7), BASIC._replace(features=("uid",))),
        (Tap("br0", naming=Naming.NEXT), BASIC._replace(features=("naming",))),
        (Macvtap("eth0"), Rule(("alice",), kinds=("macvtap",), lower=("eth*",))),
        (
            Macvtap("eth0", mode=Mode.PASSTHRU),
            Rule(("alice",), kinds=("*",), lower=("eth0",), features=("mode",)),
        ),
    ],
)
def test_each_thing_needs_its_own_permission(spec: Tap | Macvtap, rule: Rule) -> None:
    assert not permits(BASIC, spec)
    assert permits(rule, spec)


def test_what_hurts_nobody_needs_no_permission() -> None:
    free = Tap("lab7", owner="vm", isolated=True, vnet_hdr=False, uid=1000, gid=107)
    assert permits(BASIC, free)


def test_a_field_that_nobody_thought_of_needs_a_rule_that_names_it() -> None:
    for field, default in Tap._field_defaults.items():
        if field in (*policy.LISTED, *policy.FREE):
            continue
        other: Any = {field: f"not {default}"}
        spec = Tap("br0")._replace(**other)
        assert Need("features", field.replace("_", "-")) in needs(spec, ALICE)


def test_two_half_rules_do_not_add_up() -> None:
    halves = (BASIC, Rule(("alice",), features=("queues",)))
    assert refusal(halves, ALICE, needs(Tap("br0", queues=2), ALICE))


def test_a_refusal_says_the_rule_that_is_needed() -> None:
    spec = Tap('br"1', name="ci%d", queues=2)
    said = refusal((BASIC,), ALICE, needs(spec, ALICE)) or ""
    content = tomllib.loads(said.partition("needed:\n")[2])
    (rule,) = content["allow"]
    named: Any = {key: tuple(value) for key, value in rule.items()}
    assert permits(Rule(**named), spec)


@pytest.mark.parametrize(
    ("listed", "value", "allowed"),
    [
        (("10",), "10", True),
        (("10",), "11", False),
        (("10-20",), "15", True),
        (("10-20",), "12-20", True),
        (("10-20",), "19-21", False),
    ],
)
def test_vlans_are_ranges(listed: tuple[str, ...], value: str, allowed: bool) -> None:
    rule = Rule(("alice",), vlans=listed)
    assert allows((rule,), ALICE, Need("vlans", value)) is allowed


def test_the_largest_quota_counts() -> None:
    rules = (BASIC, Rule(groups=("kvm",), devices=3), Rule(("alice",), devices=2))
    assert policy.quota(rules, ALICE, 16) == 3
    assert policy.quota((BASIC,), ALICE, 16) == 16
    assert policy.quota(rules, ROOT, 16) is None


def test_a_policy_is_explained() -> None:
    lines = policy.explain((Rule(("bob",)), BASIC), ALICE, 16)
    assert lines == [
        "user alice (uid 1000), groups alice, kvm:",
        "  allow[1]: kinds tap, bridges br0 lab*, templates vnet%d",
        "  at most 16 devices at a time",
    ]
    assert policy.explain((), ALICE, 16)[1:] == [
        "  may do nothing: no rule is for them"
    ]
    assert policy.explain((), ROOT, 16)[1:] == ["  may do everything"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[allow]\n", "line 1"),
        ('[[allow]]\nbridges = ["br0"]\n', r"allow\[0\]: it is for nobody"),
        ('[[allow]]\nusers = ["a"]\ndevices = -1\n', "devices is -1"),
        ("[limits]\nidle = -1\n", r"limits.idle is -1"),
        ("[limit]\n", "'limit' must be left out"),
        ('[qemu]\nbridge_conf = "/nonexistent"\n', "/nonexistent"),
    ],
)
def test_a_broken_file_says_what_is_wrong_and_where(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=said):
        load(str(path))


# bridge.conf


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", set()),
        ("allow br0\n", {"br0"}),
        ("  allow   br0  \n# deny br0\n\n", {"br0"}),
        ("allow all\n", {"br0", "br1"}),
        ("allow all\ndeny br1\n", {"br0"}),
        ("allow br0\ndeny all\n", set()),
        ("deny br0\nallow br0\nallow br1\n", {"br1"}),
        ("include FOLDER/more\n", {"br1"}),
        ("allow br0\ninclude FOLDER/none\ninclude FOLDER/loop\n", {"br0"}),
    ],
)
def test_bridge_conf_is_read_as_qemu_reads_it(
    tmp_path: Path, text: str, allowed: set[str]
) -> None:
    (tmp_path / "more").write_text("allow br1\n")
    (tmp_path / "loop").write_text(f"include {tmp_path}/loop\n")
    path = tmp_path / "bridge.conf"
    path.write_text(text.replace("FOLDER", str(tmp_path)))
    found = acl.read(str(path))
    assert {one for one in ("br0", "br1") if acl.permits(found, one)} == allowed


@pytest.mark.parametrize("text", ["allow\n", "permit br0\n"])
def test_a_line_of_bridge_conf_that_is_none_is_refused(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "bridge.conf"
    path.write_text(f"allow br0\n{text}")
    with pytest.raises(ValueError, match="line 2"):
        acl.read(str(path))


# Requests a second


def test_a_user_may_send_so_many_requests_a_second_and_a_burst() -> None:
    throttle = Throttle()
    assert sum(throttle.admit(7, 10, 100.0) for _ in range(50)) == 20
    assert sum(throttle.admit(7, 10, 101.0) for _ in range(50)) == 10
    assert throttle.admit(8, 10, 101.0), "another's bucket is another's"
    throttle.forget(104.0)
    assert sum(throttle.admit(7, 10, 104.0) for _ in range(50)) == 20
