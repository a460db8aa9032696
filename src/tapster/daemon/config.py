# SPDX-License-Identifier: Apache-2.0
"""The daemon's file, /etc/tapster/tapster.toml, and what else it reads for policy."""

import os
import tomllib
from grp import getgrgid
from pwd import getpwnam, getpwuid

from tapster.daemon import policy
from tapster.daemon.policy import Caller, Rule
from tapster.errors import RequestError
from tapster.integrate import acl
from tapster.integrate.acl import Acl
from tapster.kernel.unix import Peer
from tapster.light import NamedTuple
from tapster.rpc.varlink import Unfit, from_json

PATH = "/etc/tapster/tapster.toml"


class Limits(NamedTuple):
    """`[limits]`: what one user, or all together, may take of the daemon."""

    devices: int = 16
    """Devices a user may have at a time, where no rule says another number."""
    waiting: int = 64
    """Devices of a user that may be in FIN WAIT."""
    requests: int = 100
    """Requests a user may send a second; so many more may come at once."""
    connections: int = 1024
    connections_per_user: int = 64
    message: int = 65536
    """Bytes of a request."""
    descriptors: int = 64
    """Descriptors in one answer."""
    idle: float = 300.0
    """Seconds without a request after which a connection is closed."""
    stall: float = 10.0
    """Seconds that a request may take to come, or an answer to be fetched."""


class Qemu(NamedTuple):
    """`[qemu]`: a file as qemu-bridge-helper reads it. What it allows, every user may
    have through the helper."""

    bridge_conf: str | None = None


class Watching(NamedTuple):
    """`[watch]`: whether a device that others took down or off its bridge is put
    back, or only reported."""

    mend: bool = False


class Metrics(NamedTuple):
    """`[metrics]`: where Prometheus asks: a path, or ADDRESS:PORT."""

    listen: str | None = None


class Config(NamedTuple):
    """The whole file."""

    limits: Limits = Limits()
    allow: tuple[Rule, ...] = ()
    qemu: Qemu = Qemu()
    watch: Watching = Watching()
    metrics: Metrics = Metrics()


class Loaded(NamedTuple):
    """The file, and the one it names."""

    config: Config = Config()
    listed: Acl = ()

    def rules(self, bridge: str | None) -> tuple[Rule, ...]:
        """The rules for what qemu-bridge-helper asks: a tap on a bridge, no more."""
        rules = self.config.allow
        if bridge is not None and acl.permits(self.listed, bridge):
            rules += (Rule(users=("*",), bridges=(bridge,)),)
        return rules


def load(path: str) -> Loaded:
    """Read the file; without it, nobody but root may do anything.

    Raises RequestError, which says what is wrong, and where.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return Loaded()
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {error}") from None
    try:
        config: Config = from_json(Config, content)
    except Unfit as error:
        raise RequestError(f"{path}: {error}") from None
    for number, rule in enumerate(config.allow):
        if said := policy.complaint(rule):
            raise RequestError(f"{path}: allow[{number}]: {said}")
    for name, value in config.limits._asdict().items():
        if value <= 0:
            raise RequestError(f"{path}: limits.{name} is {value}: give more than 0")
    try:
        listed = acl.read(config.qemu.bridge_conf) if config.qemu.bridge_conf else ()
    except OSError as error:
        raise RequestError(f"{config.qemu.bridge_conf}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(str(error)) from None
    return Loaded(config, listed)


def caller_of(peer: Peer) -> Caller:
    """The caller with the names of their ids, as far as these have names."""
    return Caller(
        peer.uid,
        peer.gids,
        _user_name(peer.uid),
        tuple(name for gid in peer.gids if (name := _group_name(gid))),
        peer.pid,
    )


def caller_named(name: str) -> Caller:
    """The caller that a user will be. Raises RequestError if there is none."""
    try:
        entry = getpwuid(int(name)) if name.isdecimal() else getpwnam(name)
    except KeyError:
        raise RequestError(f"there is no user {name!r}") from None
    gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return caller_of(Peer(0, entry.pw_uid, tuple(gids)))


def _user_name(uid: int) -> str:
    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str | None:
    try:
        return getgrgid(gid).gr_name
    except KeyError:
        return None
