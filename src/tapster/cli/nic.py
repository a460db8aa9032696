# SPDX-License-Identifier: Apache-2.0
"""The options for one network device, shared by `add` and `run`."""

from math import inf

from tapster import model
from tapster.cli import values, wire
from tapster.cli.defaults import Defaults
from tapster.cli.options import YES_OR_NO, Options
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING, Any, Iterable
from tapster.model import (
    DEFAULT_FIN_WAIT,
    DEFAULT_TEMPLATE,
    Kind,
    Macvtap,
    Mode,
    Naming,
    Spec,
    Tap,
    Vm,
    Wiring,
)

if TYPE_CHECKING:
    from tapster.cli.parser import Parser


PLACES = ("bridge", "ovs", "redirect")
"""The options that say what a tap is connected to."""


def declare(parser: "Parser") -> None:
    """Add the options to `parser`."""
    option = parser.add_argument
    option("--kind", choices=_texts(Kind), help="default: tap, or macvtap with --link")
    option("--link", metavar="LOWER", help="the device that a macvtap sits on")
    option(
        "--link-netns",
        metavar="NS",
        type=values.given_text,
        help="the namespace of LOWER, if it is another",
    )
    option("--mode", choices=_texts(Mode), help="mode of the macvtap; default: bridge")
    option(
        "--name",
        metavar="TEMPLATE",
        default=DEFAULT_TEMPLATE,
        help="a template or a plain name; default: vnet%%d",
    )
    option(
        "--naming",
        choices=_texts(Naming),
        help="how the number is picked; default: lowest",
    )
    option(
        "--key",
        metavar="K",
        type=values.given_text,
        help="the key from which --naming stable derives the number",
    )
    option(
        "--owner",
        metavar="TEXT",
        type=values.given_text,
        help="the owner, in free text",
    )
    option(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a label, for people and programs; may be given several times",
    )
    option(
        "--mac", type=values.given_text, help="the guest's MAC; default: a random one"
    )
    option(
        "--vnet-hdr",
        action=YES_OR_NO,
        default=True,
        help="let the guest leave checksums and segmentation to the host",
    )
    option(
        "--queues",
        type=values.number,
        metavar="N",
        default=1,
        help="how many queues the device has; default: 1",
    )
    option(
        "--user",
        metavar="U",
        help="the user who may open the tap by name; default: the caller",
    )
    option("--group", metavar="G", help="the group that may open the tap by name")
    option(
        "--fin-wait",
        type=values.duration,
        metavar="TIME",
        help=f"how long the name waits after release; default: {DEFAULT_FIN_WAIT:g}s",
    )
    option(
        "--reclaim",
        action="store_true",
        help="take the name from a lease of the same owner that is in FIN WAIT",
    )
    option("--vm", metavar="ID", help="the VM, as all hosts of the fleet call it")
    option(
        "--incoming",
        metavar="EPOCH",
        help="the VM still runs on another host, which printed EPOCH: see tapster "
        "fleet epoch",
    )
    option(
        "--takeover",
        action="store_true",
        help="start the VM although a host that does not answer may still run it",
    )
    wire.declare(parser)


def labels(options: Options) -> tuple[tuple[str, str], ...]:
    """Return the labels that the options give. Raises RequestError."""
    return tuple(map(label, options.label))


def label(text: str) -> tuple[str, str]:
    """Return a label's key and value. Raises RequestError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RequestError(f"label {text!r} is not KEY=VALUE")
    return key, value


def _texts(values: Iterable[str]) -> list[str]:
    """Return the values of an enumeration as plain text, for messages."""
    return [str(value) for value in values]


def declare_wait(parser: "Parser", *, default: float) -> None:
    """Add the option that waits for a name."""
    parser.add_argument(
        "--wait",
        type=values.duration,
        nargs="?",
        const=inf,
        default=default,
        metavar="TIME",
        help="while the name is in FIN WAIT, wait for at most TIME",
    )


def spec(options: Options, outer: Options | None = None) -> Spec:
    """Return the request that the options make. Raises RequestError.

    `outer` has the options that `run` gives to every device. An empty value of a --nic
    drops the value that is given there.
    """
    defaults = Defaults()
    if options.link == "":
        raise RequestError("--link is empty: name the lower device of a macvtap")
    kind = options.kind or (Kind.MACVTAP if options.link else Kind.TAP)
    wiring = wire.changes(options)
    _refuse_empty(options, outer, defaults)
    key = None if options.key is None else f"{options.name} {options.key}"
    mac = options.mac or defaults.mac(key)
    fin_wait = defaults.fin_wait if options.fin_wait is None else options.fin_wait
    naming = options.naming or (defaults.naming if "%d" in options.name else None)
    common: dict[str, Any] = {
        "name": options.name,
        "naming": Naming(naming or Naming.LOWEST),
        "key": options.key,
        "owner": options.owner or "",
        "labels": labels(options),
        "mac": mac,
        "queues": options.queues,
        "vnet_hdr": options.vnet_hdr,
        "fin_wait": fin_wait,
        "reclaim": options.reclaim,
        "vm": _vm(options),
    }
    if kind == Kind.TAP:
        _refuse(options, "link", "link_netns", "mode", kind=kind)
        if not wiring.keys() & {"ovs", "redirect"}:
            wiring.setdefault("bridge", defaults.bridge)
        uid, gid = _uid(options.user), _gid(options.group)
        return Tap(uid=uid, gid=gid, **common, **wiring)
    _refuse(options, "user", "group", kind=kind)
    model.check_macvtap_wiring(Wiring(**wiring))
    if not options.link:
        raise RequestError("a macvtap needs a lower device: give --link")
    return Macvtap(
        options.link,
        mode=Mode(options.mode or Mode.BRIDGE),
        mtu=wiring.get("mtu"),
        lower_netns=options.link_netns,
        **common,
    )


def _refuse_empty(options: Options, outer: Options | None, defaults: Defaults) -> None:
    """Refuse an empty value that drops none: a variable of a script may be unset.

    The VM would have no network, or no filter, or be in all VLANs.
    """
    for option in wire.empty(options):
        if option in PLACES:
            if defaults.bridge is not None:
                continue
            remedy = "leave it out for a tap that is on no bridge"
        else:
            remedy = "give a value, or leave the option out"
        if outer is None or not getattr(outer, option, None):
            raise RequestError(f"--{option.replace('_', '-')} is empty: {remedy}")


def _vm(options: Options) -> Vm | None:
    if options.vm is not None:
        return Vm(options.vm, options.incoming, options.takeover)
    if options.incoming is not None or options.takeover:
        raise RequestError("--incoming and --takeover need --vm")
    return None


def _refuse(options: Options, *unfit: str, kind: str) -> None:
    for option in unfit:
        if getattr(options, option):
            flag = option.replace("_", "-")
            raise RequestError(f"--{flag} does not go with a {kind}")


def _uid(user: str | None) -> int | None:
    if user is None or user.isdecimal():
        return None if user is None else int(user)
    from pwd import getpwnam

    try:
        return getpwnam(user).pw_uid
    except KeyError:
        raise RequestError(f"there is no user {user!r} on this host") from None


def _gid(group: str | None) -> int | None:
    if group is None or group.isdecimal():
        return None if group is None else int(group)
    from grp import getgrnam

    try:
        return getgrnam(group).gr_gid
    except KeyError:
        raise RequestError(f"there is no group {group!r} on this host") from None
