# SPDX-License-Identifier: Apache-2.0
"""Varlink: messages, and types that are derived from Python's annotations. Pure.

A message is one JSON object and a NUL byte (varlink.org). The types are those that the
rest of Tapster uses: bool, int, float, str, a StrEnum, a NamedTuple, `X | None`,
`tuple[X, ...]` and `tuple[X, X]`. So a new field of a request or a lease becomes part
of the interface, its description (description.py) and its checks without further code.
"""

from _json import (
    encode_basestring,
    make_encoder,
    make_scanner,
)

from tapster.light import (
    Any,
    Callable,
    Mapping,
    NoneType,
    StrEnum,
    UnionType,
    cast,
    get_args,
    get_origin,
)

SERVICE = "org.varlink.service"
LARGEST = (1 << 63) - 1

SIMPLE = {bool: "bool", int: "int", float: "float", str: "string"}


class Malformed(ValueError):
    """The received bytes are no message."""


class Unfit(ValueError):
    """A parameter does not have the type that the interface declares."""

    def __init__(self, parameter: str, wanted: str) -> None:
        super().__init__(f"parameter {parameter!r} must be {wanted}")
        self.parameter = parameter


# Messages


def encode(message: Mapping[str, Any], *, strict: bool = False) -> bytes:
    """Return the bytes of a message. A character that UTF-8 lacks becomes `?`, or, if
    `strict`, raises UnicodeEncodeError."""
    text = "".join(_encode(message, 0))
    return text.encode(errors="strict" if strict else "replace") + b"\0"


def decode(data: bytes) -> dict[str, Any]:
    """Return the message in these bytes, which have no NUL. Raise Malformed."""
    try:
        text = data.decode()
        try:
            message, end = _scan(text, 0)
        except StopIteration:  # no value begins here
            end = -1
        if end != len(text):
            message = _load(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise Malformed("it is not a JSON object")
    return message


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _load(text: str) -> Any:
    """Decode a text that the fast decoder refused. Raise ValueError with the reason."""
    import json

    return json.loads(text, parse_constant=_refuse)


def _refuse_value(value: object) -> None:
    raise TypeError(f"{type(value).__name__} {value!r} is not JSON")


class _Decoding:
    """The settings of the C decoder, as json.JSONDecoder makes them."""

    def __init__(self) -> None:
        self.strict = True
        self.object_hook = self.object_pairs_hook = None
        self.parse_float, self.parse_int, self.parse_constant = float, int, _refuse
        self.memo: dict[str, str] = {}


# The package `json` imports `re`: together they take as long as a third of Python's
# start. Its C parts do what plain messages need.
_encode = make_encoder(
    None, _refuse_value, encode_basestring, None, ":", ",", False, False, True
)
_scan = make_scanner(cast(Any, _Decoding()))


# Values


def to_json(value: Any) -> Any:
    """Return a value for JSON. Leave out the fields that are None."""
    if isinstance(value, tuple):
        if not hasattr(value, "_fields"):
            return [to_json(item) for item in value]
        # Most fields are plain. A call for each took most of the time of an answer.
        return {
            name: item if item.__class__ in SIMPLE else to_json(item)
            for name, item in zip(value._fields, value, strict=True)
            if item is not None
        }
    if isinstance(value, StrEnum):
        return value.value
    return value


def from_json(kind: Any, data: Any, where: str = "", *, strict: bool = True) -> Any:
    """Return the value of type `kind` that JSON data describes. Raise Unfit.

    `where` is what an error calls the value; by default it is all the parameters.

    Refuse fields that the type does not have, or, if not `strict`, ignore them. A
    service must not ignore part of a request. A client may ignore part of an answer.
    """
    try:
        return _reader(kind)(data, strict)
    except _Misfit as misfit:
        place = misfit.inside(where).place if where else misfit.place
        raise Unfit(place or "parameters", misfit.wanted) from None


class _Misfit(ValueError):
    """A value does not have the declared type. `place` is the path to the value."""

    def __init__(self, wanted: str, place: str = "") -> None:
        super().__init__(wanted)
        self.wanted = wanted
        self.place = place

    def inside(self, name: str) -> "_Misfit":
        """Return the misfit with the path from the enclosing value."""
        dot = "" if self.place[:1] in ("", "[") else "."
        return _Misfit(self.wanted, f"{name}{dot}{self.place}")


_Reader = Callable[[Any, bool], Any]
"""Returns the value that JSON data describes. The flag is `strict` of `from_json`."""
_readers: dict[Any, _Reader] = {}
"""The reader of each type that was read before. A reader reads an acquire's request in
12 us; without it, looking at the annotations took 101 us."""


def _reader(kind: Any) -> _Reader:
    """Return the function that reads values of a type."""
    if (reader := _readers.get(kind)) is None:
        reader = _readers[kind] = _new_reader(kind)
    return reader


def _new_reader(kind: Any) -> _Reader:
    inner, optional = strip(kind)
    if optional:
        read = _reader(inner)
        return lambda data, strict: None if data is None else read(data, strict)
    if inner in SIMPLE:
        return _SIMPLE_READERS[inner]
    if get_origin(inner) is tuple:
        return _array_reader(*get_args(inner))
    if issubclass(inner, StrEnum):
        return _enum_reader(inner)
    return _struct_reader(inner)


def _array_reader(item: Any, *rest: Any) -> _Reader:
    read_item = _reader(item)
    length = None if rest == (Ellipsis,) else 1 + len(rest)

    def read(data: Any, strict: bool) -> Any:
        if not isinstance(data, list):
            raise _Misfit("an array")
        if length is not None and len(data) != length:
            raise _Misfit(f"an array of {length}")
        values = []
        for number, element in enumerate(data):
            try:
                values.append(read_item(element, strict))
            except _Misfit as misfit:
                raise misfit.inside(f"[{number}]") from None
        return tuple(values)

    return read


def _enum_reader(kind: Any) -> _Reader:
    members = {member.value: member for member in kind}

    def read(data: Any, strict: bool) -> Any:
        if not isinstance(data, str) or data not in members:
            raise _Misfit(f"one of {', '.join(kind)}")
        return members[data]

    return read


def _struct_reader(kind: Any) -> _Reader:
    readers = {name: _reader(inner) for name, inner in kind.__annotations__.items()}
    defaults = kind._field_defaults
    # The fields without a default, and whether each may be None.
    needed = {
        name: strip(kind.__annotations__[name])[1]
        for name in kind._fields
        if name not in defaults
    }

    def read(data: Any, strict: bool) -> Any:
        if not isinstance(data, dict):
            raise _Misfit("an object")
        values = {}
        for name, value in data.items():
            if name not in readers:
                if not strict:
                    continue
                wanted = f"left out: {kind.__name__} has no such field"
                raise _Misfit(wanted, name[:100])
            if value is not None or name not in defaults:
                try:
                    values[name] = readers[name](value, strict)
                except _Misfit as misfit:
                    raise misfit.inside(name) from None
        for name, optional in needed.items():
            if name not in values:
                if not optional:
                    raise _Misfit("given", name)
                values[name] = None
        return kind(**values)

    return read


def _read_bool(data: Any, strict: bool) -> Any:
    if type(data) is not bool:
        raise _Misfit("of type bool")
    return data


def _read_int(data: Any, strict: bool) -> Any:
    if type(data) is not int:  # in Python a bool is an int, in Varlink it is not
        raise _Misfit("of type int")
    if abs(data) > LARGEST:
        raise _Misfit("an int of 64 bits")
    return data


def _read_float(data: Any, strict: bool) -> Any:
    if type(data) is int and abs(data) <= LARGEST:
        return float(data)
    if type(data) is not float:
        raise _Misfit("of type float")
    return data


def _read_str(data: Any, strict: bool) -> Any:
    if type(data) is not str:
        raise _Misfit("of type string")
    if not data.isascii() and any("\ud800" <= letter <= "\udfff" for letter in data):
        raise _Misfit("text: it has half of a surrogate pair")
    return data


_SIMPLE_READERS: Mapping[Any, _Reader] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
}


def strip(kind: Any) -> tuple[Any, bool]:
    """Return a type without `| None`, and whether it had that."""
    if isinstance(kind, UnionType):
        (inner,) = (member for member in get_args(kind) if member is not NoneType)
        return inner, True
    return kind, False
