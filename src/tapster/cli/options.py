# SPDX-License-Identifier: Apache-2.0
"""Read plain options without argparse, which takes as long as Python's own start.

A verb declares its options once, as calls of `add_argument`. A Reader takes the
declarations first, and reads the command line if each word of it is plain: a known
option with a good value, or an operand. For help, for a mistake and for rarer forms,
the same declarations go to argparse, which then reads the same words and says what is
wrong.
"""

from tapster.light import TYPE_CHECKING, Any, Callable, Sequence

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    Options = Namespace
else:

    class Options:
        """The values of options by their names, as argparse.Namespace."""

        def __init__(self, **values):
            self.__dict__.update(values)


SUPPRESS = "==SUPPRESS=="
"""As argparse.SUPPRESS: an option that is not given is absent from the result."""
YES_OR_NO = "yes_or_no"
"""The action of a pair of options: --filter and --no-filter."""
GATHER = "gather"
"""The action that adds a tuple to the earlier values; an empty tuple drops them."""

_FLAGS = {"store_true": True, "store_false": False}
"""Actions of options without a value, and what they store."""
_ACTIONS = {"store", "append", YES_OR_NO, GATHER, *_FLAGS}
_REMAINDER = "..."


class BadValue(Exception):
    """A value of an option is not of the right form. Its text is for people."""


class Unclear(Exception):
    """The words are wrong, or not plain: argparse has to read them."""


def read(
    words: Sequence[str],
    declare: Callable[[Any], None],
    make_parser: Callable[[], "ArgumentParser"],
) -> Options:
    """Return the values of the options that `declare` declares.

    Ends the process with help or a complaint, as argparse does.
    """
    try:
        reader = Reader()
        declare(reader)
        return reader.read(words)
    except Unclear:
        parser = make_parser()
        declare(parser)
        return parser.parse_args(words, Options())


class Reader:
    """Takes declarations as argparse does, and reads plain words. Raises Unclear."""

    command_follows = False
    """As in parser.py: a command follows `--`; it becomes the option `command`."""

    def __init__(self) -> None:
        self._options: dict[str, tuple[str, str, dict[str, Any]]] = {}
        self._operands: list[tuple[str, dict[str, Any]]] = []
        self._defaults: dict[str, Any] = {}

    def add_argument(self, *names: str, **how: Any) -> None:
        action = how.get("action", "store")
        if action not in _ACTIONS or "required" in how:
            raise Unclear
        if not names[0].startswith("-"):
            self._operands.append((names[0], how))
            return
        long = [name for name in names if name.startswith("--")]
        dest = how.get("dest") or long[0][2:].replace("-", "_")
        default = how.get("default", not _FLAGS[action] if action in _FLAGS else None)
        if action == YES_OR_NO:
            action = "store_true"
            for name in long:
                self._options[f"--no-{name[2:]}"] = (dest, "store_false", how)
        for name in names:
            self._options[name] = (dest, action, how)
        if default is not SUPPRESS:
            self._defaults.setdefault(dest, default)

    def add_subparsers(self, **_: Any) -> None:
        raise Unclear

    def set_defaults(self, **values: Any) -> None:
        self._defaults.update(values)

    def read(self, words: Sequence[str]) -> Options:
        """Return the values of the options."""
        values = dict(self._defaults)
        if self.command_follows and "--" in words:
            place = words.index("--")
            values["command"] = list(words[place + 1 :])
            words = words[:place]
        rest = list(words)
        rest.reverse()
        operands: list[str] | None = None
        while rest:
            if not _is_option(rest[-1]) or self._is_command(rest[-1]):
                if operands is not None:
                    raise Unclear
                operands = self._take_operands(rest)
            else:
                self._read_option(rest, values)
        self._place(operands or [], values)
        return Options(**values)

    def _is_command(self, word: str) -> bool:
        """Tell whether a word begins the command that is the only operand."""
        kinds = [how.get("nargs") for _, how in self._operands]
        return word == "--" and kinds == [_REMAINDER]

    def _take_operands(self, rest: list[str]) -> list[str]:
        all_others = any(how.get("nargs") == _REMAINDER for _, how in self._operands)
        operands = []
        while rest and (all_others or not _is_option(rest[-1])):
            operands.append(rest.pop())
        return operands

    def _read_option(self, rest: list[str], values: dict[str, Any]) -> None:
        name, equals, value = rest.pop().partition("=")
        if name not in self._options:
            raise Unclear
        dest, action, how = self._options[name]
        if action in _FLAGS:
            if equals:
                raise Unclear
            values[dest] = _FLAGS[action]
            return
        if not equals:
            if rest and not _is_option(rest[-1]):
                value = rest.pop()
            elif how.get("nargs") == "?":
                values[dest] = how.get("const")
                return
            else:
                raise Unclear
        read = _read_value(value, how)
        if action == "append":
            values[dest] = [*(values.get(dest) or ()), read]
        elif action == GATHER:
            values[dest] = (*values.get(dest, ()), *read) if read else ()
        else:
            values[dest] = read

    def _place(self, words: list[str], values: dict[str, Any]) -> None:
        """Give the operands their words, from left to right."""
        for dest, how in self._operands:
            nargs = how.get("nargs")
            count = 1 if nargs in (None, "?") else len(words)
            taken = [_read_value(word, how) for word in words[:count]]
            words = words[count:]
            if nargs in (None, "+") and not taken:
                raise Unclear
            if nargs in (None, "?"):
                values[dest] = taken[0] if taken else how.get("default")
            else:
                values[dest] = taken or how.get("default") or []
        if words:
            raise Unclear


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _read_value(word: str, how: dict[str, Any]) -> Any:
    try:
        value = how["type"](word) if "type" in how else word
    except (BadValue, ValueError, TypeError):
        raise Unclear from None
    if "choices" in how and value not in how["choices"]:
        raise Unclear
    return value
