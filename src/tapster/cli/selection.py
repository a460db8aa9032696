# SPDX-License-Identifier: Apache-2.0
"""Choose leases by name, id, owner, bridge, state, namespace or label.

`ls`, `rm`, `show` and `reap` share these options.
"""

import argparse
from collections.abc import Iterable, Sequence

from tapster.cli import output
from tapster.errors import NoSuchLease
from tapster.light import TYPE_CHECKING
from tapster.model import Lease, State

if TYPE_CHECKING:
    from tapster.api import Manager

FILTERS = ("owner", "bridge", "state", "in_netns", "label")


def declare(parser: argparse.ArgumentParser) -> None:
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


def is_given(options: argparse.Namespace) -> bool:
    """Tell whether the options choose among the leases at all."""
    return bool(options.lease) or is_filtered(options)


def is_filtered(options: argparse.Namespace) -> bool:
    """Tell whether an option other than a name was given."""
    return any(getattr(options, name) is not None for name in FILTERS)


class Chosen:
    """The leases that options choose, and the names that chose none."""

    def __init__(self, leases: list[Lease], missing: list[NoSuchLease]) -> None:
        self.leases = leases
        self.missing = missing


def choose(options: argparse.Namespace, host: "Manager", *, all: bool = True) -> Chosen:
    """Return the leases that the options choose, in the order of their creation.

    Without `all`, a lease in FIN WAIT is chosen only by its exact name or id, or by
    `--state`. Without filters a plain name stands for the lease in this network
    namespace, else for the one lease of that name elsewhere.
    """
    if (
        options.lease
        and not is_filtered(options)
        and not any(map(is_wild, options.lease))
    ):
        return _find_each(options.lease, host)
    leases = host.leases(all=True)
    filtered = [lease for lease in leases if _fits(lease, options)]
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
                NoSuchLease(f"no lease chosen has the name or id {wanted!r}")
            )
    return Chosen([lease for lease in leases if lease.id in ids], missing)


def _find_each(names: Sequence[str], host: "Manager") -> Chosen:
    """Find leases by name or id, without a list of all: for a VM's start and stop."""
    found: dict[str, Lease] = {}
    missing: list[NoSuchLease] = []
    for name in names:
        try:
            lease = host.find(name)
            found[lease.id] = lease
        except NoSuchLease as error:
            near = hint(name, {lease.name for lease in host.leases()})
            missing.append(NoSuchLease(f"{error}{near}"))
    return Chosen(list(found.values()), missing)


def _fits(lease: Lease, options: argparse.Namespace) -> bool:
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
    """Tell whether text fits a pattern of the shell."""
    if not is_wild(pattern):
        return text == pattern
    from fnmatch import fnmatchcase

    return fnmatchcase(text, pattern)


def is_wild(text: str) -> bool:
    """Tell whether text is a pattern."""
    return any(char in text for char in "*?[")


def hint(wanted: str, known: Iterable[str]) -> str:
    """Return a question about the nearest known word, or nothing."""
    from difflib import get_close_matches  # slow to import: for errors only

    near = get_close_matches(wanted, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
