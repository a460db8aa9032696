# SPDX-License-Identifier: Apache-2.0
"""Picks names, inside a transaction of the ledger.

The free numbers of each template are stored as intervals (see schema.sql). So a pick
is a few index look-ups, however many leases there are. `lowest` is the first number of
the first interval. `next` is the first number at or after the counter. If there is no
interval, no name is left.

The names of foreign devices are discovered when they are picked. They leave the
intervals and are remembered. They return when `recheck` finds that the device is gone.
"""

from bisect import bisect_left, bisect_right
from itertools import count

from tapster import names
from tapster.errors import NamesExhausted, NameTaken, QuotaExceeded
from tapster.ledger import sqlite
from tapster.light import Callable, Iterable, Mapping, NamedTuple
from tapster.model import Naming
from tapster.names import Template

HolderOf = Callable[[str], int]
"""Returns the ifindex of the device that has a name or altname, or 0."""
Holders = Callable[[], Mapping[str, int]]
"""Returns the ifindex of every device, by its name. Altnames may be missing."""

MANY = 8
"""Up to this many foreign names are looked up one by one; for more, all devices are
listed."""
TRIES = 10
"""Every template can make at least this many names (`names.parse`)."""


MOST_TEMPLATES = 16
"""If there are more templates, the allocator forgets a template when all its names are
free. The policy may let a user invent templates, and each release reads all of them."""
SHARES = 4
"""The part of a template's names that the keys of one user may take."""
BETWEEN = "\n"
"""Between the id of a user of the daemon and the user's key, which cannot have it."""


class KeyShare(NamedTuple):
    """How many keys of stable names, and how many templates of naming next, are
    remembered for one user."""

    caller_uid: int
    keys: int


class Allocator:
    """Picks names in one network namespace.

    `db` must be in a transaction while the allocator is used. `netns` is the row id
    of the namespace.
    """

    def __init__(self, db: sqlite.Connection, netns: int) -> None:
        self._db = db
        self._netns = netns

    def pick(
        self,
        template: Template,
        naming: Naming,
        key: str | None,
        holder_of: HolderOf,
        share: KeyShare | None = None,
        list_holders: Holders | None = None,
    ) -> str:
        """Return a free name, which the caller inserts as a lease.

        Raise NameTaken if the request allows only one name, and it is in use. Raise
        NamesExhausted if every name of the template is in use, and QuotaExceeded if
        `share` has no room for a further key.
        """
        if not template.numbered:
            return self._only(template.prefix, holder_of)
        if naming == Naming.STABLE:
            assert key is not None
            name = template.name(self._stable_number(template, key, share))
            return self._only(name, holder_of)
        lowest = self._lowest(template) if naming == Naming.LOWEST else None
        if lowest is not None and not self._is_foreign(lowest, holder_of):
            return lowest
        number = self._counter(template, share) if naming == Naming.NEXT else 0
        row = self._template_row(template)
        for met in count():
            if met == MANY and list_holders is not None:
                self._exclude(row, template, list_holders())
            number = self._take_from(row, number, template)
            name = template.name(number)
            if not self._is_leased(name) and not self._is_foreign(name, holder_of):
                break
        if naming == Naming.NEXT:
            self._db.execute(
                "UPDATE counter SET next = ? WHERE template = ?",
                ((number + 1) % template.capacity, str(template)),
            )
        return name

    def free_names(self, freed: Iterable[str]) -> None:
        """Return names to the free numbers of every template that can make them."""
        query = "SELECT id, text FROM template WHERE netns = ?"
        templates = [
            (row, names.parse(text))
            for row, text in self._db.execute(query, (self._netns,))
        ]
        freed = [*freed]
        for row, template in templates:
            numbers = {template.number(name) for name in freed}
            runs = _runs(n for n in numbers if n is not None)
            for first, last in runs:
                self._give(row, first, last)
            if runs and len(templates) > MOST_TEMPLATES:
                self._db.execute(
                    "DELETE FROM template WHERE id = ? AND EXISTS (SELECT 1 FROM free "
                    "WHERE template = template.id AND first = 0 AND last = ?)",
                    (row, template.capacity - 1),
                )

    def note_foreign(self, name: str, ifindex: int) -> None:
        """Remember that a foreign device has `name`."""
        self._db.execute(
            "INSERT OR REPLACE INTO foreign_name VALUES (?, ?, ?)",
            (self._netns, name, ifindex),
        )

    def recheck(
        self,
        changed: set[int] | None,
        holder_of: HolderOf,
        list_holders: Holders | None = None,
    ) -> None:
        """Free the foreign names whose devices are gone or renamed.

        Ask only about the devices in `changed`; None means all.
        """
        foreign = self._foreign(changed)
        holders: Mapping[str, int] = {}
        if len(foreign) > MANY and list_holders is not None:
            holders = list_holders()
        for name, ifindex in foreign:
            if holder := holders.get(name) or holder_of(name):
                if holder != ifindex:
                    self.note_foreign(name, holder)
                continue
            self._db.execute(
                "DELETE FROM foreign_name WHERE netns = ? AND name = ?",
                (self._netns, name),
            )
            self.free_names([name])

    def _foreign(self, changed: set[int] | None) -> list[tuple[str, int]]:
        query = "SELECT name, ifindex FROM foreign_name WHERE netns = ?"
        if changed is None:
            return self._db.execute(query, (self._netns,)).fetchall()
        # 0 stands for a device that was gone before its index was known.
        return [
            row
            for ifindex in {0, *changed}
            for row in self._db.execute(
                query + " AND ifindex = ?", (self._netns, ifindex)
            )
        ]

    def _only(self, name: str, holder_of: HolderOf) -> str:
        lease = self._db.execute(
            "SELECT id, owner, fin_wait, deadline FROM lease "
            "WHERE netns = ? AND name = ?",
            (self._netns, name),
        ).fetchone()
        if lease:
            id_, owner, fin_wait, deadline = lease
            status = (
                "is leased"
                if deadline is None
                else f"is in FIN WAIT, which lasts {fin_wait:g} s"
            )
            whose = f"owner {owner!r}" if owner else "without an owner"
            reclaim = " reclaim it as its owner," if owner else ""
            remedy = (
                ""
                if deadline is None
                else f"; wait,{reclaim} or end its wait: tapster reap {id_}"
            )
            raise NameTaken(
                f"name {name!r} {status}: lease {id_}, {whose}{remedy}",
                name=name,
                lease=id_,
                owner=owner,
                until=deadline,
            )
        if holder := holder_of(name):
            raise NameTaken(
                f"name {name!r} belongs to a foreign device (ifindex {holder})",
                name=name,
            )
        return name

    def _lowest(self, template: Template) -> str | None:
        """Take the lowest free number; return its name.

        None if the template is new, if it has no free number, or if a lease has the
        name that it was to give. One statement finds all that out.
        """
        query = (
            "SELECT template.id, first, last, EXISTS (SELECT 1 FROM lease "
            "WHERE netns = template.netns AND name = ? || first || ?) "
            "FROM template JOIN free ON free.template = template.id "
            "WHERE netns = ? AND text = ? ORDER BY first LIMIT 1"
        )
        prefix, suffix = template.prefix, template.suffix
        found = self._db.execute(
            query, (prefix, suffix, self._netns, str(template))
        ).fetchone()
        if found is None:
            return None
        row, first, last, leased = found
        if first == last:
            self._remove(row, first)
        else:
            self._change(row, first, first + 1, last)
        return None if leased else template.name(first)

    def _is_leased(self, name: str) -> bool:
        query = "SELECT 1 FROM lease WHERE netns = ? AND name = ?"
        return self._db.execute(query, (self._netns, name)).fetchone() is not None

    def _is_foreign(self, name: str, holder_of: HolderOf) -> bool:
        """Return whether a foreign device has a name, which is then remembered."""
        holder = holder_of(name)
        if holder:
            self.note_foreign(name, holder)
        return holder != 0

    def _template_row(self, template: Template) -> int:
        known = self._db.execute(
            "SELECT id FROM template WHERE netns = ? AND text = ?",
            (self._netns, str(template)),
        ).fetchone()
        if known:
            return int(known[0])
        row = self._db.execute(
            "INSERT INTO template (netns, text) VALUES (?, ?) RETURNING id",
            (self._netns, str(template)),
        ).fetchone()[0]
        self._insert(row, 0, template.capacity - 1)
        return int(row)

    def _counter(self, template: Template, share: KeyShare | None) -> int:
        query = "SELECT next FROM counter WHERE template = ?"
        if found := self._db.execute(query, (str(template),)).fetchone():
            return int(found[0])
        if share is not None:
            query = "SELECT count(*) FROM counter WHERE caller_uid = ?"
            (known,) = self._db.execute(query, (share.caller_uid,)).fetchone()
            if known >= share.keys:
                raise QuotaExceeded(
                    f"{known} templates of naming next are remembered for user id "
                    f"{share.caller_uid}, which is the limit: use one of these",
                    limit=share.keys,
                )
        self._db.execute(
            "INSERT INTO counter VALUES (?, 0, ?)",
            (str(template), share and share.caller_uid),
        )
        return 0

    def _stable_number(
        self, template: Template, key: str, share: KeyShare | None
    ) -> int:
        text = str(template)
        query = "SELECT number FROM stable WHERE template = ? AND key = ?"
        if found := self._db.execute(query, (text, key)).fetchone():
            return int(found[0])
        if share is not None:
            self._check_share(template, share)
        number = names.home(template, key.rpartition(BETWEEN)[2])
        query = "SELECT 1 FROM stable WHERE template = ? AND number = ?"
        tried = 0
        while self._db.execute(query, (text, number)).fetchone():
            number = (number + 1) % template.capacity
            tried += 1
            # To count a million keys takes 40 ms. So count them only when numbers in
            # a row are taken, as they are when few are left.
            if tried == TRIES and self._keys(text) >= template.capacity:
                raise NamesExhausted(
                    f"all {template.capacity} names of template {text!r} "
                    f"belong to other keys",
                    template=text,
                )
        self._db.execute(
            "INSERT INTO stable (template, key, number, caller_uid) "
            "VALUES (?, ?, ?, ?)",
            (text, key, number, share and share.caller_uid),
        )
        return number

    def stable_mac(self, template: Template, key: str) -> str | None:
        """Return the MAC that a key had before, unless a device in use has it."""
        query = (
            "SELECT mac FROM stable WHERE template = ? AND key = ? AND NOT EXISTS "
            "(SELECT 1 FROM lease WHERE mac = stable.mac AND state != 'fin_wait')"
        )
        found = self._db.execute(query, (str(template), key)).fetchone()
        return found[0] if found else None

    def remember_mac(self, template: Template, key: str, mac: str) -> None:
        """Remember the first MAC of a key. A later one is not remembered."""
        self._db.execute(
            "UPDATE stable SET mac = ? WHERE template = ? AND key = ? AND mac IS NULL",
            (mac, str(template), key),
        )

    def _check_share(self, template: Template, share: KeyShare) -> None:
        """Raise QuotaExceeded if a user's keys leave too little room for others."""
        query = "SELECT count(*) FROM stable WHERE caller_uid = ?"
        (keys,) = self._db.execute(query, (share.caller_uid,)).fetchone()
        if keys >= share.keys:
            raise QuotaExceeded(
                f"{keys} keys of stable names are remembered for user id "
                f"{share.caller_uid}, which is the limit: use one of these keys",
                limit=share.keys,
            )
        query += " AND template = ?"
        text = str(template)
        (keys,) = self._db.execute(query, (share.caller_uid, text)).fetchone()
        limit = max(template.capacity // SHARES, 1)
        if keys >= limit:
            raise QuotaExceeded(
                f"{keys} of the {template.capacity} names of template {text!r} belong "
                f"to keys of user id {share.caller_uid}, which is the limit: "
                "use one of these keys",
                limit=limit,
            )

    def _exclude(
        self, row: int, template: Template, holders: Mapping[str, int]
    ) -> None:
        """Take the numbers of all foreign names out of the free ones, and note them."""
        query = "SELECT name FROM lease WHERE netns = ?"
        leased = {name for (name,) in self._db.execute(query, (self._netns,))}
        foreign = {
            number: name
            for name in holders.keys() - leased
            if (number := template.number(name)) is not None
        }
        numbers = sorted(foreign)
        query = "SELECT first, last FROM free WHERE template = ?"
        for first, last in self._db.execute(query, (row,)).fetchall():
            inside = numbers[bisect_left(numbers, first) : bisect_right(numbers, last)]
            if not inside:
                continue
            self._remove(row, first)
            for number in inside:
                if first < number:
                    self._insert(row, first, number - 1)
                first = number + 1
            if first <= last:
                self._insert(row, first, last)
            self._db.executemany(
                "INSERT OR REPLACE INTO foreign_name VALUES (?, ?, ?)",
                [
                    (self._netns, name, holders[name])
                    for name in map(foreign.__getitem__, inside)
                ],
            )

    def _keys(self, text: str) -> int:
        """Return how many keys of a template have a number."""
        query = "SELECT count(*) FROM stable WHERE template = ?"
        return int(self._db.execute(query, (text,)).fetchone()[0])

    def _take_from(self, row: int, number: int, template: Template) -> int:
        """Take the first free number at or after `number`, or else the lowest."""
        interval = self._interval_before(row, number) if number else None
        if interval is None or interval[1] < number:
            interval = (
                self._interval_from(row, number)
                or self._interval_from(row, 0)
                or self._exhausted(template)
            )
            number = interval[0]
        first, last = interval
        if first == last:
            self._remove(row, first)
        elif number == first:
            self._change(row, first, first + 1, last)
        else:
            self._change(row, first, first, number - 1)
            if number < last:
                self._insert(row, number + 1, last)
        return number

    def _give(self, row: int, first: int, last: int) -> None:
        """Free the numbers from `first` to `last`. Some may be free already."""
        before = self._interval_before(row, first)
        query = (
            "DELETE FROM free WHERE template = ? AND first > ? AND first <= ? "
            "RETURNING last"
        )
        after = self._db.execute(query, (row, first, last + 1)).fetchall()
        last = max([last, *(end for (end,) in after)])
        if before and before[1] >= first - 1:
            self._change(row, before[0], before[0], max(last, before[1]))
        else:
            self._insert(row, first, last)

    def _exhausted(self, template: Template) -> tuple[int, int]:
        raise NamesExhausted(
            f"all {template.capacity} names of template {str(template)!r} are in use",
            template=str(template),
        )

    def _interval_before(self, row: int, number: int) -> tuple[int, int] | None:
        """Return the last interval that begins at or before `number`."""
        found: tuple[int, int] | None = self._db.execute(
            "SELECT first, last FROM free WHERE template = ? AND first <= ? "
            "ORDER BY first DESC LIMIT 1",
            (row, number),
        ).fetchone()
        return found

    def _interval_from(self, row: int, number: int) -> tuple[int, int] | None:
        """Return the first interval that begins at or after `number`."""
        found: tuple[int, int] | None = self._db.execute(
            "SELECT first, last FROM free WHERE template = ? AND first >= ? "
            "ORDER BY first LIMIT 1",
            (row, number),
        ).fetchone()
        return found

    def _insert(self, row: int, first: int, last: int) -> None:
        self._db.execute("INSERT INTO free VALUES (?, ?, ?)", (row, first, last))

    def _change(self, row: int, first: int, new_first: int, new_last: int) -> None:
        """Change the interval that begins at `first`."""
        self._db.execute(
            "UPDATE free SET first = ?, last = ? WHERE template = ? AND first = ?",
            (new_first, new_last, row, first),
        )

    def _remove(self, row: int, first: int) -> None:
        query = "DELETE FROM free WHERE template = ? AND first = ?"
        self._db.execute(query, (row, first))


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last numbers of each run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
