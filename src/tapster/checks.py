# SPDX-License-Identifier: Apache-2.0
"""Check the fields of records by the records' annotations. Pure.

A wrong type is refused at the library's door. The error names the field, the value, and
what would be right. Without this check, Python would raise an error of its own
somewhere inside.
"""

from tapster.errors import RequestError
from tapster.light import Any, NoneType, StrEnum, UnionType, get_args, get_origin

_NAMES = {bool: "True or False", int: "an int", float: "a number", str: "a str"}

_plain: dict[Any, dict[str, frozenset[type]]] = {}
"""For each record, the types that each field accepts without a further check."""


def check_record(record: Any) -> None:
    """Check each field of a named tuple by its annotation. Raises RequestError."""
    kind = type(record)
    plain = _plain.get(kind)
    if plain is None:
        plain = _plain[kind] = {
            field: _plain_types(annotation)
            for field, annotation in kind.__annotations__.items()
        }
    defaults = kind._field_defaults
    for field, value in zip(plain, record, strict=True):
        # Most fields have their default, which needs no check.
        if type(value) not in plain[field] and value is not defaults.get(field, plain):
            check_value(kind.__annotations__[field], value, field)


def check_value(kind: Any, value: Any, where: str) -> None:
    """Check that `value`, for a field called `where`, is of a type.

    Raises RequestError.
    """
    if not _fits(kind, value):
        raise RequestError(f"{where} must be {described(kind)}, not {shown(value)}")
    if hasattr(value, "_fields"):
        check_record(value)


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
    return _NAMES.get(kind) or f"a {kind.__name__}"


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(option, value) for option in get_args(kind))
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
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    plain: set[type] = set()
    for option in options:
        if option in (bool, int, str, NoneType):
            plain.add(option)
        elif option is float:
            plain |= {int, float}
        elif isinstance(option, type) and issubclass(option, StrEnum):
            plain.add(option)
    return frozenset(plain)
