# SPDX-License-Identifier: Apache-2.0
"""Check the fields of records by the records' annotations. Pure.

A wrong type is refused at the library's door. The error names the field, the value, and
what would be right. Without this check, Python would raise an error of its own
somewhere inside.
"""

from tapster.errors import RequestError
from tapster.light import Any, NoneType, StrEnum, UnionType, get_args, get_origin

_NAMES = {bool: "True or False", int: "an int", float: "a number", str: "a str"}

MOST_KINDS = 1024
"""How many combinations of types are remembered of each record."""


class _Fields:
    """What each field of a record accepts."""

    def __init__(self, record: Any) -> None:
        annotations, defaults = record.__annotations__, record._field_defaults
        self.names = record._fields
        self.annotations = annotations
        self.plain = [_plain_types(annotations[field]) for field in self.names]
        """The types that need no further check."""
        self.deep = [place for place, plain in enumerate(self.plain) if not plain]
        """The fields with parts that must be checked."""
        self.defaults = [defaults.get(self.names[place], self) for place in self.deep]
        self.known: set[tuple[type, ...]] = set()
        """Types of whole records whose plain fields need no further check."""

    def learn(self, record: Any, types: tuple[type, ...]) -> None:
        """Check the plain fields of a record."""
        wrong = [
            place
            for place, plain in enumerate(self.plain)
            if plain and types[place] not in plain
        ]
        for place in wrong:
            field = self.names[place]
            check_value(self.annotations[field], record[place], field)
        if not wrong and len(self.known) < MOST_KINDS:
            self.known.add(types)


_fields_of: dict[Any, _Fields] = {}


def check_record(record: Any) -> None:
    """Check each field of a named tuple by its annotation. Raises RequestError."""
    kind = type(record)
    fields = _fields_of.get(kind)
    if fields is None:
        fields = _fields_of[kind] = _Fields(kind)
    # One look-up tells of most fields of most records.
    types = tuple(map(type, record))
    if types not in fields.known:
        fields.learn(record, types)
    if [*map(record.__getitem__, fields.deep)] != fields.defaults:
        for place in fields.deep:
            field = fields.names[place]
            check_value(fields.annotations[field], record[place], field)


def check_value(kind: Any, value: Any, where: str) -> None:
    """Check that `value`, for a field called `where`, is of a type.

    Raises RequestError.
    """
    if type(value) is not kind and not _fits(kind, value):
        raise RequestError(f"{where} must be {described(kind)}, not {shown(value)}")
    if hasattr(value, "_fields"):
        check_record(value)


def check_has(method: str, value: object, where: str, what: str) -> None:
    """Check that `value` has a method of `what`, or is None. Raises RequestError."""
    if value is not None and not hasattr(value, method):
        raise RequestError(f"{where} must be {what} or None, not {shown(value)}")


def shown(value: object) -> str:
    """Return a value as its user wrote it: the text of an enum, not its repr."""
    return repr(value.value if isinstance(value, StrEnum) else value)


def described(kind: Any) -> str:
    """Return the words that follow "must be" in an error about this type."""
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return " or ".join(_described(option) for option in options)


def _described(kind: Any) -> str:
    if kind is NoneType or kind is None:
        return "None"
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        if rest == [Ellipsis]:
            return f"a tuple (each item {described(item)})"
        return f"a tuple of {1 + len(rest)} (each item {described(item)})"
    if issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return _NAMES.get(kind) or f"{article} {kind.__name__}"


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(kind, UnionType):
        options = get_args(kind)
        return type(value) in options or any(_fits(option, value) for option in options)
    if kind is NoneType or kind is None:
        return value is None
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        item, *rest = get_args(kind)
        if rest != [Ellipsis] and len(value) != 1 + len(rest):
            return False
        return all(_fits(item, part) for part in value)
    if issubclass(kind, StrEnum):
        return isinstance(value, str) and value in [*kind]
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool):
        return type(value) is kind  # to Python a bool is an int
    return isinstance(value, kind)


def _plain_types(kind: Any) -> frozenset[type]:
    """Return the types of an annotation if no value of these has parts; else none."""
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    plain: set[type] = set()
    for option in options:
        if option in (bool, int, str, NoneType):
            plain.add(option)
        elif option is float:
            plain |= {int, float}
        elif isinstance(option, type) and issubclass(option, StrEnum):
            plain.add(option)
        else:
            return frozenset()
    return frozenset(plain)
