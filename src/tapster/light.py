# SPDX-License-Identifier: Apache-2.0
"""What Tapster uses of Python's `typing`, `enum`, `contextlib` and `functools`.

The command sits in the start path of VMs. To import `typing` takes longer than to start
Python, and a class of `typing.NamedTuple` takes as long to define as a module to load.
`enum` takes a quarter of Python's start, and as much again for ten enumerations.
`contextlib` and `functools` import `collections`: half of Python's start.
Type checkers read the real definitions. When a program runs, the names of types mean
nothing, and a NamedTuple is the class below: it compiles its constructor when many
tuples are made.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Container,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from contextlib import (
        AbstractContextManager,
        closing,
        contextmanager,
        suppress,
    )
    from enum import StrEnum
    from functools import cached_property
    from types import NoneType, UnionType
    from typing import (
        Any,
        ClassVar,
        NamedTuple,
        NoReturn,
        Protocol,
        Self,
        TypedDict,
        TypeVar,
        Unpack,
        cast,
        get_args,
        get_origin,
    )
else:
    # Python's start has imported this; `collections.abc` would import `collections`.
    from _collections_abc import (
        Callable,
        Collection,
        Container,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    NoneType, UnionType = type(None), type(int | str)

    try:
        from _collections import _tuplegetter
    except ImportError:  # as in Python's own collections
        from operator import itemgetter

        def _tuplegetter(index, doc):
            return property(itemgetter(index), doc=doc)

    class _Type:
        """A name of a type: it can be subscripted, subclassed and ignored."""

        def __class_getitem__(cls, _):
            return cls

        def __init_subclass__(cls, **_):
            pass

    # One class for all: each would take as long to make as a small module to import.
    Protocol = ClassVar = AbstractContextManager = Unpack = TypedDict = _Type
    Any = NoReturn = Self = object

    class TypeVar:
        """As typing.TypeVar: aliases such as Generator[..., T] can be subscripted."""

        def __init__(self, name, **_):
            self.__name__ = name

        def __typing_subst__(self, kind):
            return kind

        def __or__(self, _):
            return self

        __ror__ = __or__

    def cast(_, value):
        """Return the value, as typing.cast does."""
        return value

    def get_args(kind):
        """Return the arguments of `X | Y` or `tuple[...]`, as typing.get_args does."""
        return getattr(kind, "__args__", ())

    def get_origin(kind):
        """Return the type that is subscripted, as typing.get_origin does."""
        return getattr(kind, "__origin__", None)

    class suppress:
        """As contextlib.suppress."""

        def __init__(self, *kinds):
            self._kinds = kinds

        def __enter__(self):
            pass

        def __exit__(self, kind, error, trace):
            return kind is not None and issubclass(kind, self._kinds)

    class closing:
        """As contextlib.closing."""

        def __init__(self, thing):
            self._thing = thing

        def __enter__(self):
            return self._thing

        def __exit__(self, *_):
            self._thing.close()

    class _Block:
        """Runs a generator up to its `yield`, then a block, then the rest."""

        def __init__(self, generator):
            self._generator = generator

        def __enter__(self):
            try:
                return next(self._generator)
            except StopIteration:
                raise RuntimeError("the generator did not yield") from None

        def __exit__(self, kind, error, trace):
            if kind is None:
                try:
                    next(self._generator)
                except StopIteration:
                    return False
                raise RuntimeError("the generator yielded twice")
            try:
                self._generator.throw(error)
            except StopIteration as end:
                return end is not error
            except BaseException as raised:
                # A StopIteration cannot leave a generator: Python raises RuntimeError.
                turned = isinstance(error, StopIteration) and (
                    isinstance(raised, RuntimeError) and raised.__cause__ is error
                )
                if raised is not error and not turned:
                    raise
                error.__traceback__ = trace
                return False
            raise RuntimeError("the generator yielded after an error")

    def contextmanager(function):
        """As contextlib.contextmanager."""

        def block(*values, **named):
            return _Block(function(*values, **named))

        block.__doc__ = function.__doc__
        return block

    class cached_property:
        """As functools.cached_property."""

        def __init__(self, function):
            self._function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, _, name):
            self._name = name

        def __get__(self, instance, _=None):
            if instance is None:
                return self
            value = instance.__dict__[self._name] = self._function(instance)
            return value

    FEW = 20
    """How many tuples of a class are made without a compiled constructor."""

    class _NamedTupleType(type):
        """Makes the subclasses of NamedTuple: tuples whose fields have names."""

        def __new__(mcs, name, bases, body):
            if bases == (tuple,):  # NamedTuple itself
                return super().__new__(mcs, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            body["_fields"] = body["__match_args__"] = fields
            body["_field_defaults"] = {
                field: body.pop(field) for field in fields if field in body
            }
            body["__slots__"] = ()
            body["_made"] = 0
            for index, field in enumerate(fields):
                body[field] = _tuplegetter(index, None)
            return super().__new__(mcs, name, bases, body)

        @property
        def __doc__(cls):  # help() shows the text of a class, but not of its fields
            text = vars(cls).get("__doc__")
            return _with_fields(cls, text) if text and "_made" in vars(cls) else text

        @property
        def __signature__(cls):
            from inspect import Signature, signature

            found = [*signature(_constructor(cls)).parameters.values()][1:]
            types = cls.__annotations__
            return Signature(
                [
                    parameter.replace(annotation=types[parameter.name])
                    for parameter in found
                ]
            )

    def _with_fields(cls, text):
        """Add to the docstring of a class what its source says of each field."""
        from textwrap import indent, wrap

        lines = []
        for field, (kind, meaning) in fields(cls).items():
            default = ""
            if field in cls._field_defaults:
                value = cls._field_defaults[field]
                plain = str(value) if isinstance(value, str) else value  # no StrEnum
                default = f" = {plain!r}"
            lines += [
                f"{field}: {kind}{default}",
                *("    " + line for line in wrap(meaning, 70)),
            ]
        return f"{text.rstrip()}\n\n" + indent("\n".join(lines), "    ")

    def _constructor(cls):
        """Compile the function that makes a tuple from the fields of a class."""
        names = ", ".join(cls._fields)
        tuple_of = f"({names},)" if names else "()"
        code = f"lambda _cls, {names}: _new(_cls, {tuple_of})"
        made = eval(code, {"_new": tuple.__new__})  # noqa: S307 - names of fields
        made.__defaults__ = tuple(cls._field_defaults.values())
        made.__name__, made.__qualname__ = "__new__", f"{cls.__qualname__}.__new__"
        made.__module__ = cls.__module__
        return made

    class NamedTuple(tuple, metaclass=_NamedTupleType):
        """As typing.NamedTuple."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            # To compile a constructor takes as long as to make fifty tuples this way.
            cls._made += 1
            others = cls._fields[len(values) :]
            given = {**cls._field_defaults, **named}
            wrong = not named.keys() <= {*others} or not given.keys() >= {*others}
            if wrong or len(values) > len(cls._fields) or cls._made > FEW:
                cls.__new__ = staticmethod(_constructor(cls))
                return cls(*values, **named)  # raises if they do not fit
            return tuple.__new__(cls, (*values, *[given[name] for name in others]))

        @classmethod
        def _make(cls, values):
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"{len(cls._fields)} values expected, not {len(made)}")
            return made

        def _replace(self, /, **changes):
            values = [*self]
            try:
                for field, value in changes.items():
                    values[self._fields.index(field)] = value
            except ValueError:
                unknown = [field for field in changes if field not in self._fields]
                raise ValueError(f"unexpected field names: {unknown!r}") from None
            return tuple.__new__(type(self), values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            fields = zip(self._fields, self, strict=True)
            shown = ", ".join(f"{name}={value!r}" for name, value in fields)
            return f"{type(self).__name__}({shown})"

    class _StrEnumType(type):
        """Makes the subclasses of StrEnum. Each value of a subclass is a text."""

        def __new__(mcs, name, bases, body):
            texts = {
                key: value
                for key, value in body.items()
                if isinstance(value, str) and not key.startswith("_")
            }
            cls = super().__new__(mcs, name, bases, body)
            cls._members = {text: str.__new__(cls, text) for text in texts.values()}
            cls._names = {text: key for key, text in texts.items()}
            for key, text in texts.items():
                setattr(cls, key, cls._members[text])
            return cls

        def __call__(cls, text):
            try:
                return cls._members[text]
            except (KeyError, TypeError):
                message = f"{text!r} is not a valid {cls.__qualname__}"
                raise ValueError(message) from None

        def __getitem__(cls, name):
            return cls.__members__[name]

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __contains__(cls, text):
            return text in cls._members

        @property
        def __members__(cls):
            return {cls._names[member]: member for member in cls}

    class StrEnum(str, metaclass=_StrEnumType):
        """As enum.StrEnum."""

        @property
        def name(self):
            cls = type(self)
            return cls._names[self]

        value = property(str.__str__)
        __str__ = str.__str__

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __reduce__(self):
            return type(self), (self.value,)


def fields(record: type) -> dict[str, tuple[str, str]]:
    """Return the type and the text of each field of a named tuple, from its source.

    The text is what stands below the field, or "". Without the source: {}.
    """
    import ast
    from inspect import getsource

    try:
        (parsed,) = ast.parse(getsource(record)).body
    except (OSError, TypeError):
        return {}
    found = {}
    below: object = None
    for part in reversed(parsed.body if isinstance(parsed, ast.ClassDef) else []):
        if isinstance(part, ast.AnnAssign):
            text = " ".join(below.split()) if isinstance(below, str) else ""
            found[ast.unparse(part.target)] = ast.unparse(part.annotation), text
        below = part.value if isinstance(part, ast.Expr) else None
        below = below.value if isinstance(below, ast.Constant) else None
    return dict(reversed(found.items()))


_A = TypeVar("_A")
_R = TypeVar("_R")
MOST_REMEMBERED = 64


def remembered(function: Callable[[_A], _R]) -> Callable[[_A], _R]:
    """Remember what a pure function returned for the last few arguments.

    As functools.lru_cache, whose import takes longer than a request. An exception is
    not remembered.
    """
    known: dict[_A, _R] = {}

    def call(argument: _A) -> _R:
        try:
            return known[argument]
        except KeyError:  # or another thread has just forgotten it
            pass
        result = function(argument)
        if len(known) >= MOST_REMEMBERED:
            known.clear()
        known[argument] = result
        return result

    call.__doc__ = function.__doc__
    return call


__all__ = [
    "TYPE_CHECKING",
    "AbstractContextManager",
    "Any",
    "Callable",
    "ClassVar",
    "Collection",
    "Container",
    "Generator",
    "Iterable",
    "Iterator",
    "Mapping",
    "NamedTuple",
    "NoReturn",
    "NoneType",
    "Protocol",
    "Self",
    "Sequence",
    "StrEnum",
    "TypeVar",
    "TypedDict",
    "UnionType",
    "Unpack",
    "cached_property",
    "cast",
    "closing",
    "contextmanager",
    "fields",
    "get_args",
    "get_origin",
    "remembered",
    "suppress",
]
