# SPDX-License-Identifier: Apache-2.0
"""Choose leases by name, id, owner, bridge, state, namespace or label.

`ls`, `rm`, `show`, `reap` and `watch` share these options; `set`, `take` and `open`
choose one lease by its name or id. To change a lease that has an owner, a name alone
is not enough: it may be another VM's by now.
"""

from tapster.cli import output, terminal
from tapster.cli.options import Options
from tapster.cli.values import given_text
from tapster.errors import NoSuchLease, OwnerRequired, RequestError, TapsterError
from tapster.light import TYPE_CHECKING, Iterable, Sequence
from tapster.model import HistoryQuery, Lease, State

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

FILTERS = ("owner", "bridge", "state", "in_netns", "label")


def declare(parser: "Parser") -> None:
    """Add the options to `parser`."""
    parser.add_argument(
        "lease",
        nargs="*",
        metavar="NAME|ID",
        help="a name, a pattern of names such as 'vnet*', or a lease id",
    )
    parser.add_argument("--owner", metavar="TEXT", help="of this owner (a pattern)")
    parser.add_argument("--bridge", metavar="BR", help="on this bridge or lower device")
    parser.add_argument(
        "--state", choices=[str(state) for state in State], help="in this state"
    )
    parser.add_argument(
        "--netns", metavar="NS", dest="in_netns", help="in this network namespace"
    )
    parser.add_argument(
        "--label",
        metavar="KEY[=VALUE]",
        action="append",
        help="with this label; may be given several times",
    )


def declare_one(parser: "Parser") -> None:
    """Add the options that choose the one lease that a verb changes."""
    parser.add_argument("lease", metavar="NAME|ID", help="which lease")
    parser.add_argument(
        "--owner", metavar="TEXT", help="the owner of the lease, if it has one"
    )
    parser.add_argument(
        "--netns",
        metavar="NS",
        type=given_text,
        help="look for the name in this network namespace first",
    )


def one(options: Options, host: "AnyHost") -> Lease:
    """Return the lease that the options of `declare_one` choose, to be changed.

    Raises NoSuchLease and OwnerRequired.
    """
    try:
        owner = options.owner
        pattern = owner is not None and is_wild(owner)
        lease = host.look_up(options.lease, owner=None if pattern else owner)
    except NoSuchLease as error:
        raise _with_hint(error, options.lease, host) from None
    if pattern and not like(lease.owner, owner):
        raise NoSuchLease(
            f"{options.lease!r} belongs to owner {lease.owner!r}, not to {owner!r}",
            reference=options.lease,
        )
    for refusal in refusals(options, [lease]).values():
        raise refusal
    return lease


def refusals(options: Options, leases: Iterable[Lease]) -> dict[str, OwnerRequired]:
    """Return why leases may not be changed, by id: each has an owner, and only a name
    was given."""
    if options.owner is not None or not options.lease:
        return {}
    names = [options.lease] if isinstance(options.lease, str) else options.lease
    return {
        lease.id: OwnerRequired(
            f"{lease.name!r} belongs to owner {lease.owner!r}; if that is meant: "
            f"{_naming_the_owner(options, names, lease)}",
            name=lease.name,
            lease=lease.id,
            owner=lease.owner,
        )
        for lease in leases
        if lease.owner and lease.id not in names
    }


def _naming_the_owner(options: Options, names: Iterable[str], lease: Lease) -> str:
    """Return the command that was typed, for one lease alone and with its owner."""
    from shlex import join  # rarely needed

    before, after = options.typed
    rest = list(after)
    for name in names:
        rest.remove(name)
    owner = f"--owner={lease.owner}" if lease.owner.startswith("-") else ""
    owned = [owner] if owner else ["--owner", lease.owner]
    return join(["tapster", *before, *owned, lease.name, *rest])


def report(errors: Iterable[TapsterError]) -> bool:
    """Print errors; tell whether there was one."""
    failed = False
    for error in errors:
        failed = True
        terminal.complain(error)
    return failed


def is_given(options: Options) -> bool:
    """Tell whether the options choose among the leases at all."""
    return bool(options.lease) or is_filtered(options)


def refuse_empty(options: Options) -> None:
    """Refuse an empty filter: a variable of a script may be unset.

    As a filter it would choose the leases that have no owner, or those of this network
    namespace. Raises RequestError.
    """
    for flag, given in (
        ("owner", options.owner),
        ("bridge", options.bridge),
        ("netns", options.in_netns),
        *(("label", label) for label in options.label or ()),
    ):
        if given == "":
            raise RequestError(
                f"--{flag} is empty, so it is not clear which leases are meant; "
                "name them, or see: tapster ls"
            )


def is_filtered(options: Options, *filters: str) -> bool:
    """Tell whether one of these options was given, by default any but a name."""
    return any(getattr(options, name) is not None for name in filters or FILTERS)


class Chosen:
    """The leases that options choose, and the names that chose none."""

    def __init__(self, leases: list[Lease], missing: list[NoSuchLease]) -> None:
        self.leases = leases
        self.missing = missing


def choose(options: Options, host: "AnyHost", *, all: bool = True) -> Chosen:
    """Return the leases that the options choose, in the order of their creation.

    Without `all`, a lease in FIN WAIT is chosen only by its exact name or id, or by
    `--state`. Without filters a plain name stands for the lease in this network
    namespace, else for the one lease of that name elsewhere.
    """
    plain = not any(map(is_wild, [*options.lease, options.owner or ""]))
    if options.lease and plain and not is_filtered(options, *FILTERS[1:]):
        return _find_each(options.lease, options.owner, host)
    leases = host.leases(all=True)
    filtered = [lease for lease in leases if fits(lease, options)]
    if _is_called_so(options.owner, host):
        filtered = [lease for lease in filtered if lease.owner == options.owner]
    waiting = all or options.state == State.FIN_WAIT
    candidates = [
        lease for lease in filtered if waiting or lease.state is not State.FIN_WAIT
    ]
    if not options.lease:
        return Chosen(candidates, [])
    ids: set[str] = set()
    missing: list[NoSuchLease] = []
    for wanted in options.lease:
        if is_wild(wanted):
            ids.update(lease.id for lease in candidates if like(lease.name, wanted))
            continue
        named = {lease.id for lease in filtered if wanted in (lease.name, lease.id)}
        ids |= named
        if not named:
            missing.append(
                NoSuchLease(
                    f"no lease chosen has the name or id {wanted!r}", reference=wanted
                )
            )
    return Chosen([lease for lease in leases if lease.id in ids], missing)


def _is_called_so(owner: str | None, host: "AnyHost") -> bool:
    """Tell whether an owner is, or was, called like a pattern, which others may fit."""
    if owner is None or not is_wild(owner):
        return False
    return bool(host.history(HistoryQuery(owner=owner, limit=1)))


def _find_each(names: Sequence[str], owner: str | None, host: "AnyHost") -> Chosen:
    """Find leases by name or id, without a list of all: for a VM's start and stop."""
    found: dict[str, Lease] = {}
    missing: list[NoSuchLease] = []
    for name in names:
        try:
            lease = host.look_up(name, owner=owner)
            found[lease.id] = lease
        except NoSuchLease as error:
            missing.append(_with_hint(error, name, host))
    return Chosen(list(found.values()), missing)


def _with_hint(error: NoSuchLease, name: str, host: "AnyHost") -> NoSuchLease:
    """Return an error with the nearest name, unless a lease has the name."""
    leases = host.leases()
    names = {lease.name for lease in leases}
    if name in names:
        return error
    if not name:
        near = ": it is empty"
    elif any(lease.owner == name for lease in leases):
        near = f"; an owner is called so: give --owner {name}"
    else:
        from tapster.cli.hint import hint  # rarely needed

        near = hint(name, names)
    return NoSuchLease(f"{error}{near}", reference=name)


def fits(lease: Lease, options: Options) -> bool:
    """Tell whether a lease fits the filters, whatever its name is."""
    on = (lease.wiring.bridge, lease.wiring.ovs, lease.lower)
    netns = (lease.netns.path, output.netns_name(lease.netns.path))
    return (
        (options.owner is None or like(lease.owner, options.owner))
        and (options.bridge is None or options.bridge in on)
        and (options.state is None or lease.state == options.state)
        and (options.in_netns is None or options.in_netns in netns)
        and all(_has(lease, label) for label in options.label or ())
    )


def _has(lease: Lease, label: str) -> bool:
    key, equals, value = label.partition("=")
    labels = dict(lease.labels)
    return (
        like(labels[key], value)
        if equals and key in labels
        else (not equals and key in labels)
    )


def like(text: str, pattern: str) -> bool:
    """Tell whether text fits a pattern of the shell, or is the same."""
    if text == pattern or not is_wild(pattern):
        return text == pattern
    from fnmatch import fnmatchcase

    return fnmatchcase(text, pattern)


def is_wild(text: str) -> bool:
    """Tell whether text is a pattern."""
    return any(char in text for char in "*?[")
