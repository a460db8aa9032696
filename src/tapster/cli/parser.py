# SPDX-License-Identifier: Apache-2.0
"""Read options with argparse: for help, for mistakes, and for rarer forms.

Plain words are read in options.py, without this module.
"""

import argparse
import sys
from collections.abc import Iterable

from tapster.cli import terminal
from tapster.cli.hint import hint
from tapster.cli.options import GATHER, SUPPRESS, YES_OR_NO, BadValue
from tapster.errors import RequestError
from tapster.light import Any, NoReturn


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Format help as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        # argparse would ask shutil, at the first option that is declared: its
        # imports take a twentieth of a verb's time.
        super().__init__(prog, width=terminal.width() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fill each paragraph, except where lines are indented."""
        from textwrap import fill  # only for help

        return "\n\n".join(
            paragraph
            if "\n " in paragraph
            else fill(paragraph, width, initial_indent=indent, subsequent_indent=indent)
            for paragraph in text.strip("\n").split("\n\n")
        )


class _Gather(argparse.Action):
    """Add to the values given before; an empty value drops them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, ())
        setattr(namespace, self.dest, (*before, *values) if values else ())


class Parser(argparse.ArgumentParser):
    """Parse options, never from a part of their name; complain in one line."""

    failure = 2
    """The exit code of wrong usage."""
    command_follows = False
    """A command follows `--`; it becomes the option `command`."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that is unique today may be ambiguous tomorrow.
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)
        self.register("action", YES_OR_NO, argparse.BooleanOptionalAction)
        self.register("action", GATHER, _Gather)

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:
        # argparse tells its own SUPPRESS by identity.
        given: dict[str, Any] = {
            key: argparse.SUPPRESS if value == SUPPRESS else value
            for key, value in how.items()
        }
        action = super().add_argument(*names, **given)
        if action.nargs == argparse.REMAINDER:
            action.required = False  # else an error names it, though it may be empty
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # argparse would take options between an operand and the command for the
        # command's own.
        if not (self.command_follows and "--" in args):
            return super().parse_known_args(args, namespace)
        place = args.index("--")
        parsed, unknown = super().parse_known_args(args[:place], namespace)
        parsed.command = args[place + 1 :]
        return parsed, unknown

    def print_help(self, file: Any = None) -> None:
        # argparse would not say that the help could not be written.
        print(self.format_help(), end="", file=file, flush=True)

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments: ")
        wanted = words.split(" ")[0]
        if wanted.startswith("-"):
            option = wanted.partition("=")[0]
            message = f"there is no option {option!r}"
            message += self.hint(option, self._option_string_actions)
        elif unknown:
            message = f"{wanted!r} is one argument too many"
        message = message.replace("ignored explicit argument", "it takes no value, not")
        print(f"{self.prog}: {message}; see: {self.prog} --help", file=sys.stderr)
        sys.exit(self.failure)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except BadValue as error:
            raise argparse.ArgumentError(action, str(error)) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(map(str, action.choices or ()))
        if choices and value not in choices:
            near = self.hint(value, choices)
            message = f"{value!r} is not one of {', '.join(choices)}{near}"
            raise argparse.ArgumentError(action, message)

    @staticmethod
    def hint(wanted: str, known: Iterable[str]) -> str:
        """Return a question about the nearest known word, or nothing."""
        return hint(wanted, known)


class NicParser(Parser):
    """Parse the properties of one device, as --nic has them. Raises RequestError."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition("=")[0]
        if unknown:
            near = self.hint(unknown, self._option_string_actions)
            message = f"there is no option {unknown!r}{near}"
        raise RequestError(f"--nic: {message.replace('--', '')}")
