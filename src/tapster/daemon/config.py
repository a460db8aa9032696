# SPDX-License-Identifier: Apache-2.0
"""The daemon's configuration, /etc/tapster/tapster.toml, and the file it names."""

import math
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from grp import getgrnam
from pwd import getpwnam, getpwuid

from tapster import names
from tapster.daemon import policy
from tapster.daemon.policy import ANYBODY, Caller, Rule
from tapster.defaults import READERS
from tapster.errors import BadName, RequestError
from tapster.integrate import acl
from tapster.integrate.acl import Acl
from tapster.kernel.unix import SCM_MAX_FD
from tapster.light import Any, NamedTuple
from tapster.model import Kind
from tapster.rpc.varlink import Unfit, from_json

PATH = "/etc/tapster/tapster.toml"
LONGEST = 1 << 20
"""Bytes that the file may have."""
LAST_ID = (1 << 32) - 2
"""The largest id of a user or group."""
SHOWN = 60
"""Characters of a wrong value that are shown."""


class Limits(NamedTuple):
    """`[limits]`: how much of the daemon one user, or all users together, can
    occupy."""

    devices: int = 16
    """Devices that a user may have at a time, unless a rule has another number."""
    waiting: int = 64
    """Devices of a user that may be in FIN WAIT."""
    keys: int = 1000
    """Keys of stable names, and templates of naming next, that are remembered for a
    user."""
    requests: int = 100
    """Requests a user may send a second. Those of two seconds may come at once."""
    connections: int = 1024
    connections_per_user: int = 64
    message: int = 65536
    """Bytes of a request."""
    descriptors: int = 64
    """Descriptors in one answer."""
    idle: float = 300.0
    """Seconds without a request after which a connection is closed."""
    stall: float = 10.0
    """Seconds in which a client must send a whole request, or receive an answer."""


class Qemu(NamedTuple):
    """`[qemu]`: a file as qemu-bridge-helper reads it. The helper gives every user what
    this file allows."""

    bridge_conf: str | None = None


class Watching(NamedTuple):
    """`[watch]`: whether to restore a device that another program renamed, took down or
    took off its bridge, or only to report the change."""

    repair: bool = False


class MetricsConfig(NamedTuple):
    """`[metrics]`: where Prometheus reads the figures: a path, or ADDRESS:PORT."""

    listen: str | None = None
    everybody: bool = False
    """Whether every client of ADDRESS:PORT may read the figures of all users: the
    kernel does not say which user is at the other end. At a path, root and users with
    see-others may read them."""
    labels: tuple[str, ...] = ()
    """Keys of the labels by whose values the figures count active leases."""


class CommandDefaults(NamedTuple):
    """`[defaults]`: the defaults for options of the command. The daemon ignores
    them."""

    bridge: str | None = None
    fin_wait: str | None = None
    """A duration such as "1m"."""
    naming: str | None = None
    mac_prefix: str | None = None
    history: int | None = None
    """How many ended leases the ledger remembers."""
    history_days: float | None = None
    """How many days it remembers them."""


class Config(NamedTuple):
    """The whole file."""

    limits: Limits = Limits()
    allow: tuple[Rule, ...] = ()
    qemu: Qemu = Qemu()
    watch: Watching = Watching()
    metrics: MetricsConfig = MetricsConfig()
    fleet: bool = False
    """The file has a `[fleet]`, which `tapster.fleet.settings` reads."""
    defaults: CommandDefaults = CommandDefaults()


class ConfigFault(NamedTuple):
    """A mistake in the file."""

    line: int | None
    where: str
    problem: str

    def __str__(self) -> str:
        line = None if self.line is None else f"line {self.line}"
        return ": ".join(filter(None, (line, self.where, self.problem)))


class Loaded(NamedTuple):
    """The configuration, the file of QEMU that it names, and the ids of users and
    groups that it names."""

    config: Config = Config()
    listed: Acl = ()
    rules: tuple[Rule, ...] = ()
    """The rules, with users and groups by id."""
    names: tuple[tuple[int, str], ...] = ()
    """The names of the users that the rules name, by id."""
    unknown: tuple[tuple[str, str], ...] = ()
    """The users and groups of the rules that do not exist: "user" or "group", and the
    name."""

    @property
    def names_to_look_up(self) -> tuple[str, ...]:
        """The users and groups that the rules name."""
        return tuple(
            name
            for rule in self.config.allow
            for name in (*rule.users, *rule.groups)
            if name != ANYBODY
        )

    def rules_for_bridge(self, bridge: str | None) -> tuple[Rule, ...]:
        """Return the rules for requests of the bridge helper: a tap on a bridge, no
        more."""
        if bridge is not None and acl.permits(self.listed, bridge):
            return (*self.rules, Rule(users=(ANYBODY,), bridges=(bridge,)))
        return self.rules


def load(path: str, *, must_exist: bool = False) -> Loaded:
    """Read the file. Without it, only root may do anything.

    Raises RequestError, which lists every fault.
    """
    loaded, faults = check(path)
    if not must_exist and loaded is None and not os.path.lexists(path):
        return Loaded()
    if loaded is None:
        raise RequestError("\n".join(f"{path}: {fault}" for fault in faults))
    return loaded


def check(path: str) -> tuple[Loaded | None, list[ConfigFault]]:
    """Read the file, and report every fault.

    A user, group or file of the fleet that does not exist is a fault, but the file can
    still be used.
    """
    try:
        text = _read(path)
        content = tomllib.loads(text)
    except OSError as error:
        return None, [ConfigFault(None, "", error.strerror or str(error))]
    except UnicodeDecodeError as error:
        return None, [ConfigFault(None, "", f"not UTF-8: {error.reason}")]
    except RecursionError:
        return None, [ConfigFault(None, "", "nested too deeply")]
    except ValueError as error:  # tomllib.TOMLDecodeError says the line
        return None, [ConfigFault(None, "", str(error))]
    reader = _Reader(text)
    config = reader.config(content)
    listed: Acl = ()
    if config.qemu.bridge_conf:
        try:
            listed = acl.read(config.qemu.bridge_conf, for_everybody=True)
        except OSError as error:
            reader.add(
                "qemu", "bridge_conf", f"{config.qemu.bridge_conf}: {error.strerror}"
            )
        except ValueError as error:
            reader.add("qemu", "bridge_conf", str(error))
    loaded = resolve(Loaded(config, listed))
    unknown = [
        ConfigFault(
            reader.line_of(name),
            "allow",
            f"{what} {name!r} does not exist on this host",
        )
        for what, name in loaded.unknown
    ]
    faults = [*reader.faults, *reader.missing, *unknown]
    return (None if reader.faults else loaded), faults


def _read(path: str) -> str:
    def open_at_once(path: str, flags: int) -> int:
        # Opening a FIFO must not make the daemon wait.
        return os.open(path, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=open_at_once) as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError(f"the file has more than {LONGEST} bytes")
    return data.decode()


class _Reader:
    """Makes a configuration from parsed TOML, and notes every fault."""

    def __init__(self, text: str) -> None:
        self.faults: list[ConfigFault] = []
        self.missing: list[ConfigFault] = []
        """What the file names and the host lacks: the rest can still be used."""
        self._lines = text.splitlines()

    def config(self, content: dict[str, Any]) -> Config:
        values: dict[str, Any] = {}
        for section, value in content.items():
            if section not in Config._fields:
                self._unknown("", section, Config._fields)
            elif section == "fleet":
                values["fleet"] = True
                self._check_fleet(value)
            elif section == "allow":
                values["allow"] = tuple(self._rules(value))
            else:
                kind = type(Config._field_defaults[section])
                values[section] = self._table(kind, section, value)
        self._check_defaults(content.get("defaults"))
        config = Config(**values)
        self._check_limits(config.limits)
        self._check_metrics(config.metrics)
        return config

    def _check_defaults(self, value: Any) -> None:
        """Check what `_table` does not: more than the types."""
        wrong = {fault.where for fault in self.faults}
        for key, given in value.items() if isinstance(value, dict) else ():
            if key in READERS and f"defaults.{key}" not in wrong:
                try:
                    READERS[key](given)
                except RequestError as error:
                    self.add("defaults", key, str(error))

    def _check_fleet(self, value: Any) -> None:
        # Outside a fleet nothing of it is imported.
        from tapster.fleet import settings
        from tapster.fleet.etcd import parse_endpoint

        try:
            found = settings.parse(value)
        except RequestError as error:
            self.add("", "fleet", str(error))
            return
        for url in found.endpoints:
            try:
                parse_endpoint(url)
            except RequestError as error:
                self.add("fleet", "endpoints", str(error), url)
        for key in ("password_file", "ca", "cert", "key"):
            path = getattr(found, key)
            if path is not None and not os.path.exists(path):
                self.missing.append(
                    ConfigFault(
                        self._line("fleet", key, path),
                        f"fleet.{key}",
                        f"{path!r} does not exist on this host",
                    )
                )

    def _rules(self, value: Any) -> Iterator[Rule]:
        if not isinstance(value, list):
            self.add("", "allow", "write [[allow]], with two brackets")
            return
        for number, table in enumerate(value):
            where = f"allow[{number}]"
            rule: Rule = self._table(Rule, where, table)
            if isinstance(table, dict) and not (
                table.get("users") or table.get("groups")
            ):
                self.add(where, "", "the rule is for nobody: give users or groups")
            self._check_rule(where, rule)
            yield rule

    def _table(self, kind: Any, where: str, value: Any) -> Any:
        if not isinstance(value, dict):
            self.add("", where, "must be a table")
            return kind()
        values: dict[str, Any] = {}
        for key, given in value.items():
            if key not in kind._fields:
                self._unknown(where, key, kind._fields)
                continue
            try:
                values[key] = from_json(kind.__annotations__[key], given, key)
            except (Unfit, RecursionError) as error:
                must = str(error).partition(" must ")[2] or "be simpler"
                self.add(where, key, f"{_shown(given)} must {must}")
        return kind(**values)

    # Values

    def _check_rule(self, where: str, rule: Rule) -> None:
        for kind in rule.kinds:
            self._check_word(where, "kinds", kind, [str(known) for known in Kind])
        for feature in rule.features:
            self._check_word(where, "features", feature, sorted(policy.FEATURES))
        for field in rule.require:
            if field in policy.ON_BY_DEFAULT:
                said = f"{field!r} is on unless a request turns it off"
                if field in policy.FEATURES:
                    said += f", for which a rule must list the feature {field!r}"
                self.add(where, "require", said, field)
            elif field not in policy.REQUIRABLE:
                self._unknown_word(where, "require", field, sorted(policy.REQUIRABLE))
        for text in rule.vlans:
            if problem := _vlan_problem(text):
                self.add(where, "vlans", f"{text!r} {problem}", text)
        for template in rule.templates:
            try:
                if not set(template) & set("*?["):
                    names.parse(template)
            except BadName as error:
                self.add(where, "templates", str(error), template)
        for key in ("bridges", "ovs", "lower"):
            for name in getattr(rule, key):
                try:
                    if not set(name) & set("*?["):
                        names.check(name)
                except BadName as error:
                    self.add(where, key, str(error), name)
        for name in rule.netns:
            if problem := _netns_problem(name):
                self.add(where, "netns", f"{name!r} {problem}", name)
        if rule.devices is not None and rule.devices < 0:
            self.add(where, "devices", f"{rule.devices} must be 0 or more")

    def _check_limits(self, limits: Limits) -> None:
        for name, value in limits._asdict().items():
            if not value > 0 or not math.isfinite(value):
                self.add("limits", name, f"{value} must be more than 0, and finite")
        if limits.descriptors > SCM_MAX_FD:
            problem = f"{limits.descriptors} must be at most {SCM_MAX_FD}"
            self.add("limits", "descriptors", problem)

    def _check_metrics(self, metrics: MetricsConfig) -> None:
        listen = metrics.listen
        if listen is None or listen.startswith("/"):
            return
        _, colon, port = listen.rpartition(":")
        if not (colon and port.isdecimal() and int(port) < 1 << 16):
            problem = f"{listen!r} is neither an absolute path nor ADDRESS:PORT"
            self.add("metrics", "listen", problem)
        elif not metrics.everybody:
            self.add(
                "metrics",
                "listen",
                f"who reaches {listen} reads the figures of all users: give a path, or "
                "say everybody = true",
            )

    def _check_word(
        self, where: str, key: str, word: str, known: Sequence[str]
    ) -> None:
        if not any(fnmatchcase(candidate, word) for candidate in known):
            self._unknown_word(where, key, word, known)

    def _unknown_word(
        self, where: str, key: str, word: str, known: Sequence[str]
    ) -> None:
        self.add(
            where, key, f"{_shown(word)} is not known{_nearest(word, known)}", word
        )

    def _unknown(self, where: str, key: str, known: Sequence[str]) -> None:
        self.add(where, key, f"is not known{_nearest(key, known)}")

    # Places

    def add(self, where: str, key: str, problem: str, value: str | None = None) -> None:
        """Note a fault of a key of a table, or of one value of its list."""
        place = ".".join(filter(None, (where, key)))
        self.faults.append(ConfigFault(self._line(where, key, value), place, problem))

    def line_of(self, value: str) -> int | None:
        """Return the first line that has this text in quotes."""
        for number, line in enumerate(self._lines, 1):
            if f'"{value}"' in line or f"'{value}'" in line:
                return number
        return None

    def _line(self, where: str, key: str, value: str | None) -> int | None:
        """Return the line of a key, or of a value in its list, as exactly as
        possible."""
        table, _, index = where.rstrip("]").partition("[")
        start = 0
        if table:
            header = re.compile(rf"\s*\[\[?\s*{re.escape(table)}\s*\]")
            headers = [n for n, line in enumerate(self._lines) if header.match(line)]
            if len(headers) <= int(index or 0):
                return None
            start = headers[int(index or 0)]
        if not key:
            return start + 1
        wanted = re.compile(rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        for number in range(start, len(self._lines)):
            if number > start and table and self._lines[number].lstrip()[:1] == "[":
                break
            if wanted.match(self._lines[number]):
                return self._value_line(number, value) + 1
        return start + 1 if table else None

    def _value_line(self, start: int, value: str | None) -> int:
        if value is not None:
            for number in range(start, len(self._lines)):
                line = self._lines[number]
                if f'"{value}"' in line or f"'{value}'" in line:
                    return number
                if number > start and "=" in line:
                    break
        return start


def _vlan_problem(text: str) -> str | None:
    try:
        first, last = policy.vlan_range(text)
    except ValueError:
        return "is not a VLAN: give '10' or '100-200'"
    if not 1 <= first <= last <= policy.LARGEST_VLAN:
        return f"is not a range within {policy.ALL_VLANS}"
    return None


def _netns_problem(name: str) -> str | None:
    if "/" not in name:
        return None if name else "is no name of a namespace"
    if not os.path.isabs(name):
        return "is neither a name nor an absolute path"
    if set(name) & set("*?"):
        return "is a pattern of paths: a pattern stands for names, so list each path"
    plain = "/" + os.path.normpath(name).lstrip("/")  # normpath() keeps "//"
    return None if name == plain else f"must be {plain!r}"


def _nearest(word: str, known: Sequence[str]) -> str:
    similar = get_close_matches(word.lower().replace("_", "-"), known, n=1)
    similar = similar or get_close_matches(word.lower(), known, n=1)
    if similar:
        return f": did you mean {similar[0]!r}?"
    return f": these are: {', '.join(known)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# Users and groups


def resolve(loaded: Loaded) -> Loaded:
    """Look up the users and groups that the rules name. This may wait for a directory
    server."""
    users: dict[str, str] = {}
    groups: dict[str, str] = {}
    unknown: list[tuple[str, str]] = []
    for rule in loaded.config.allow:
        for name in rule.users:
            users[name] = _id_of_user(name) or ""
            if not users[name]:
                unknown.append(("user", name))
        for name in rule.groups:
            groups[name] = _id_of_group(name) or ""
            if not groups[name]:
                unknown.append(("group", name))
    rules = tuple(
        rule._replace(
            users=tuple(filter(None, (users[name] for name in rule.users))),
            groups=tuple(filter(None, (groups[name] for name in rule.groups))),
        )
        for rule in loaded.config.allow
    )
    known = tuple(
        (int(uid), name)
        for name, uid in users.items()
        if uid.isdecimal() and not name.isdecimal()
    )
    return loaded._replace(
        rules=rules, names=known, unknown=tuple(dict.fromkeys(unknown))
    )


def _id_of_user(name: str) -> str | None:
    if name == ANYBODY:
        return name
    try:
        return _id(name) if _is_number(name) else str(getpwnam(name).pw_uid)
    except (KeyError, ValueError, OSError):
        return None


def _id_of_group(name: str) -> str | None:
    try:
        return _id(name) if _is_number(name) else str(getgrnam(name).gr_gid)
    except (KeyError, ValueError, OSError):
        return None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _id(name: str) -> str | None:
    """Return a user or group id as the rules have it; None if no user can have it."""
    return str(int(name)) if int(name) <= LAST_ID else None


def caller_named(name: str) -> Caller:
    """Return the caller for a user's name or id. Raises RequestError if there is no
    such user.

    A user may have an id alone, as in a container: then no group is known.
    """
    uid = None
    try:
        if _is_number(name):
            uid = int(_id(name) or "none")
        entry = getpwnam(name) if uid is None else getpwuid(uid)
    except KeyError:
        if uid is None:
            raise RequestError(f"there is no user {name!r} on this host") from None
        return Caller(uid, ())
    except (ValueError, OverflowError):
        raise RequestError(f"no user can be called {name!r}") from None
    gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Caller(entry.pw_uid, tuple(gids), user=entry.pw_name)
