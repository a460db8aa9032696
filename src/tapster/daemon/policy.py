# SPDX-License-Identifier: Apache-2.0
"""Decide whether a caller may do something, by the rules of a configuration. Pure.

Rule 1: a request that no rule allows is refused. Root may do everything. Rule 2: one
rule must allow everything about a device. Parts of several rules do not add up. Rule 3:
a change of a device is judged as an acquire of the device that would result. Rule 4: a
field of a request that is not listed here is a feature, and needs a rule that names it.
So a field that is added to a request is refused until a rule allows it. Rule 5: a
refusal names the rule that is needed.
"""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from tapster.light import NamedTuple
from tapster.model import DEFAULT_TEMPLATE, Lease, Macvtap, Spec, Tap

LARGEST_VLAN = 4094
ALL_VLANS = f"1-{LARGEST_VLAN}"
"""What an Open vSwitch port without a VLAN carries."""
SAFE = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.%@+="
)
"""The characters of names that no shell expands."""
ANYBODY = "*"


class Rule(NamedTuple):
    """`[[allow]]`: what some users and groups may have. Names are patterns (`*`)."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("tap",)
    bridges: tuple[str, ...] = ()
    ovs: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    vlans: tuple[str, ...] = ()
    netns: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    """Fields that a request must set, such as "filter"."""
    devices: int | None = None


class Caller(NamedTuple):
    """The calling user, as the kernel reports it."""

    uid: int
    gids: tuple[int, ...]
    pid: int = 0
    user: str = ""
    """The user's name if it is known. Only messages use it."""

    @property
    def root(self) -> bool:
        return self.uid == 0

    @property
    def name(self) -> str:
        return self.user or str(self.uid)

    def __str__(self) -> str:
        return f"user {self.user} (uid {self.uid})" if self.user else f"uid {self.uid}"


class Need(NamedTuple):
    """A value that a list of a rule must have."""

    key: str
    value: str


class DeviceRequest(NamedTuple):
    """A requested device, with everything that a rule can allow or forbid."""

    spec: Spec
    netns: str | None = None
    vhost: bool = False
    lowers_bridge: bool = False
    """Its MTU is below the MTU of its bridge, and lowers the MTU of the bridge."""


SEE_OTHERS = Need("features", "see-others")
END_OTHERS = Need("features", "end-others")
MAINTAIN = Need("features", "maintain")
FIN_WAIT = Need("features", "fin-wait")

LISTED = {
    "bridge": "bridges",
    "lower": "lower",
    "name": "templates",
    "ovs": "ovs",
    "trunks": "vlans",
    "vlan": "vlans",
}
"""The fields that a rule allows by listing values."""
FREE = frozenset(
    {
        *("key", "labels", "owner", "vnet_hdr"),
        *("addresses", "filter", "inbound", "isolated"),
        *("learning", "outbound", "standby", "up"),
        *("bpdu_guard", "outbound_pps", "root_guard"),
    }
)
"""The fields that hurt no other guest, so every user may set them. Some of them
restrict the guest itself."""
_OTHER_FEATURES = (
    *(SEE_OTHERS.value, END_OTHERS.value, MAINTAIN.value),
    *("vhost", "lower-bridge-mtu", "unsafe-names"),
)
FEATURES = frozenset(
    {
        field.replace("_", "-")
        for kind in (Tap, Macvtap)
        for field in kind._fields
        if field not in LISTED and field not in FREE
    }
    | {*_OTHER_FEATURES}
)
"""The features that a rule can list."""
ON_BY_DEFAULT = frozenset(
    field.replace("_", "-")
    for field, default in Tap._field_defaults.items()
    if default is True
)
"""The fields that are on unless a request turns them off. To require one would mean to
require that it is off."""
REQUIRABLE = (
    frozenset(
        field.replace("_", "-")
        for kind in (Tap, Macvtap)
        for field in kind._fields
        if field not in ("name", "bridge", "ovs", "lower")
    )
    - ON_BY_DEFAULT
)
"""The fields that a rule can require."""


def needs(device: DeviceRequest, caller: Caller) -> tuple[Need, ...]:
    """Return the values that a rule must list to allow this device to this caller."""
    return tuple(dict.fromkeys(_needs(device, caller)))


def _needs(device: DeviceRequest, caller: Caller) -> Iterator[Need]:
    spec = device.spec
    yield Need("kinds", str(spec.kind))
    yield Need("templates", spec.name)
    if not SAFE.issuperset(spec.name):
        yield Need("features", "unsafe-names")
    for field, value in spec._asdict().items():
        if field == "name" or value == spec._field_defaults.get(field):
            continue
        if field in LISTED:
            for listed in value if isinstance(value, tuple) else (value,):
                yield Need(LISTED[field], str(listed))
        elif (field, value) != ("uid", caller.uid) and not (
            field in FREE or (field == "gid" and value in caller.gids)
        ):
            yield Need("features", field.replace("_", "-"))
    if isinstance(spec, Tap) and spec.ovs and spec.vlan is None and not spec.trunks:
        yield Need("vlans", ALL_VLANS)
    if device.netns is not None:
        yield Need("netns", device.netns)
    if device.vhost:
        yield Need("features", "vhost")
    if device.lowers_bridge:
        yield Need("features", "lower-bridge-mtu")


def judge(rules: tuple[Rule, ...], caller: Caller, device: DeviceRequest) -> str | None:
    """Return None if the caller may have this device; else the reason, and the rule
    that would allow it."""
    if caller.root:
        return None
    needed = needs(device, caller)
    own = rules_of(rules, caller)
    for rule in own:
        if not missing(rule, needed) and not _unmet(rule, device.spec):
            return None
    # The missing fields of a rule that lists everything needed make the best message.
    for rule in own:
        if not missing(rule, needed):
            unmet = ", ".join(_unmet(rule, device.spec))
            return f"the policy requires {unmet} of {caller}: ask for it"
    return _refusal(own, caller, needed)


def refusal(
    rules: tuple[Rule, ...], caller: Caller, needed: tuple[Need, ...]
) -> str | None:
    """Return None if one rule has everything that is needed; else the reason, and the
    rule that would allow it."""
    own = rules_of(rules, caller)
    if caller.root or any(not missing(rule, needed) for rule in own):
        return None
    return _refusal(own, caller, needed)


def _refusal(own: list[Rule], caller: Caller, needed: tuple[Need, ...]) -> str:
    lacking = [missing(rule, needed) for rule in own]
    nearest = min(lacking, key=len, default=needed)
    wanted: dict[str, list[str]] = {}
    for need in needed:
        wanted.setdefault(need.key, []).append(need.value)
    rule = "\n".join(
        ["[[allow]]", f"users = {_toml([caller.name])}"]
        + [
            f"{key} = {_toml(values)}"
            for key, values in wanted.items()
            if set(values) - set(Rule._field_defaults[key])
        ]
    )
    if not lacking:
        return f"no rule of the policy is for {caller}; needed:\n{rule}"
    lacks = ", ".join(f"{need.key} {need.value!r}" for need in nearest)
    return f"the policy allows {caller} no {lacks}; needed:\n{rule}"


def allows(rules: tuple[Rule, ...], caller: Caller, need: Need) -> bool:
    """Return whether a rule for the caller lists this value."""
    return refusal(rules, caller, (need,)) is None


def may_see(rules: tuple[Rule, ...], caller: Caller, user: int | None) -> bool:
    """Return whether the caller may know of a lease that was acquired for `user`."""
    return user == caller.uid or allows(rules, caller, SEE_OTHERS)


def may_end(rules: tuple[Rule, ...], caller: Caller, lease: Lease) -> bool:
    """Return whether the caller may release a lease."""
    return lease.caller_uid == caller.uid or allows(rules, caller, END_OTHERS)


def quota(rules: tuple[Rule, ...], caller: Caller, default: int) -> int | None:
    """Return how many devices the caller may have at a time; None for any number."""
    if caller.root:
        return None
    given = [rule.devices for rule in rules_of(rules, caller)]
    return max((number for number in given if number is not None), default=default)


def missing(rule: Rule, needed: tuple[Need, ...]) -> tuple[Need, ...]:
    """Return the needed values that a rule does not list."""
    return tuple(need for need in needed if not _has(rule, need))


def rules_of(rules: tuple[Rule, ...], caller: Caller) -> list[Rule]:
    """Return the rules that apply to a caller. They have users and groups by id."""
    users = {str(caller.uid), ANYBODY}
    groups = set(map(str, caller.gids))
    return [
        rule
        for rule in rules
        if not users.isdisjoint(rule.users) or not groups.isdisjoint(rule.groups)
    ]


def _unmet(rule: Rule, spec: Spec) -> tuple[str, ...]:
    """Return the fields that a rule requires and a request does not set."""
    unset = {
        field.replace("_", "-")
        for field, value in spec._asdict().items()
        if value == spec._field_defaults.get(field)
    }
    settable = {field.replace("_", "-") for field in spec._fields}
    return tuple(
        field for field in rule.require if field in unset or field not in settable
    )


def _has(rule: Rule, need: Need) -> bool:
    listed: tuple[str, ...] = getattr(rule, need.key)
    if need.key == "vlans":
        return any(_in_range(need.value, text) for text in listed)
    if need.key == "netns" and "/" in need.value:
        # A pattern matches names only. A path must be listed literally.
        return need.value in listed
    return any(fnmatchcase(need.value, pattern) for pattern in listed)


def _in_range(value: str, text: str) -> bool:
    """Return whether a number, or a range of numbers, is in the range that `text`
    says."""
    first, last = vlan_range(text)
    low, high = vlan_range(value)
    return first <= low <= high <= last


def vlan_range(text: str) -> tuple[int, int]:
    """Return the first and last number of "10" or "10-20". Raises ValueError."""
    first, dash, last = text.partition("-")
    last = last if dash else first
    # Python takes "+1", " 1", "1_0" and the digits of every script, too.
    if not all(number.isascii() and number.isdigit() for number in (first, last)):
        raise ValueError(f"{text!r} is no range of numbers")
    return int(first), int(last)


def explain(rules: tuple[Rule, ...], caller: Caller, default: int) -> list[str]:
    """Return what the rules give a caller, for people."""
    groups = " ".join(map(str, caller.gids)) or "none"
    lines = [f"{caller}, groups {groups}:"]
    if caller.root:
        return [*lines, "  may do everything"]
    own = rules_of(rules, caller)
    if not own:
        return [*lines, "  may do nothing: no rule is for this user"]
    for rule in own:
        number = rules.index(rule)
        given = ", ".join(
            f"{key} {' '.join(values)}"
            for key, values in rule._asdict().items()
            if key not in ("users", "groups", "devices") and values
        )
        lines.append(f"  allow[{number}]: {given}")
    return [*lines, f"  at most {quota(rules, caller, default)} devices at a time"]


def _toml(values: Iterable[str]) -> str:
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "[" + ", ".join(f'"{value}"' for value in quoted) + "]"
