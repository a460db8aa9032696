# SPDX-License-Identifier: Apache-2.0
"""Varlink: messages, and types that are derived from Python's annotations. Pure.

A message is one JSON object and a NUL byte (varlink.org). The types are those that the
rest of Tapster uses: bool, int, float, str, a StrEnum, a NamedTuple, `X | None`,
`tuple[X, ...]` and `tuple[X, X]`. So a new field of a request or a lease becomes part
of the interface, its description and its checks without further code.
"""

from _json import (
    encode_basestring,
    make_encoder,
    make_scanner,
)

from tapster.light import (
    Any,
    Iterator,
    Mapping,
    NamedTuple,
    NoneType,
    StrEnum,
    UnionType,
    cast,
    get_args,
    get_origin,
)

SERVICE = "org.varlink.service"
LARGEST = (1 << 63) - 1

_SIMPLE = {bool: "bool", int: "int", float: "float", str: "string"}


class Malformed(ValueError):
    """The received bytes are no message."""


class Unfit(ValueError):
    """A parameter does not have the type that the interface declares."""

    def __init__(self, parameter: str, wanted: str) -> None:
        super().__init__(f"parameter {parameter!r} must be {wanted}")
        self.parameter = parameter


class Nothing(NamedTuple):
    """No parameters."""


class Method(NamedTuple):
    """A method, and the NamedTuples of its parameters and its answer."""

    name: str
    takes: type[Any]
    gives: type[Any]
    says: str
    more: bool = False
    """The method answers repeatedly, and only a call with `more`."""
    pages: bool = False
    """The method answers a call with `more` in several parts, if there is much to say.
    A call without `more` must have an answer of one part."""


class Error(NamedTuple):
    """An error, with the NamedTuple of its parameters."""

    name: str
    gives: type[Any]
    says: str


class Interface(NamedTuple):
    """The methods and errors that a service offers under one name."""

    name: str
    says: str
    methods: tuple[Method, ...]
    errors: tuple[Error, ...] = ()


# Messages


def encode(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message. A character that UTF-8 lacks becomes `?`."""
    text = "".join(_encode(message, 0))
    return text.encode(errors="replace") + b"\0"


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
    """Return the value in a text that is not plainly one JSON value; say what is
    wrong."""
    import json

    return json.loads(text, parse_constant=_refuse)


def _refuse_value(value: object) -> None:
    raise TypeError(f"{type(value).__name__} {value!r} is not JSON")


class _Decoding:
    """How JSON is read: what json.JSONDecoder sets for its C part."""

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
        fields = zip(value._fields, value, strict=True)
        return {name: to_json(item) for name, item in fields if item is not None}
    if isinstance(value, StrEnum):
        return value.value
    return value


def from_json(
    kind: Any, data: Any, where: str = "parameters", *, strict: bool = True
) -> Any:
    """Return the value of type `kind` that JSON data describes. Raise Unfit.

    Refuse fields that the type does not have, or, if not `strict`, ignore them. A
    service must not ignore part of a request. A client may ignore part of an answer.
    """
    inner, optional = _strip(kind)
    if data is None and optional:
        return None
    if inner in _SIMPLE:
        return _simple(inner, data, where)
    if get_origin(inner) is tuple:
        if not isinstance(data, list):
            raise Unfit(where, "an array")
        item, *rest = get_args(inner)
        if rest != [Ellipsis] and len(data) != 1 + len(rest):
            raise Unfit(where, f"an array of {1 + len(rest)}")
        return tuple(
            from_json(item, element, f"{where}[{number}]", strict=strict)
            for number, element in enumerate(data)
        )
    if issubclass(inner, StrEnum):
        if not isinstance(data, str) or data not in [*inner]:
            raise Unfit(where, f"one of {', '.join(inner)}")
        return inner(data)
    return _struct(inner, data, where, strict)


def _struct(kind: Any, data: Any, where: str, strict: bool) -> Any:
    if not isinstance(data, dict):
        raise Unfit(where, "an object")
    inside = "" if where == "parameters" else f"{where}."
    values = {}
    for name, value in data.items():
        if name not in kind._fields:
            if not strict:
                continue
            wanted = f"left out: {kind.__name__} has no such field"
            raise Unfit(f"{inside}{name[:100]}", wanted)
        if value is not None or name not in kind._field_defaults:
            annotation = kind.__annotations__[name]
            values[name] = from_json(annotation, value, inside + name, strict=strict)
    for name in set(kind._fields) - set(kind._field_defaults) - set(values):
        if not _strip(kind.__annotations__[name])[1]:
            raise Unfit(inside + name, "given")
        values[name] = None
    return kind(**values)


def _simple(kind: Any, data: Any, where: str) -> Any:
    if kind is float and type(data) is int and abs(data) <= LARGEST:
        return float(data)
    if type(data) is not kind:  # in Python a bool is an int, in Varlink it is not
        raise Unfit(where, f"of type {_SIMPLE[kind]}")
    if kind is int and abs(data) > LARGEST:
        raise Unfit(where, "an int of 64 bits")
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in data):
        raise Unfit(where, "text: it has half of a surrogate pair")
    return data


def _strip(kind: Any) -> tuple[Any, bool]:
    """Return a type without `| None`, and whether it had that."""
    if isinstance(kind, UnionType):
        (inner,) = (member for member in get_args(kind) if member is not NoneType)
        return inner, True
    return kind, False


# Description


def describe(interface: Interface) -> str:
    """Return the interface in Varlink's interface language."""
    parts = [
        (interface.says, f"interface {interface.name}"),
        *(
            (kind.__doc__ or "", f"type {kind.__name__} {_body(kind)}")
            for kind in _named(interface)
        ),
        *(
            (
                method.says,
                f"method {method.name}{_body(method.takes)} -> {_body(method.gives)}",
            )
            for method in interface.methods
        ),
        *(
            (error.says, f"error {error.name} {_body(error.gives)}")
            for error in interface.errors
        ),
    ]
    return "\n\n".join(_comment(says) + what for says, what in parts) + "\n"


def _comment(text: str) -> str:
    lines = text.strip().splitlines()
    return "".join(f"# {line.strip()}".rstrip() + "\n" for line in lines)


def _body(kind: Any) -> str:
    if issubclass(kind, StrEnum):
        return f"({', '.join(kind)})"
    fields = [
        f"  {name}: {_type(annotation, optional=name in kind._field_defaults)}"
        for name, annotation in kind.__annotations__.items()
    ]
    return "(\n" + ",\n".join(fields) + "\n)" if fields else "()"


def _type(kind: Any, *, optional: bool = False) -> str:
    inner, nullable = _strip(kind)
    if get_origin(inner) is tuple:
        name = f"[]{_type(get_args(inner)[0])}"
    else:
        name = _SIMPLE.get(inner) or inner.__name__
    return f"?{name}" if optional or nullable else name


def _named(interface: Interface) -> list[Any]:
    """Return the named types of an interface, each before the types that use it."""
    found: dict[Any, None] = {}
    for method in interface.methods:
        for top in (method.takes, method.gives):
            for annotation in top.__annotations__.values():
                found.update(dict.fromkeys(_within(annotation)))
    return list(found)


def _within(kind: Any) -> Iterator[Any]:
    inner, _ = _strip(kind)
    if get_origin(inner) is tuple:
        yield from _within(get_args(inner)[0])
    elif inner not in _SIMPLE:
        if not issubclass(inner, StrEnum):
            for annotation in inner.__annotations__.values():
                yield from _within(annotation)
        yield inner


# The interface that every Varlink service has


class Info(NamedTuple):
    vendor: str
    product: str
    version: str
    url: str
    interfaces: tuple[str, ...]


class InterfaceName(NamedTuple):
    interface: str


class Description(NamedTuple):
    description: str


class MethodName(NamedTuple):
    method: str


class ParameterName(NamedTuple):
    parameter: str


SERVICE_INTERFACE = Interface(
    SERVICE,
    "The identity of a service, and its interfaces.",
    (
        Method("GetInfo", Nothing, Info, "Say what the service is."),
        Method(
            "GetInterfaceDescription",
            InterfaceName,
            Description,
            "Describe one of its interfaces.",
        ),
    ),
    (
        Error("InterfaceNotFound", InterfaceName, "There is no such interface."),
        Error("MethodNotFound", MethodName, "The interface has no such method."),
        Error("MethodNotImplemented", MethodName, "The method does nothing yet."),
        Error("InvalidParameter", ParameterName, "A parameter is of another type."),
        Error("PermissionDenied", Nothing, "The caller may not do this."),
        Error("ExpectedMore", Nothing, "The method answers only to more."),
    ),
)
