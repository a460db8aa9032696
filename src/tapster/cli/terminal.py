# SPDX-License-Identifier: Apache-2.0
"""The terminal: its width, and whether it shows colours."""

import os
import sys

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"
"""Parameters of the SGR escape sequence."""
DEFAULT_WIDTH = 80


def width() -> int:
    """Return how many columns a line may have.

    `COLUMNS` takes precedence. A pipe gets the default, so that the columns of a table
    do not depend on the window in which a script was started.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and len(columns) < 6:
        return int(columns) or DEFAULT_WIDTH
    if is_terminal():
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns or DEFAULT_WIDTH
        except OSError:
            pass  # the terminal does not say
    return DEFAULT_WIDTH


def is_terminal() -> bool:
    """Tell whether people read standard output."""
    return sys.stdout.isatty()


def takes_escapes() -> bool:
    """Tell whether standard output is a terminal that knows escape sequences."""
    return is_terminal() and os.environ.get("TERM") not in (None, "", "dumb")


def has_colours() -> bool:
    """Tell whether to print colours, which NO_COLOR forbids."""
    return takes_escapes() and not os.environ.get("NO_COLOR")


def paint(text: str, style: str | None) -> str:
    """Return text in a colour, or as it is without one."""
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def plain(text: str, *, lines: bool = False) -> str:
    """Return text without characters that control a terminal: they are escaped, the
    ends of lines, too, unless the text is of several `lines`.

    Other users choose names of devices and namespaces, and a daemon its answers.
    """
    if text.isprintable():
        return text
    kept = "\n" if lines else ""
    return "".join(
        letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1]
        for letter in text
    )


def complain(error: Exception, about: str = "") -> None:
    """Print an error and its notes as lines of standard error. Each line says first
    what the error is `about`."""
    for line in (str(error), *getattr(error, "__notes__", ())):
        print(f"tapster: {about}{plain(line, lines=True)}", file=sys.stderr)
