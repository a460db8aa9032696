# SPDX-License-Identifier: Apache-2.0
"""Who may do what: the rules, by themselves."""

import grp
import os
import pwd
import random
import socket
import tomllib
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from lab.library import close
from tapster.daemon import callers, config, policy
from tapster.daemon.config import check, load
from tapster.daemon.methods.call import Call
from tapster.daemon.policy import (
    Caller,
    DeviceRequest,
    Need,
    Rule,
    allows,
    judge,
    needs,
)
from tapster.errors import NotAllowed, RequestError
from tapster.integrate import acl
from tapster.model import Macvtap, Mode, Naming, Tap, Wiring
from tapster.rpc import interface
from tests.daemon.parts import Parts, parts

ALICE = Caller(1000, (1000, 107), user="alice")
ROOT = Caller(0, (0,), user="root")
BASIC = Rule(users=("1000",), bridges=("br0", "lab*"))
BR0 = Tap("br0")


def permits(rule: Rule, spec: Tap | Macvtap, caller: Caller = ALICE) -> bool:
    return judge((rule,), caller, DeviceRequest(spec)) is None


def test_only_root_may_do_what_no_rule_allows() -> None:
    assert judge((), ROOT, DeviceRequest(BR0)) is None
    assert "no rule of the policy is for user alice" in (
        judge((), ALICE, DeviceRequest(BR0)) or ""
    )


@pytest.mark.parametrize("user", ["1000", "*"])
def test_a_user_goes_by_id(user: str) -> None:
    assert permits(Rule(users=(user,), bridges=("br0",)), BR0)


def test_a_user_without_a_name_goes_by_id() -> None:
    assert config.caller_named("61001") == Caller(61001, ())
    for name in ("nobody-at-all", "4294967295", "", "a\0b", "9" * 5000):
        with pytest.raises(RequestError, match=r"^(there is no|no) user "):
            config.caller_named(name)


def test_a_group_goes_by_id_and_is_no_user() -> None:
    assert permits(Rule(groups=("107",), bridges=("br0",)), BR0)
    assert not permits(Rule(users=("107",), bridges=("br0",)), BR0)


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
        (Macvtap("eth0"), Rule(("1000",), kinds=("macvtap",), lower=("eth*",))),
        (
            Macvtap("eth0", mode=Mode.PASSTHRU),
            Rule(("1000",), kinds=("*",), lower=("eth0",), features=("mode",)),
        ),
        (Tap(ovs="ovs0", vlan=10), BASIC._replace(ovs=("ovs0",), vlans=("10",))),
        (Tap(ovs="ovs0"), BASIC._replace(ovs=("ovs0",), vlans=("1-4094",))),
    ],
)
def test_each_thing_needs_its_own_permission(spec: Tap | Macvtap, rule: Rule) -> None:
    assert not permits(BASIC, spec)
    assert permits(rule, spec)


def test_a_refusal_has_words_and_no_names_of_ours() -> None:
    said = judge((BASIC,), ALICE, DeviceRequest(Macvtap("eth0", mode=Mode.VEPA)))
    assert said is not None
    assert "no kinds 'macvtap', lower 'eth0', features 'mode'; needed:" in said


def test_fields_that_hurt_no_other_guest_need_no_permission() -> None:
    free = Tap("lab7", owner="vm", isolated=True, vnet_hdr=False, uid=1000, gid=107)
    assert permits(BASIC, free)


def test_a_field_that_the_policy_does_not_know_needs_a_rule_that_names_it() -> None:
    for field, default in Tap._field_defaults.items():
        if field in (*policy.LISTED, *policy.FREE):
            continue
        other: Any = {field: f"not {default}"}
        spec = Tap("br0")._replace(**other)
        feature = field.replace("_", "-")
        assert Need("features", feature) in needs(DeviceRequest(spec), ALICE)
        assert feature in policy.FEATURES


def test_a_port_of_open_vswitch_without_a_vlan_carries_all_of_them() -> None:
    rule = BASIC._replace(ovs=("ovs0",), vlans=("10",))
    assert permits(rule, Tap(ovs="ovs0", vlan=10))
    assert permits(rule, Tap(ovs="ovs0", trunks=(10,)))
    assert not permits(rule, Tap(ovs="ovs0"))
    assert not permits(rule, Tap(ovs="ovs0", trunks=(10, 11)))


def test_a_rule_can_require_what_a_request_must_ask_for() -> None:
    rule = BASIC._replace(require=("filter", "isolated"))
    assert permits(rule, Tap("br0", filter=True, isolated=True))
    assert not permits(rule, Tap("br0", filter=True))
    said = judge((rule,), ALICE, DeviceRequest(BR0))
    assert said == "the policy requires filter, isolated of user alice (uid 1000): " + (
        "ask for it"
    )
    assert not permits(
        Rule(("1000",), kinds=("macvtap",), lower=("*",), require=("filter",)),
        Macvtap("eth0"),
    ), "a macvtap has no filter"


def test_a_name_that_a_shell_would_expand_needs_its_own_permission() -> None:
    rule = BASIC._replace(templates=("*",))
    for name in ("vm-1.%d", "a_b", "eth0@x", "c+d=e"):
        assert permits(rule, Tap("br0", name=name))
    for name in ("$(x)", "a;b", "`x`", "a&b", "a|b", "~x", "a*", "'a", '"a', "\\a"):
        assert not permits(rule, Tap("br0", name=name))
        unsafe = rule._replace(features=("unsafe-names",))
        assert permits(unsafe, Tap("br0", name=name))


def test_a_pattern_stands_for_names_of_namespaces_and_never_for_paths() -> None:
    rule = BASIC._replace(netns=("lab*", "/srv/ns"))
    for netns, allowed in {
        "lab7": True,
        "/srv/ns": True,
        "prod": False,
        "labx/../../../proc/1/ns/net": False,
        "lab/x": False,
        "/srv/ns/../x": False,
        "LAB7": False,
    }.items():
        assert (judge((rule,), ALICE, DeviceRequest(BR0, netns)) is None) is allowed, (
            netns
        )
    everything = BASIC._replace(netns=("*",))
    assert judge((everything,), ALICE, DeviceRequest(BR0, "/proc/1/ns/net")) is not None


def test_an_mtu_that_lowers_the_bridges_needs_its_own_permission() -> None:
    rule = BASIC._replace(features=("mtu",))
    lowering = DeviceRequest(Tap("br0", mtu=1000), lowers_bridge=True)
    assert permits(rule, Tap("br0", mtu=1000))
    assert judge((rule,), ALICE, lowering) is not None
    both = rule._replace(features=("mtu", "lower-bridge-mtu"))
    assert judge((both,), ALICE, lowering) is None


@pytest.mark.parametrize("spec", [Tap(bridge="br0"), Tap(ovs="br0")])
def test_a_request_that_lowers_a_bridge_is_seen(tmp_path: Path, spec: Tap) -> None:
    with parts(tmp_path) as made:
        rule = BASIC._replace(ovs=("*",), vlans=("1-4094",), features=("mtu",))
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        assert acquire(made, spec._replace(mtu=1000)) is None
        assert acquire(made, spec._replace(mtu=1500)) is not None


def test_two_half_rules_do_not_add_up() -> None:
    halves = (BASIC, Rule(("1000",), features=("queues",)))
    assert judge(halves, ALICE, DeviceRequest(Tap("br0", queues=2)))


def test_a_refusal_says_the_rule_that_is_needed() -> None:
    spec = Tap('br"1', name="ci%d", queues=2)
    said = judge((BASIC,), ALICE, DeviceRequest(spec)) or ""
    content = tomllib.loads(said.partition("needed:\n")[2])
    (rule,) = content["allow"]
    assert rule.pop("users") == ["alice"]
    named: Any = {key: tuple(value) for key, value in rule.items()}
    assert permits(Rule(users=("1000",), **named), spec)


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
    rule = Rule(("1000",), vlans=listed)
    assert allows((rule,), ALICE, Need("vlans", value)) is allowed


def test_the_largest_quota_counts() -> None:
    rules = (BASIC, Rule(groups=("107",), devices=3), Rule(("1000",), devices=2))
    assert policy.quota(rules, ALICE, 16) == 3
    assert policy.quota((BASIC,), ALICE, 16) == 16
    assert policy.quota(rules, ROOT, 16) is None


def test_a_policy_is_explained() -> None:
    lines = policy.explain((Rule(("1001",)), BASIC), ALICE, 16)
    assert lines == [
        "user alice (uid 1000), groups 1000 107:",
        "  allow[1]: kinds tap, bridges br0 lab*, templates vnet%d",
        "  at most 16 devices at a time",
    ]
    assert policy.explain((), ALICE, 16)[1:] == [
        "  may do nothing: no rule is for this user"
    ]
    assert policy.explain((), ROOT, 16)[1:] == ["  may do everything"]


# The file


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[[allow]\n", None, "line 1"),
        ('[[allow]]\nbridges = ["br0"]\n', 1, "allow[0]: the rule is for nobody"),
        ('[[allow]]\nusers = ["0"]\ndevices = -1\n', 3, "-1 must be 0 or more"),
        ("[limits]\nidle = -1\n", 2, "-1.0 must be more than 0"),
        ('[defaults]\nfin_wait = "abc"\n', 2, "'abc' is not a duration"),
        ('[defaults]\nnaming = "stable"\n', 2, "lowest or next, not 'stable'"),
        ('[defaults]\nmac_prefix = "zz"\n', 2, "mac_prefix is 1 to 5 bytes"),
        ("[defaults]\nhistory = -1\n", 2, "history is a number of leases"),
        ("[defaults]\nhistory_days = 0\n", 2, "history_days is a number of days"),
        ("[limits]\nidle = nan\n", 2, "nan must be more than 0"),
        ("[limits]\nstall = inf\n", 2, "inf must be more than 0, and finite"),
        ("[limits]\nrequest = 1\n", 2, "did you mean 'requests'?"),
        ("[limit]\n", 1, "limit: is not known: did you mean 'limits'?"),
        ('[qemu]\nbridge_conf = "/nonexistent"\n', 2, "/nonexistent"),
        ("[allow]\nusers = 1\n", 1, "write [[allow]]"),
        (
            '[[allow]]\nusers = ["0"]\n\n[[allow]]\nusers = ["0"]\n'
            'features = [\n  "mtu",\n  "fin_wait",\n]\n',
            8,
            "allow[1].features: 'fin_wait' is not known: did you mean 'fin-wait'?",
        ),
        ('[[allow]]\nusers=["0"]\nvlans=["10-"]\n', 3, "'10-' is not a VLAN"),
        ('[[allow]]\nusers=["0"]\nvlans=["9-3"]\n', 3, "'9-3' is not a range"),
        ('[[allow]]\nusers=["0"]\nvlans=["0"]\n', 3, "'0' is not a range"),
        ('[[allow]]\nusers = "x"\n', 2, "'x' must be an array"),
        ('[[allow]]\nusers=["0"]\nkinds=["tun"]\n', 3, "'tun' is not known"),
        ('[[allow]]\nusers=["0"]\nkinds=["taps"]\n', 3, "did you mean 'tap'?"),
        ('[[allow]]\nusers=["0"]\nvlans=["1_0"]\n', 3, "'1_0' is not a VLAN"),
        ('[[allow]]\nusers=["0"]\nvlans=["+5"]\n', 3, "'+5' is not a VLAN"),
        ('[[allow]]\nusers=["0"]\nbridges=["br0 "]\n', 3, "contains white space"),
        ('[[allow]]\nusers=["0"]\novs=[""]\n', 3, "name '' is empty"),
        ('[[allow]]\nusers=["0"]\nlower=["a/b"]\n', 3, "'a/b' contains '/'"),
        ('[[allow]]\nusers=["0"]\nnetns=["/run/*"]\n', 3, "is a pattern of paths"),
        ('[[allow]]\nusers=["0"]\nnetns=["//run/x"]\n', 3, "must be '/run/x'"),
        ('[[allow]]\nusers=["0"]\nnetns=[""]\n', 3, "is no name of a namespace"),
        ('[[allow]]\nusers=["4294967295"]\n', 2, "'4294967295' does not exist"),
        ('[[allow]]\nusers=["\u0663"]\n', 2, "does not exist on this host"),
        ("[[allow]]\nusers=[]\ngroups=[]\n", 1, "the rule is for nobody"),
        (
            '[[allow]]\nusers=["0"]\nrequire=["guard"]\n',
            3,
            "'guard' is on unless a request turns it off, for which a rule must list "
            "the feature 'guard'",
        ),
        (
            '[[allow]]\nusers=["0"]\nrequire=["learning"]\n',
            3,
            "'learning' is on unless a request turns it off",
        ),
        ('[[allow]]\nusers=["0"]\nrequire=["filters"]\n', 3, "'filter'"),
        ('[[allow]]\nusers=["0"]\ntemplates=["a/b"]\n', 3, "'a/b'"),
        ('[[allow]]\nusers=["0"]\nnetns=["a/b"]\n', 3, "absolute path"),
        ('[[allow]]\nusers = ["nobody-9"]\n', 2, "user 'nobody-9' does not exist"),
        ('[[allow]]\ngroups = ["no-9"]\n', 2, "group 'no-9' does not exist"),
        ('[metrics]\nlisten = "127.0.0.1:9474"\n', 2, "everybody = true"),
        ('[metrics]\nlisten = "here"\n', 2, "neither an absolute path"),
        ("x = " + "[" * 5000 + "]" * 5000, None, "nested too deeply"),
    ],
)
def test_a_fault_of_the_file_is_reported_with_line_value_and_remedy(
    tmp_path: Path, text: str, line: int | None, said: str
) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text(text)
    _, faults = check(str(path))
    assert [fault.line for fault in faults] == [line]
    assert said in str(faults[0])


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text(
        '[limits]\nidle = "x"\n[[allow]]\nfeatures = ["a", "b"]\n[x]\n'
        '[[allow]]\nusers = ["gone-9"]\n'
    )
    with pytest.raises(RequestError, match="'gone-9' does not exist") as caught:
        load(str(path))
    assert str(caught.value).count("\n") == 5


def test_a_default_of_the_wrong_type_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text('[defaults]\nbridge = 5\nhistory = "x"\nnaming = "y"\n')
    _, faults = check(str(path))
    assert [fault.line for fault in faults] == [2, 3, 4]


def test_a_file_that_is_missing_is_a_fault_and_allows_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    assert load(path).rules == ()
    loaded, faults = check(path)
    assert loaded is None
    assert "No such file" in str(faults[0])
    with pytest.raises(RequestError, match="No such file"):
        load(path, must_exist=True)


def test_a_policy_that_is_no_regular_file_is_read_without_waiting(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert load(str(tmp_path / "fifo")).rules == ()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RequestError, match="Is a directory"):
        load(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
    (tmp_path / "huge").write_bytes(b"#" * (1 << 21))
    with pytest.raises(RequestError, match="more than"):
        load(str(tmp_path / "huge"))


def test_names_become_ids_and_an_unknown_name_matches_no_user(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text(
        '[[allow]]\nusers = ["root", "gone-9", "007"]\ngroups = ["daemon", "08"]\n'
    )
    loaded = load(str(path))
    assert loaded.rules[0].users == ("0", "7")
    assert loaded.rules[0].groups == ("1", "8")
    assert loaded.names == ((0, "root"),)
    assert loaded.unknown == (("user", "gone-9"),)


def test_a_namespace_with_a_nul_in_its_name_is_refused(tmp_path: Path) -> None:
    with parts(tmp_path) as made:
        request = interface.Acquire((interface.nic(BR0),), netns="a\0b")
        with pytest.raises(RequestError, match="printed"):
            made.service.call("Acquire", Call(ROOT._replace(pid=1), -1, request, ()))


# Changes


MACS = ("52:54:00:00:00:01", None)
BRIDGES = ("br0", "br1")
CHANGES: list[dict[str, Any]] = [
    *({"bridge": bridge} for bridge in BRIDGES),
    *({"filter": filter} for filter in (True, False)),
    {"mtu": 1300},
    {"isolated": True},
]
STARTS = [
    Tap(bridge, name=name, mac=mac, filter=filter)
    for mac, name, bridge, filter in product(
        MACS, ("vnet%d", "ci%d"), BRIDGES, (True, False)
    )
]
DEVICES = [
    spec._replace(mtu=mtu, isolated=isolated)
    for spec, mtu, isolated in product(STARTS, (None, 1300), (False, True))
]
"""Every device that a change of one of `STARTS` can lead to."""
CHOICES: dict[str, list[tuple[str, ...]]] = {
    "bridges": [("br0",), ("br1",), ("br*",)],
    "templates": [("vnet%d",), ("*",)],
    "features": [(), ("mac",), ("mtu",), ("mac", "mtu", "fin-wait")],
    "require": [(), ("filter",)],
}
RULE_SETS = [
    Rule(("1000",), **dict(zip(CHOICES, values, strict=True)))  # type: ignore[arg-type]
    for values in product(*CHOICES.values())
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_change_is_judged_as_the_device_that_results(tmp_path: Path) -> None:
    """Whatever sequence of Acquire and Set reaches a device, each step is allowed
    exactly if an Acquire of the device after it is.

    POLICIES=all tries all pairs of rules.
    """
    chance = random.Random(1)
    pairs = [*combinations(RULE_SETS, 2)]
    if os.environ.get("POLICIES") != "all":
        pairs = chance.sample(pairs, 30)
    compared = 0
    with parts(tmp_path) as made:
        made.system.stranger().add_bridge("br1")
        for rules in pairs:
            made.access.loaded = made.access.loaded._replace(rules=rules)
            allowed = {spec: may_acquire(made, spec) for spec in DEVICES}
            for spec, lowers in product(DEVICES, (False, True)):
                if lowers is (spec.mtu is not None):
                    request = DeviceRequest(spec, None, False, lowers)
                    assert allowed[spec] is (judge(rules, ALICE, request) is None)
            for spec in STARTS:
                if not allowed[spec]:
                    continue
                id = acquire(made, spec)
                assert id is not None
                for change in chance.choices(CHANGES, k=6):
                    wanted = spec._replace(**change)
                    assert change_it(made, id, change) is allowed[wanted], wanted
                    if allowed[wanted]:
                        spec = wanted
                    compared += 1
                made.host.operations.release(id)
                made.host.reap(now=True)
    assert compared > 5 * len(pairs)


def may_acquire(made: Parts, spec: Tap) -> bool:
    """Return whether a device can be acquired; end it again."""
    id = acquire(made, spec)
    if id is None:
        return False
    made.host.operations.release(id)
    made.host.reap(now=True)
    return True


def ask(made: Parts, method: str, parameters: Any) -> Any:
    call = Call(ALICE, -1, parameters, ())
    return made.service.call(method, call)


def acquire(made: Parts, spec: Tap | Macvtap) -> str | None:
    request = interface.Acquire((interface.nic(spec),), interface.Binding.NOTHING)
    try:
        answer = ask(made, "Acquire", request)
    except NotAllowed:
        return None
    close(answer.fds)
    (device,) = answer.parameters.devices
    return str(device.lease.id)


def change_it(made: Parts, id: str, change: dict[str, Any]) -> bool:
    try:
        ask(made, "Set", interface.Set(id, tuple(change), Wiring(**change)))
    except NotAllowed:
        return False
    return True


def test_a_wait_is_ended_only_if_the_rule_for_the_device_lets_its_user_choose_it(
    tmp_path: Path,
) -> None:
    """A rule for another bridge does not."""
    with parts(tmp_path) as made:
        made.system.stranger().add_bridge("br1")
        chosen = Rule(("1000",), bridges=("br1",), features=("fin-wait",))
        made.access.loaded = made.access.loaded._replace(rules=(BASIC, chosen))
        ids = [acquire(made, Tap(bridge)) for bridge in ("br0", "br1")]
        for id in ids:
            assert id is not None
            ask(made, "Release", interface.Release(id))
        with pytest.raises(NotAllowed, match="no features 'fin-wait'"):
            ask(made, "Reap", interface.Reap(leases=(str(ids[0]),)))
        answer = ask(made, "Reap", interface.Reap(leases=(str(ids[1]),)))
        assert answer.parameters == interface.Reaped(1)


def test_a_bridge_is_judged_by_its_name_and_not_by_an_altname(tmp_path: Path) -> None:
    with parts(tmp_path) as made:
        stranger = made.system.stranger()
        stranger.add_bridge("secret")
        stranger.add_altname("secret", "lab1")
        stranger.add_altname("br0", "alias")
        rule = BASIC._replace(bridges=("lab*", "br0"))
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        assert acquire(made, Tap("lab1")) is None
        id = acquire(made, Tap("alias"))
        assert id is not None
        assert made.host.find(id).wiring.bridge == "br0"
        assert not change_it(made, id, {"bridge": "lab1"})


@pytest.mark.parametrize("lower_netns", [None, ""])
def test_a_lower_device_is_judged_by_its_name_and_not_by_an_altname(
    tmp_path: Path, lower_netns: str | None
) -> None:
    """udev gives every network card further names."""
    with parts(tmp_path) as made:
        stranger = made.system.stranger()
        stranger.add_veth("secret", "far")
        stranger.add_altname("secret", "lab1")
        stranger.add_veth("lab2", "far2")
        rule = BASIC._replace(
            kinds=("macvtap",), lower=("lab*",), features=("lower-netns",)
        )
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        assert acquire(made, Macvtap("lab1", lower_netns=lower_netns)) is None
        id = acquire(made, Macvtap("lab2", lower_netns=lower_netns))
        assert id is not None
        assert made.host.find(id).lower == "lab2"


def test_a_device_that_root_has_moved_is_judged_where_it_is(tmp_path: Path) -> None:
    """By the request that it was acquired with, its user could lower that bridge."""
    with parts(tmp_path) as made:
        made.system.stranger().add_bridge("br1")
        made.system.stranger().set_by_name("br0", mtu=1300)
        rule = BASIC._replace(features=("mtu",))
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        id = acquire(made, BR0)
        assert id is not None
        made.host.set(id, bridge="br1", mtu=1500)
        assert not change_it(made, id, {"mtu": 1300})
        assert not change_it(made, id, {"isolated": True})
        assert change_it(made, id, {"bridge": "br0"})
        assert change_it(made, id, {"isolated": True})


@pytest.mark.parametrize("asked", [1300, None])
def test_a_device_that_takes_another_place_keeps_the_mtu_that_was_asked_for(
    tmp_path: Path, asked: int | None
) -> None:
    """Also if the device in whose place it was has the same MTU."""
    with parts(tmp_path) as made:
        made.system.stranger().add_bridge("br1")
        made.system.stranger().set_by_name("br0", mtu=1300)
        rule = BASIC._replace(features=("mtu", "redirect"))
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        id = acquire(made, Tap(redirect="br0", mtu=asked))
        assert id is not None
        assert change_it(made, id, {"redirect": "br1"})
        assert made.host.find(id).wiring.mtu == (asked or 1500)


@pytest.mark.parametrize(
    "spec",
    [
        Tap("br0", vlan=-5),
        Tap("br0", trunks=(-5,)),
        Tap("br0", mtu=-1),
        Tap("br0", queues=-1),
        Tap("a/b"),
        Tap("br0", name="%d%d"),
    ],
)
def test_a_request_is_checked_before_the_policy_is_asked(
    tmp_path: Path, spec: Tap
) -> None:
    with parts(tmp_path) as made:
        rule = Rule(("1000",), bridges=("*",), vlans=("1-100",), templates=("*",))
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        with pytest.raises(RequestError):
            acquire(made, spec)


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


def test_an_included_file_for_some_users_is_no_policy_for_everybody(
    tmp_path: Path,
) -> None:
    """The daemon would give everybody what the file allows some, or, if it could not
    read the file, what the file denies them."""
    conf, more, some = (tmp_path / name for name in ("conf", "more", "some"))
    conf.write_text(f"allow all\ninclude {more}\n")
    more.write_text(f"# for all\ninclude {some}\n")
    some.write_text("deny br0\n")
    some.chmod(0o640)
    assert not acl.permits(acl.read(str(conf)), "br0")
    with pytest.raises(ValueError, match="/some is for the users who may"):
        acl.read(str(conf), for_everybody=True)
    path = tmp_path / "tapster.toml"
    path.write_text(f'[qemu]\nbridge_conf = "{conf}"\n')
    loaded, (fault,) = config.check(str(path))
    assert loaded is None
    assert (fault.line, "some is for the users" in str(fault)) == (2, True)
    some.chmod(0o644)
    assert not acl.permits(acl.read(str(conf), for_everybody=True), "br0")
    conf.chmod(0o640)
    with pytest.raises(ValueError, match="/conf is for the users who may"):
        acl.read(str(conf), for_everybody=True)


def test_the_lines_before_an_invalid_one_of_an_included_file_count(
    tmp_path: Path,
) -> None:
    """QEMU's helper has added them to its list when it meets the invalid one."""
    (tmp_path / "more").write_text("deny br0\npermit br1\ndeny br2\n")
    (tmp_path / "conf").write_text(f"include {tmp_path}/more\nallow all\n")
    found = acl.read(str(tmp_path / "conf"))
    bridges = ("br0", "br1", "br2")
    assert [acl.permits(found, one) for one in bridges] == [False, True, True]


def test_each_file_that_bridge_conf_includes_is_read_once(tmp_path: Path) -> None:
    """Files that include one another several times would be read without end."""
    files = [tmp_path / f"{number}.conf" for number in range(20)]
    for file, following in zip(files, files[1:] + files[:1], strict=True):
        file.write_text(f"include {following}\n" * 10 + f"allow {file.stem}\n")
    found = acl.read(str(files[0]))
    assert len(found) == len(files)
    assert acl.permits(found, "19")


def test_a_bridge_conf_that_is_no_regular_file_is_read_without_waiting(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert acl.read(str(tmp_path / "fifo")) == ()
    with pytest.raises(ValueError, match="more than 1048576 characters"):
        acl.read("/dev/zero")
    (tmp_path / "conf").write_text("include /dev/zero\nallow br0\n")
    assert acl.permits(acl.read(str(tmp_path / "conf")), "br0")


@pytest.mark.parametrize("text", ["allow\n", "permit br0\n"])
def test_a_line_of_bridge_conf_that_is_none_is_refused(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "bridge.conf"
    path.write_text(f"allow br0\n{text}")
    with pytest.raises(ValueError, match="line 2"):
        acl.read(str(path))


def test_a_caller_is_judged_without_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of users and groups that does not answer would stop the thread that
    serves all users."""

    def look_up(*_: object) -> None:
        raise AssertionError("it looks up a name")

    for module, names in ((pwd, ("getpwuid", "getpwnam")), (grp, ("getgrnam",))):
        for name in names:
            monkeypatch.setattr(module, name, look_up)
            monkeypatch.setattr(config, name, look_up)
    monkeypatch.setattr(os, "getgrouplist", look_up)
    theirs, ours = socket.socketpair()
    with theirs, ours:
        caller, pidfd = callers.identify(ours, {os.geteuid(): "me"})
    os.close(pidfd)
    assert (caller.uid, caller.pid) == (os.geteuid(), os.getpid())
    user = caller._replace(uid=1000)
    assert judge((Rule(("1000",), bridges=("br0",)),), user, DeviceRequest(BR0)) is None
