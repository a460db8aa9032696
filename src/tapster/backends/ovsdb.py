# SPDX-License-Identifier: Apache-2.0
"""Operations and values of OVSDB as JSON, as in RFC 7047. Pure."""

from tapster.errors import ServiceUnavailable
from tapster.light import Any, Iterable

Row = dict[str, Any]
Operation = dict[str, Any]
Condition = tuple[str, str, Any]


class Uuid(str):
    """A reference to a row."""

    __slots__ = ()


class Inserted(str):
    """A reference to a row that the same transaction inserts under this name."""

    __slots__ = ()


class OvsdbRefusal(ServiceUnavailable):
    """The server refused a transaction and did none of it.

    Either the rows were not as the transaction expected, or the server cannot work,
    for example because its disk is full.
    """

    def __init__(self, error: str, details: str = "") -> None:
        super().__init__(error, details)
        self.error = error
        """"timed out" if a wait did not find its rows."""

    def __str__(self) -> str:
        return f"Open vSwitch's database refused a change: {': '.join(self.args)}"


class TooLate(ServiceUnavailable):
    """Open vSwitch did not do something in time. A daemon that is down is not late."""


def select(table: str, where: Iterable[Condition], *columns: str) -> Operation:
    return _operation("select", table, where, columns=columns)


def insert(table: str, name: str, row: Row) -> Operation:
    """Insert a row; `Inserted(name)` refers to it."""
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
    """Let the transaction go on only when exactly these rows are found."""
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
    """Return the mutations that set keys of a map and drop stale keys."""
    # An insertion does not change the value of a key that exists.
    return [
        (column, "delete", frozenset([*new, *stale])),
        (column, "insert", new),
    ]


def members(value: Any) -> frozenset[Any]:
    """Return the members of a set. OVSDB sends a single member without its set."""
    return value if isinstance(value, frozenset) else frozenset([value])


def decoded(row: Row) -> Row:
    """Convert a row that the server sent to Python's values."""
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
                [[_encoded(key), _encoded(entry)] for key, entry in value.items()],
            ]
        case frozenset():
            return ["set", [_encoded(member) for member in value]]
        case Uuid():
            return ["uuid", value]
        case Inserted():
            return ["named-uuid", value]
    return value


def _decoded(value: Any) -> Any:
    match value:
        case ["map", pairs]:
            return {_decoded(key): _decoded(entry) for key, entry in pairs}
        case ["set", values]:
            return frozenset(map(_decoded, values))
        case ["uuid", uuid]:
            return Uuid(uuid)
    return value
