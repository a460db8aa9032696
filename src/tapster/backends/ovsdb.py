# SPDX-License-Identifier: Apache-2.0
"""The words of OVSDB, as in RFC 7047: operations and values as JSON. Pure."""

from collections.abc import Iterable
from typing import Any

from tapster.errors import ServiceUnavailable

Row = dict[str, Any]
Operation = dict[str, Any]
Condition = tuple[str, str, Any]


class Uuid(str):
    """A reference to a row."""

    __slots__ = ()


class Inserted(str):
    """A reference to the row that the same transaction inserts under this name."""

    __slots__ = ()


class Refused(ServiceUnavailable):
    """The server refused a transaction; nothing of it was done.

    If not because of what it found, then it cannot do its work: a full disk, say.
    """

    def __init__(self, error: str, details: str = "") -> None:
        super().__init__(error, details)
        self.error = error
        """"timed out": what was to be found was not there."""

    def __str__(self) -> str:
        return f"Open vSwitch's database refused a change: {': '.join(self.args)}"


def select(table: str, where: Iterable[Condition], *columns: str) -> Operation:
    return _operation("select", table, where, columns=columns)


def insert(table: str, name: str, row: Row) -> Operation:
    """Insert a row, which `Inserted(name)` refers to."""
    return {"op": "insert", "table": table, "uuid-name": name, "row": _row(row)}


def update(table: str, where: Iterable[Condition], row: Row) -> Operation:
    return _operation("update", table, where, row=_row(row))


def mutate(table: str, where: Iterable[Condition], *mutations: Condition) -> Operation:
    return _operation("mutate", table, where, mutations=_triples(mutations))


def delete(table: str, where: Iterable[Condition]) -> Operation:
    return _operation("delete", table, where)


def wait(
    table: str, where: Iterable[Condition], *rows: Row, seconds: float = 0
) -> Operation:
    """Go on only when these rows, and no others, are found."""
    return _operation(
        "wait",
        table,
        where,
        columns=sorted({column for row in rows for column in row}),
        until="==",
        rows=[_row(row) for row in rows],
        timeout=int(seconds * 1000),
    )


def merge(column: str, new: dict[str, str], stale: Iterable[str]) -> list[Condition]:
    """The mutations that set keys of a map and drop others."""
    # An insertion leaves the value of a key that is there already.
    return [
        (column, "delete", frozenset([*new, *stale])),
        (column, "insert", new),
    ]


def members(value: Any) -> frozenset[Any]:
    """The value of a column that holds a set: a single member comes bare."""
    return value if isinstance(value, frozenset) else frozenset([value])


def decoded(row: Row) -> Row:
    """A row as the server sent it, in Python's values."""
    return {column: _decoded(value) for column, value in row.items()}


def _operation(
    op: str, table: str, where: Iterable[Condition], **rest: Any
) -> Operation:
    return {"op": op, "table": table, "where": _triples(where), **rest}


def _triples(triples: Iterable[Condition]) -> list[list[Any]]:
    return [[column, how, _encoded(value)] for column, how, value in triples]


def _row(row: Row) -> Row:
    return {column: _encoded(value) for column, value in row.items()}


def _encoded(value: Any) -> Any:
    match value:
        case dict():
            return [
                "map",
                [[_encoded(key), _encoded(one)] for key, one in value.items()],
            ]
        case frozenset():
            return ["set", [_encoded(one) for one in value]]
        case Uuid():
            return ["uuid", value]
        case Inserted():
            return ["named-uuid", value]
    return value


def _decoded(value: Any) -> Any:
    match value:
        case ["map", pairs]:
            return {_decoded(key): _decoded(one) for key, one in pairs}
        case ["set", values]:
            return frozenset(_decoded(one) for one in values)
        case ["uuid", uuid]:
            return Uuid(uuid)
    return value
