# SPDX-License-Identifier: Apache-2.0
"""Varlink's interfaces: methods, errors and their types, and the description. Pure.

For services. A client does without them: see client.py.
"""

from tapster.light import Any, Iterator, NamedTuple, StrEnum, get_args, get_origin
from tapster.rpc.varlink import SERVICE, SIMPLE, strip


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
    """The method answers a call with `more` in several parts if the answer is long.
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


def describe(interface: Interface) -> str:
    """Return the interface in Varlink's interface language."""
    parts = [
        (interface.says, f"interface {interface.name}"),
        *(
            (vars(kind)["__doc__"] or "", f"type {kind.__name__} {_body(kind)}")
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
    inner, nullable = strip(kind)
    if get_origin(inner) is tuple:
        name = f"[]{_type(get_args(inner)[0])}"
    else:
        name = SIMPLE.get(inner) or inner.__name__
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
    inner, _ = strip(kind)
    if get_origin(inner) is tuple:
        yield from _within(get_args(inner)[0])
    elif inner not in SIMPLE:
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
