# SPDX-License-Identifier: Apache-2.0
"""A backend that keeps its state in a table of nftables.

Each ledger has one table for each purpose. The table's rules are few and the same for
all leases; they are in a file. A lease adds elements to the table's sets: the key of an
element begins with the device's ifindex, and its comment is the lease's stamp.

Each lease also has one witness element in the set `leases`. Its key is a digest of the
lease's other elements. If the kernel deletes the witness and the expected elements in
one transaction, the lease had no other elements, so the table need not be listed, which
is slow with thousands of leases.
"""

import os
from errno import EBADMSG
from zlib import crc32

from tapster.backends.backend import Leftover, Observation
from tapster.errors import HostError, KernelError, NftRefused
from tapster.kernel.port import Namespace, NftRule
from tapster.light import (
    Any,
    Callable,
    Iterable,
    NamedTuple,
    Sequence,
    cached_property,
    suppress,
)
from tapster.model import Lease, State, Wiring, parse_stamp, stamp

CHAINS = "chains bridge"
"""What nft is asked to list: this list is quick. For "tables bridge" nft reads every
rule."""


ATTEMPTS = 5
"""How often to list a table and change it, if nft refuses the change."""


class Limit(NamedTuple):
    """The rate of an element. The element matches only what exceeds the rate."""

    rate: int
    """Bytes or packets a second."""
    burst: int
    """Bytes in addition to those of one second; or packets."""
    unit: str = "bytes"


class Element(NamedTuple):
    """An element of a set, without the device that it is for."""

    set: str
    key: tuple[str, ...] = ()
    """What follows the ifindex: numbers in hexadecimal, IPv4 addresses as usual."""
    limit: Limit | None = None

    def __str__(self) -> str:
        return " ".join([self.set, *self.key, *map(str, self.limit or ())])


class Purpose(NamedTuple):
    """What one kind of table is for."""

    name: str
    """The backend's name; the rules are in the file NAME.nft."""
    concerns: Callable[[Wiring], bool]
    check: Callable[[Wiring], None]
    """Check a wiring that concerns the backend. Raises RequestError."""
    elements: Callable[[Lease], Iterable[Element]]
    """Derive the elements that a lease's wiring asks for."""


class _OwnedElement(NamedTuple):
    """An element with its device and its lease, as nft lists it."""

    element: Element
    device: str
    """The device's ifindex, or whatever somebody has put in its place."""
    lease: str
    """The lease id in the comment; "" if the comment is not this ledger's stamp."""

    def belongs_to(self, lease: Lease) -> bool:
        return self.device == str(lease.ifindex) or self.lease == lease.id


class _Listing(NamedTuple):
    """The table as nft lists it."""

    problem: str | None
    """How the table differs from the one that this class makes."""
    elements: Sequence[_OwnedElement]
    gone: bool = False


_GONE = _Listing("is gone", [], gone=True)


class TableBackend:
    """One ledger's table for one purpose, in every network namespace that needs it."""

    def __init__(
        self,
        ledger: str,
        purpose: Purpose,
        leases: Callable[[], Iterable[Lease]] = tuple,
    ) -> None:
        """`leases` lists the ledger's leases. It is called if the table is gone."""
        self.name = purpose.name
        self.table = f"tapster_{ledger}_{purpose.name}"
        self._ledger = ledger
        self._purpose = purpose
        self._leases = leases
        self._reference: list[str] | None = None

    def concerns(self, wiring: Wiring) -> bool:
        return self._purpose.concerns(wiring)

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        self._purpose.check(wiring)
        namespace.nft("")

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        """Replace the lease's elements by those it should have, in one transaction."""
        if lease.state is State.RESERVED:
            # A new device has no elements yet. If the table and its rules exist, this
            # is enough. A flush of the table leaves its sets, and elements without
            # rules filter nothing.
            try:
                namespace.nft("\n".join(map(self._create, self._elements(lease))))
                if namespace.nft_rules(self.table) == self._expected_rules:
                    return
            except NftRefused:
                pass
        self.restore(namespace, [lease])

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Replace the leases' elements by those they should have, in one transaction.

        If somebody has deleted the table, make it whole: with the elements of all
        active leases, which would otherwise not be filtered without anybody seeing it.
        """
        whole = False
        for _ in range(ATTEMPTS - 1):
            # Another process may do the same after the table was listed. Then nft
            # refuses to create an element twice, and does none of the commands.
            with suppress(NftRefused):
                self._change(namespace, leases, whole=whole)
                if namespace.nft_rules(self.table) == self._expected_rules:
                    break
            whole = True
        else:
            self._change(namespace, leases, whole=True)
        return frozenset(lease.id for lease in leases)

    def _change(
        self, namespace: Namespace, leases: Sequence[Lease], *, whole: bool
    ) -> None:
        """Make the leases' elements as they should be, in one transaction.

        Rules and elements that are right are left alone, unless `whole` replaces the
        rules. While the kernel replaces one, for some nanoseconds a frame finds neither
        the old one nor the new one, and an honest frame is dropped.
        """
        listing = self._list(namespace)
        ids = frozenset(lease.id for lease in leases)
        devices = {str(lease.ifindex) for lease in leases}
        others = self._others(namespace, ids) if listing.gone else []
        old = [
            listed
            for listed in listing.elements
            if listed.device in devices or listed.lease in ids
        ]
        new = [each for lease in [*leases, *others] for each in self._elements(lease)]
        kept = set(old).intersection(new)
        namespace.nft(
            "\n".join(
                [
                    *(self._rules if whole or listing.problem else ()),
                    *(self._delete(each) for each in old if each not in kept),
                    *(self._create(each) for each in new if each not in kept),
                ]
            )
        )

    def _elements(self, lease: Lease) -> list[_OwnedElement]:
        """Return all elements that a lease should have."""
        return [
            _OwnedElement(element, str(lease.ifindex), lease.id)
            for element in _with_witness(self._purpose.elements(lease))
        ]

    def _others(self, namespace: Namespace, ids: frozenset[str]) -> list[Lease]:
        """List the other active leases of a namespace that have elements."""
        return [
            other
            for other in self._leases()
            if other.id not in ids
            and other.state is State.ACTIVE
            and other.netns.cookie == namespace.netns.cookie
            and self.name in other.backends
        ]

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Delete the lease's elements."""
        if namespace is None:
            return
        if any(self._purpose.elements(lease)):
            try:
                namespace.nft("\n".join(map(self._delete, self._elements(lease))))
                return
            except NftRefused:
                pass
        self._delete_listed(namespace, lambda each: each.belongs_to(lease))

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        try:
            listing = self._list(namespace, repair=False)
        except HostError as error:
            if not any(self.name in lease.backends for lease in leases):
                return Observation({})  # without nftables the backend made nothing
            if not _unreadable(error):
                raise
            listing = _Listing("cannot be read", [])
        by_ifindex = {
            str(lease.ifindex): lease.id
            for lease in leases
            if self.name in lease.backends
        }
        present: dict[str, set[Element]] = {lease.id: set() for lease in leases}
        leftovers: dict[str, int] = {}
        for listed in listing.elements:
            owners = {by_ifindex.get(listed.device, ""), listed.lease} & present.keys()
            for owner in owners:
                present[owner].add(listed.element)
            if not owners:
                leftovers[listed.lease] = leftovers.get(listed.lease, 0) + 1
        differences: dict[str, str] = {}
        for lease in leases:
            if lease.state is State.RESERVED:  # its acquire is still at work
                continue
            active = lease.state is State.ACTIVE
            wanted = list(self._purpose.elements(lease)) if active else []
            if text := self._differences(listing, present[lease.id], wanted):
                differences[lease.id] = text
        return Observation(
            differences,
            tuple(
                Leftover(lease, f"{count} elements of nftables table {self.table}")
                for lease, count in leftovers.items()
            ),
        )

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        """Delete the elements that carry the leftover's stamp."""
        self._delete_listed(namespace, lambda each: each.lease == leftover.lease)

    def _differences(
        self, listing: _Listing, present: set[Element], wanted: Sequence[Element]
    ) -> str:
        if not wanted and not present:
            return ""
        expected = set(_with_witness(wanted)) if wanted else set()
        texts = []
        if wanted and listing.problem:
            texts.append(f"nftables table {self.table} {listing.problem}")
        texts += [f"lacks {each}" for each in sorted(expected - present, key=str)]
        texts += [f"has {each}" for each in sorted(present - expected, key=str)]
        return "; ".join(texts)

    def _list(self, namespace: Namespace, *, repair: bool = True) -> _Listing:
        """List the table. With `repair`, first repair a table that nft cannot read."""
        if not self._is_there(namespace):
            return _GONE
        try:
            objects = namespace.nft_list(f"table bridge {self.table}")
        except NftRefused:
            if self._is_there(namespace):
                raise
            return _GONE  # somebody has deleted it at this moment
        except HostError as error:
            if not repair or not _unreadable(error):
                raise
            namespace.nft("\n".join(self._rules))
            objects = namespace.nft_list(f"table bridge {self.table}")
        elements = [
            self._listed_element(listed["set"]["name"], element)
            for listed in objects
            if "set" in listed
            for element in listed["set"].get("elem", [])
        ]
        return _Listing(self._problem(namespace, objects), elements)

    def _is_there(self, namespace: Namespace) -> bool:
        """Say whether the table exists."""
        return any(
            listed.get("chain", {}).get("table") == self.table
            for listed in namespace.nft_list(CHAINS)
        )

    def _problem(
        self, namespace: Namespace, objects: Sequence[dict[str, Any]]
    ) -> str | None:
        """Say how the table differs from ours in anything but elements.

        nft lists what the kernel has. So the rules are compared by what they do, with
        a table of the same text in an empty namespace, and not by their comments.
        """
        for listed in objects:
            if listed.get("table", {}).get("flags"):
                return "is dormant"
            if listed.get("chain", {}).get("policy", "accept") != "accept":
                return "has another policy"
        if self._reference is None:
            ours = namespace.nft_example(
                "\n".join(self._rules), f"table bridge {self.table}"
            )
            self._reference = _without_elements(ours)
        present = _without_elements(objects)
        return None if present == self._reference else "has other rules"

    def _listed_element(self, set: str, element: Any) -> _OwnedElement:
        """Make an element from its JSON."""
        body = element.get("elem", {}) if isinstance(element, dict) else {}
        value = body.get("val", element)
        parts = value["concat"] if isinstance(value, dict) else [value]
        owner = parse_stamp(body.get("comment", ""))
        return _OwnedElement(
            Element(set, tuple(map(_part, parts[1:])), _limit(body.get("limit"))),
            str(parts[0]),
            owner.lease if owner and owner.ledger == self._ledger else "",
        )

    def _delete_listed(
        self, namespace: Namespace, chosen: Callable[[_OwnedElement], bool]
    ) -> None:
        """List the table, and delete the elements that are chosen."""
        for attempt in range(1, ATTEMPTS + 1):
            listed = filter(chosen, self._list(namespace).elements)
            try:
                if commands := "\n".join(map(self._delete, listed)):
                    namespace.nft(commands)
                return
            except NftRefused:
                # Somebody has deleted the table, or an element, after it was listed.
                if attempt == ATTEMPTS:
                    raise

    def _create(self, wanted: _OwnedElement) -> str:
        element, device, lease = wanted
        limit = ""
        if element.limit is not None:
            rate, burst, unit = element.limit
            what = "" if unit == "packets" else f" {unit}"
            limit = f"limit rate over {rate}{what}/second burst {burst} {unit} "
        comment = f'comment "{stamp(self._ledger, lease)}"'
        set = f"bridge {self.table} {element.set}"
        key = " . ".join([device, *element.key])
        return f"create element {set} {{ {key} {limit}{comment} }}"

    def _delete(self, listed: _OwnedElement) -> str:
        key = " . ".join([listed.device, *listed.element.key])
        return f"delete element bridge {self.table} {listed.element.set} {{ {key} }}"

    @cached_property
    def _rules(self) -> list[str]:
        """Commands that make the table and its rules, and keep its elements."""
        make = f"add table bridge {self.table}", f"flush table bridge {self.table}"
        return [*make, self._text]

    @cached_property
    def _expected_rules(self) -> list[NftRule]:
        """The rules of the table; each has a comment."""
        rules = []
        chain = ""
        for line in self._text.splitlines():
            if line.startswith("\tchain "):
                chain = line.split()[1]
            elif " comment " in line:
                rules.append(NftRule(chain, line.split('"')[-2]))
        return rules

    @cached_property
    def _text(self) -> str:
        path = os.path.join(os.path.dirname(__file__), f"{self.name}.nft")
        try:
            with open(path) as file:
                text = file.read()
        except NotADirectoryError:  # the package is in an archive
            from pkgutil import get_data  # slow to import

            text = (get_data("tapster.backends", f"{self.name}.nft") or b"").decode()
        digest = f"{crc32(text.encode()):08x}"
        return text.replace("TABLE", self.table).replace("DIGEST", digest)


def _without_elements(objects: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a list says, without elements and handles, in one order."""
    texts = []
    for listed in objects:
        for kind, body in listed.items():
            rest = {
                key: value
                for key, value in body.items()
                if key not in ("handle", "index") and (kind, key) != ("set", "elem")
            }
            # The order of a chain's rules matters, and no other.
            place = ("rule", body["chain"], "") if kind == "rule" else (kind, "", rest)
            texts.append((*place[:2], repr(place[2]), repr(_sorted(rest))))
    return [text for *_, text in sorted(texts, key=lambda entry: entry[:3])]


def _sorted(value: Any) -> Any:
    """Return a part of a rule with its anonymous sets and its keys in one order."""
    if isinstance(value, dict):
        return {
            key: sorted(map(_sorted, part), key=repr)
            if key == "set" and isinstance(part, list)
            else _sorted(part)
            for key, part in sorted(value.items())
        }
    return [_sorted(part) for part in value] if isinstance(value, list) else value


def _unreadable(error: HostError) -> bool:
    return isinstance(error, KernelError) and error.errno == EBADMSG


def _with_witness(elements: Iterable[Element]) -> list[Element]:
    """Return the elements, each once, and their witness."""
    each = list(dict.fromkeys(elements))
    digest = crc32(repr(sorted(each)).encode())
    return [*each, Element("leases", (f"{digest:#x}",))]


def _part(part: str | int | dict[str, Any]) -> str:
    """Convert a part of a listed key to the form that Element has it in."""
    if isinstance(part, dict):
        if prefix := part.get("prefix"):
            return f"{prefix['addr']}/{prefix['len']}"
        return "-".join(map(_part, part["range"]))
    if isinstance(part, str) and not part.startswith("0x"):
        return part
    return f"{part if isinstance(part, int) else int(part, 16):#x}"


def _limit(listed: dict[str, Any] | None) -> Limit | None:
    if listed is None:
        return None
    if (listed["per"], listed.get("inv")) != ("second", True):
        return Limit(0, 0)
    if "rate_unit" not in listed:
        return Limit(listed["rate"], listed.get("burst", 0), "packets")
    rate, burst = (
        listed[field] << 10 * _UNITS.index(listed.get(f"{field}_unit", "bytes"))
        for field in ("rate", "burst")
    )
    return Limit(rate, burst)


_UNITS = ("bytes", "kbytes", "mbytes", "gbytes")
