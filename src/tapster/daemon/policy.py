# SPDX-License-Identifier: Apache-2.0
"""Who may do what. Pure: from the rules of a configuration to a yes or a reason.

Rule 1: what no rule allows is refused. Root may do everything.
Rule 2: one rule must allow all of a device; two half ones do not add up.
Rule 3: a field of a request that nobody thought of here is a feature, and needs a
rule that names it. So a new field is refused until it is allowed.
Rule 4: a refusal says the rule that would be needed.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from tapster.light import NamedTuple
from tapster.model import DEFAULT_TEMPLATE, Lease, Spec


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
    devices: int | None = None


class Caller(NamedTuple):
    """Who calls, as the kernel says, with the names of their ids."""

    uid: int
    gids: tuple[int, ...]
    user: str
    groups: tuple[str, ...]
    pid: int = 0

    @property
    def root(self) -> bool:
        return self.uid == 0

    def __str__(self) -> str:
        return f"user {self.user} (uid {self.uid})"


class Need(NamedTuple):
    """A value that a list of a rule must have."""

    key: str
    value: str


SEE_OTHERS = Need("features", "see-others")
END_OTHERS = Need("features", "end-others")
MAINTAIN = Need("features", "maintain")

LISTED = {
    "bridge": "bridges",
    "lower": "lower",
    "name": "templates",
    "ovs": "ovs",
    "trunks": "vlans",
    "vlan": "vlans",
}
"""The fields whose values a rule lists."""
FREE = {
    *("key", "labels", "owner", "vnet_hdr"),
    *(
        "addresses",
        "filter",
        "inbound",
        "isolated",
        "learning",
        "outbound",
        "standby",
        "up",
    ),
}
"""The fields that hurt nobody else: some bind the guest itself."""


def needs(spec: Spec, caller: Caller) -> tuple[Need, ...]:
    """What a rule must have to allow this device to this caller."""
    return tuple(dict.fromkeys(_needs(spec, caller)))


def _needs(spec: Spec, caller: Caller) -> Iterator[Need]:
    yield Need("kinds", spec.kind)
    yield Need("templates", spec.name)
    for field, value in spec._asdict().items():
        if field == "name" or value == spec._field_defaults.get(field):
            continue
        if field in LISTED:
            for one in value if isinstance(value, tuple) else (value,):
                yield Need(LISTED[field], str(one))
        elif (field, value) != ("uid", caller.uid) and not (
            field in FREE or (field == "gid" and value in caller.gids)
        ):
            yield Need("features", field.replace("_", "-"))


def refusal(
    rules: tuple[Rule, ...], caller: Caller, needed: tuple[Need, ...]
) -> str | None:
    """None if one rule allows all that is needed; else which rule would."""
    if caller.root:
        return None
    lacking = [missing(rule, needed) for rule in _rules_of(rules, caller)]
    nearest = min(lacking, key=len, default=needed)
    if lacking and not nearest:
        return None
    wanted: dict[str, list[str]] = {}
    for need in needed:
        wanted.setdefault(need.key, []).append(need.value)
    rule = "\n".join(
        ["[[allow]]", f"users = {_toml([caller.user])}"]
        + [
            f"{key} = {_toml(values)}"
            for key, values in wanted.items()
            if set(values) - set(Rule._field_defaults[key])
        ]
    )
    lacks = ", ".join(f"{need.key} {need.value!r}" for need in nearest)
    first = f"the policy allows {caller} no {lacks}" if lacking else ""
    return f"{first or f'no rule of the policy is for {caller}'}; needed:\n{rule}"


def allows(rules: tuple[Rule, ...], caller: Caller, need: Need) -> bool:
    """Whether a rule has this one thing for the caller."""
    return refusal(rules, caller, (need,)) is None


def may_see(rules: tuple[Rule, ...], caller: Caller, user: int | None) -> bool:
    """Whether the caller may know of a lease that was acquired for `user`."""
    return user == caller.uid or allows(rules, caller, SEE_OTHERS)


def may_end(rules: tuple[Rule, ...], caller: Caller, lease: Lease) -> bool:
    """Whether the caller may release a lease."""
    return lease.caller_uid == caller.uid or allows(rules, caller, END_OTHERS)


def quota(rules: tuple[Rule, ...], caller: Caller, default: int) -> int | None:
    """How many devices the caller may have at a time; None for any number."""
    if caller.root:
        return None
    given = [rule.devices for rule in _rules_of(rules, caller)]
    return max((one for one in given if one is not None), default=default)


def missing(rule: Rule, needed: tuple[Need, ...]) -> tuple[Need, ...]:
    """What a rule lacks of what is needed."""
    return tuple(need for need in needed if not _has(rule, need))


def _rules_of(rules: tuple[Rule, ...], caller: Caller) -> list[Rule]:
    users = {caller.user, str(caller.uid), "*"}
    groups = {*caller.groups, *map(str, caller.gids)}
    return [
        rule for rule in rules if users & set(rule.users) or groups & set(rule.groups)
    ]


def _has(rule: Rule, need: Need) -> bool:
    listed: tuple[str, ...] = getattr(rule, need.key)
    if need.key == "vlans":
        return any(_in_range(need.value, one) for one in listed)
    return any(fnmatchcase(need.value, one) for one in listed)


def _in_range(value: str, text: str) -> bool:
    """Whether a number, or a range of them, is in the range that `text` says."""
    first, last = _range(text)
    low, high = _range(value)
    return first <= low <= high <= last


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def explain(rules: tuple[Rule, ...], caller: Caller, default: int) -> list[str]:
    """What the rules give a caller, for people."""
    groups = ", ".join(caller.groups) or "none"
    lines = [f"{caller}, groups {groups}:"]
    if caller.root:
        return [*lines, "  may do everything"]
    own = _rules_of(rules, caller)
    if not own:
        return [*lines, "  may do nothing: no rule is for them"]
    for rule in own:
        number = rules.index(rule)
        given = ", ".join(
            f"{key} {' '.join(values)}"
            for key, values in rule._asdict().items()
            if key not in ("users", "groups", "devices") and values
        )
        lines.append(f"  allow[{number}]: {given}")
    return [*lines, f"  at most {quota(rules, caller, default)} devices at a time"]


def complaint(rule: Rule) -> str | None:
    """What is wrong with a rule beside its types."""
    if not rule.users and not rule.groups:
        return "it is for nobody: give users or groups"
    for text in rule.vlans:
        first, _, last = text.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return f"vlans has {text!r}: give '10' or '100-200'"
    if rule.devices is not None and rule.devices < 0:
        return f"devices is {rule.devices}: give 0 or more"
    return None


def _toml(values: list[str]) -> str:
    quoted = (one.replace("\\", "\\\\").replace('"', '\\"') for one in values)
    return "[" + ", ".join(f'"{one}"' for one in quoted) + "]"
