# SPDX-License-Identifier: Apache-2.0
"""Compute the completion of fish from the parser of the command."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tapster import cli
from tapster.cli import nic
from tapster.cli.parser import Parser
from tests.repo.test_manual import options_of

PAGE = Path(__file__).parents[2] / "completions/tapster.fish"

BRIDGES = "(__tapster_names type bridge)"
VALUES = {
    "--bridge": BRIDGES,
    "--link": "(__tapster_names up)",
    "--user": "(__fish_complete_users)",
    "--group": "(__fish_complete_groups)",
    "--netns": "(__tapster_netns)",
    "--link-netns": "(__tapster_netns)",
    "--nic": "(__tapster_nic)",
    "--pid": "(__fish_complete_pids)",
}
"""What fish offers as the value of an option."""
FILES = ("--ledger", "--socket", "--config", "--output")
"""Options whose value is a file."""
READING = ("ls", "show", "watch")
"""Verbs that take the name of a lease without its owner."""

MARK = "# From here on, `python -m tests.repo.pages` writes this file.\n"


def text() -> str:
    """Return the file: the part that is written by hand, and the rest."""
    head, mark, _ = PAGE.read_text("utf-8").partition(MARK)
    return "\n".join([head + mark, *_nic(), "", *_lines()]) + "\n"


def _lines() -> Iterator[str]:
    yield "complete -c tapster -f"
    yield "complete -c tapster -n __tapster_command -a '(__tapster_rest)'"
    for verb, help_ in cli.VERBS.items():
        yield _complete("not __tapster_verb", f"-a {verb}", _quoted(help_))
    for option in _options(""):
        yield _complete("not __tapster_verb", *option)
    verbs: dict[tuple[str, ...], list[str]] = {}
    for verb in cli.VERBS:
        operands = [(f"-a {_quoted(operand)}", "") for operand in _operands(verb)]
        for words in [*_options(verb), *operands]:
            verbs.setdefault(words, []).append(verb)
    for words, of in verbs.items():
        yield _complete(f"__tapster_is {' '.join(of)}", *words)


def _complete(condition: str, *words: str) -> str:
    *rest, description = words
    line = f"complete -c tapster -n '{condition}' {' '.join(rest)}"
    return f"{line} -d {description}" if description else line


def _options(verb: str) -> Iterator[tuple[str, ...]]:
    shared = {name: action.help for name, action in options_of("").items()}
    for action in dict.fromkeys(options_of(verb).values()):
        names = sorted(action.option_strings, key=lambda name: name.startswith("--"))
        help_ = _plain(action.help or shared.get(names[-1]) or "")
        for name in [n for n in names if n.startswith("--")]:
            short = [f"-s {n[1:]}" for n in names if not n.startswith("--")]
            yield (*short, f"-l {name[2:]}", *_value(action, name), _quoted(help_))


def _value(action: argparse.Action, name: str) -> tuple[str, ...]:
    if action.nargs == 0 or action.nargs == "?":
        return ()
    if action.choices:
        return ("-x", f"-a {_quoted(' '.join(map(str, action.choices)))}")
    if name in FILES:
        return ("-r", "-F")
    if name in VALUES:
        return ("-x", f"-a {_quoted(VALUES[name])}")
    return ("-x",)


def _operands(verb: str) -> Iterator[str]:
    parser = Parser()
    import_module(cli.module_name(verb)).declare(parser)
    operands = (one for one in parser._actions if not one.option_strings)
    for action in operands:
        if action.choices:
            yield " ".join(map(str, action.choices))
        elif action.dest == "lease" and verb in READING:
            yield "(__tapster_leased; __tapster_ids)"
        elif action.dest == "lease":
            yield "(__tapster_changed)"
        elif action.dest == "name":
            yield "(__tapster_leased)"


def _nic() -> Iterator[str]:
    """Return the function that completes a property of --nic."""
    parser = Parser(add_help=False)
    nic.declare(parser)
    yield "function __tapster_nic # KEY=VALUE,...: what the last part can be"
    yield "    set -l given (string replace -- --nic= '' (commandline -ct))"
    yield "    set -l before (string match -r '^.*,' -- $given)"
    yield '    set -l last (string replace -- "$before" \'\' "$given")'
    yield '    switch "$last"'
    for action in parser._actions:
        name = action.option_strings[0]
        value = VALUES.get(name, " ".join(map(str, action.choices or ())))
        if value:
            yield f"        case '{name[2:]}=*'"
            yield f"            printf '%s\\n' \"$before\"{name[2:]}={_list(value)}"
    yield "        case '*=*'"
    yield "        case '*'"
    keys = [
        action.option_strings[0][2:] + ("" if action.nargs == 0 else "=")
        for action in parser._actions
    ]
    yield f"            set -l keys {' '.join(keys)}"
    yield "            printf '%s\\n' \"$before\"$keys"
    yield "    end"
    yield "end"


def _list(value: str) -> str:
    return value if value.startswith("(") else f"{{{value.replace(' ', ',')}}}"


def _plain(help_: str) -> str:
    return help_.replace("%%", "%")


def _quoted(words: str) -> str:
    return "'" + words.replace("\\", "\\\\").replace("'", "\\'") + "'"
