# SPDX-License-Identifier: Apache-2.0
"""A table of nftables that one ledger has to itself.

Its rules are few and the same for all leases: they stand in a file. What one lease
has are elements of its sets: a key begins with the device's ifindex, and the comment
is the lease's stamp. One of them, in the set `leases`, stands for all the others. So
whoever could delete it and those that a lease should have has left none behind, and
need not look at the thousands of other leases to know.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from errno import EBADMSG
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

from tapster.backends.backend import Observed, Stray
from tapster.errors import HostError, KernelError
from tapster.kernel.port import Namespace
from tapster.model import Lease, State, parse_stamp, stamp

CHAINS = "chains bridge"
"""What nft lists at once. For "tables bridge" it reads every rule there is."""


class Limit(NamedTuple):
    """Lets an element match only what is too much."""

    rate: int
    """Bytes a second."""
    burst: int
    """Bytes, beside those of one second."""


class Element(NamedTuple):
    """An element of a set, of whatever device."""

    set: str
    key: tuple[str, ...] = ()
    """What follows the ifindex: numbers in hexadecimal, IPv4 addresses as usual."""
    limit: Limit | None = None

    def __str__(self) -> str:
        return " ".join([self.set, *self.key, *map(str, self.limit or ())])


class _Found(NamedTuple):
    """An element as it was found."""

    element: Element
    device: str
    """The number of a device, or whatever somebody has put in its place."""
    lease: str
    """The id in its comment; "" if that is not of our making."""

    def belongs_to(self, lease: Lease) -> bool:
        return self.device == str(lease.ifindex) or self.lease == lease.id


class _Seen(NamedTuple):
    """The table as it was found."""

    wrong: str | None
    """How it is not as we make it."""
    elements: Sequence[_Found]


class Table:
    """The table of a backend, in every network namespace that needs it."""

    def __init__(self, ledger: str, backend: str) -> None:
        self._ledger = ledger
        self._plane = backend
        self.name = f"tapster_{ledger}_{backend}"

    def check(self, namespace: Namespace) -> None:
        """Whether nftables can be had. Raises HostError."""
        namespace.nft("")

    def put(
        self, namespace: Namespace, lease: Lease, elements: Iterable[Element]
    ) -> None:
        """Let a lease have these elements, and no others, in one transaction."""
        wanted = _with_witness(elements)
        new = [self._create(lease, one) for one in wanted]
        guesses = [[*self._rules, *new]]
        if lease.state is State.RESERVED:
            guesses.insert(0, new)  # a new device; and the table is there
        for guess in guesses:
            try:
                namespace.nft("\n".join(guess))
                return
            except HostError:  # then not even a part of it was done
                continue
        old = [
            self._delete(one)
            for one in self._look(namespace).elements
            if one.belongs_to(lease)
        ]
        namespace.nft("\n".join([*self._rules, *old, *new]))

    def drop(
        self, namespace: Namespace, lease: Lease, elements: Iterable[Element]
    ) -> None:
        """Let a lease have none. If all is well it has these."""
        if expected := list(elements):
            commands = [
                self._delete(_Found(one, str(lease.ifindex), lease.id))
                for one in _with_witness(expected)
            ]
            try:
                namespace.nft("\n".join(commands))
                return
            except HostError:  # then not even a part of it was done
                pass
        found = self._look(namespace).elements
        self._drop(namespace, [one for one in found if one.belongs_to(lease)])

    def observe(
        self,
        namespace: Namespace,
        leases: Sequence[Lease],
        wanted: Callable[[Lease], Iterable[Element]],
    ) -> Observed:
        """Compare the table with what these leases should have."""
        try:
            seen = self._look(namespace, mend=False)
        except HostError as error:
            if not any(self._plane in lease.backends for lease in leases):
                return Observed({})  # who cannot look has put up nothing either
            if not _unreadable(error):
                raise
            seen = _Seen("cannot be read", [])
        ours = {
            str(lease.ifindex): lease.id
            for lease in leases
            if self._plane in lease.backends
        }
        there: dict[str, set[Element]] = {lease.id: set() for lease in leases}
        strays: dict[str, int] = {}
        for one in seen.elements:
            owners = {ours.get(one.device, ""), one.lease} & there.keys()
            for owner in owners:
                there[owner].add(one.element)
            if not owners:
                strays[one.lease] = strays.get(one.lease, 0) + 1
        wrong: dict[str, str] = {}
        for lease in leases:
            if lease.state is not State.RESERVED:  # that is still being wired
                elements = list(wanted(lease)) if lease.state is State.ACTIVE else []
                if said := self._differs(seen, there[lease.id], elements):
                    wrong[lease.id] = said
        what = f"elements of nftables table {self.name}"
        return Observed(
            wrong,
            tuple(Stray(lease, f"{count} {what}") for lease, count in strays.items()),
        )

    def _differs(
        self, seen: _Seen, there: set[Element], wanted: Sequence[Element]
    ) -> str:
        right = set(_with_witness(wanted)) if wanted else set()
        said = [f"nftables table {self.name} {seen.wrong}"] * bool(
            wanted and seen.wrong
        )
        said += [f"lacks {one}" for one in sorted(right - there, key=str)]
        said += [f"has {one}" for one in sorted(there - right, key=str)]
        return "; ".join(said)

    def remove(self, namespace: Namespace, stray: Stray) -> None:
        """Delete the elements that carry the stamp of a stray."""
        found = self._look(namespace).elements
        self._drop(namespace, [one for one in found if one.lease == stray.lease])

    def _look(self, namespace: Namespace, *, mend: bool = True) -> _Seen:
        """How the table is. One that cannot be read is made anew first, if `mend`."""
        chains = namespace.nft_list(CHAINS)
        if not any(one.get("chain", {}).get("table") == self.name for one in chains):
            return _Seen("is gone", [])
        try:
            objects = namespace.nft_list(f"table bridge {self.name}")
        except HostError as error:
            if not mend or not _unreadable(error):
                raise
            namespace.nft("\n".join(self._rules))
            objects = namespace.nft_list(f"table bridge {self.name}")
        found = [
            self._found(one["set"]["name"], element)
            for one in objects
            if "set" in one
            for element in one["set"].get("elem", [])
        ]
        return _Seen(self._wrong(objects), found)

    def _wrong(self, objects: Sequence[dict[str, Any]]) -> str | None:
        """How the rules are not ours; each is known by its comment."""
        there: dict[str, list[str]] = {}
        for one in objects:
            if rule := one.get("rule"):
                there.setdefault(rule["chain"], []).append(rule.get("comment"))
            if one.get("table", {}).get("flags"):
                return "is dormant"
            if one.get("chain", {}).get("policy", "accept") != "accept":
                return "has another policy"
        chains = re.findall(r"chain (\w+) {(.*?)\n\t}", self._text, re.DOTALL)
        ours = {chain: re.findall(r'comment "(.*)"', body) for chain, body in chains}
        return None if there == ours else "has other rules"

    def _found(self, set: str, element: Any) -> _Found:
        """An element from its JSON."""
        body = element.get("elem", {}) if isinstance(element, dict) else {}
        value = body.get("val", element)
        parts = value["concat"] if isinstance(value, dict) else [value]
        mark = parse_stamp(body.get("comment", ""))
        return _Found(
            Element(set, tuple(map(_part, parts[1:])), _limit(body.get("limit"))),
            str(parts[0]),
            mark.lease if mark and mark.ledger == self._ledger else "",
        )

    def _drop(self, namespace: Namespace, found: Sequence[_Found]) -> None:
        if found:
            namespace.nft("\n".join(map(self._delete, found)))

    def _create(self, lease: Lease, one: Element) -> str:
        limit = one.limit and (
            f"limit rate over {one.limit.rate} bytes/second "
            f"burst {one.limit.burst} bytes "
        )
        comment = f'comment "{stamp(self._ledger, lease.id)}"'
        where = f"bridge {self.name} {one.set}"
        key = " . ".join([str(lease.ifindex), *one.key])
        return f"create element {where} {{ {key} {limit or ''}{comment} }}"

    def _delete(self, one: _Found) -> str:
        key = " . ".join([one.device, *one.element.key])
        return f"delete element bridge {self.name} {one.element.set} {{ {key} }}"

    @cached_property
    def _rules(self) -> list[str]:
        """Commands that make the table and its rules, whatever there is of them."""
        made = f"add table bridge {self.name}", f"flush table bridge {self.name}"
        return [*made, self._text]

    @cached_property
    def _text(self) -> str:
        path = os.path.join(os.path.dirname(__file__), f"{self._plane}.nft")
        with open(path) as file:
            text = file.read()
        digest = f"{crc32(text.encode()):08x}"
        return text.replace("TABLE", self.name).replace("DIGEST", digest)


def _unreadable(error: HostError) -> bool:
    return isinstance(error, KernelError) and error.errno == EBADMSG


def _with_witness(elements: Iterable[Element]) -> list[Element]:
    """The elements, each once, and the one that stands for just these."""
    each = list(dict.fromkeys(elements))
    digest = crc32(repr(sorted(each)).encode())
    return [*each, Element("leases", (f"{digest:#x}",))]


def _part(part: str | int) -> str:
    """A part of a key in the form that Element has it."""
    if isinstance(part, str) and not part.startswith("0x"):
        return part
    return f"{part if isinstance(part, int) else int(part, 16):#x}"


def _limit(shown: dict[str, Any] | None) -> Limit | None:
    if shown is None:
        return None
    if (shown["per"], shown.get("inv")) != ("second", True):
        return Limit(0, 0)
    rate, burst = (
        shown[field] << 10 * _UNITS.index(shown.get(f"{field}_unit", "bytes"))
        for field in ("rate", "burst")
    )
    return Limit(rate, burst)


_UNITS = ("bytes", "kbytes", "mbytes", "gbytes")
