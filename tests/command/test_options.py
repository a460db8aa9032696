# SPDX-License-Identifier: Apache-2.0
"""Plain words are read as argparse reads them, without argparse."""

import random
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from tapster import cli
from tapster.cli import nic
from tapster.cli.options import Options, Reader, Unclear
from tapster.cli.parser import Parser

VERBS = [verb for verb in cli.VERBS if verb != "fleet"]
"""The verbs with options of one level."""
VALUES = ["", "-", "x", "br0", "tap", "5", "-5", "0", "1s", "yes", "a=b", "--", "a b"]
VALUES += ["lowest", "active", "10:20:30", "vnet*", "--id", "-h", "name", "-x", "5,7"]
VALUES += ["ls", "install"]
LINES = 3000


class Refused(Exception):
    """argparse refuses the words, or prints its help."""


class Strict(Parser):
    def error(self, message: str) -> Any:
        raise Refused(message)

    def print_help(self, file: Any = None) -> None:
        raise Refused("help")


def declare(verb: str) -> Callable[[Any], None]:
    if verb == "":
        return cli.declare
    declare_verb: Callable[[Any], None] = import_module(cli.module_name(verb)).declare
    return declare_verb


def line(chance: random.Random, parser: Parser) -> list[str]:
    """Return a random command line, mostly of what the parser knows."""
    flags = [name for action in parser._actions for name in action.option_strings]
    words = []
    for _ in range(chance.randrange(5)):
        value = chance.choice(VALUES)
        if chance.random() < 0.3 or not flags:
            words.append(value)
            continue
        flag = chance.choice(flags)
        # Of --flag=-- argparse makes an empty list.
        given = [[f"{flag}={value}"]] if value != "--" else []
        words += chance.choice([[flag], [flag, value], *given])
    return words


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_what_is_read_without_argparse_is_read_as_by_argparse(verb: str) -> None:
    chance = random.Random(verb)
    plain = 0
    for _ in range(LINES // len(VERBS)):
        parser = Strict(prog=verb)
        declare(verb)(parser)
        words = line(chance, parser)
        reader = Reader()
        declare(verb)(reader)
        try:
            found = vars(reader.read(words))
        except Unclear:
            continue
        plain += 1
        assert found == vars(parser.parse_args(words, Options())), words
    assert plain


PLAIN = {
    "": ["ls", "--ledger /x ls -a", "-v --socket=/run/s add --bridge br0", ""],
    "add": [
        "--bridge br0",
        "--bridge=br0 --owner web --name ci%d --naming next --queues 2",
        "--ovs ovs0 --vlan 5 --trunk 5,10-20 --trunk 30 --external-id a=b --id",
        "--filter --address 192.0.2.1 --address=2001:db8::1 --no-learning --down",
        "--wait --label a=b --label c=d --fin-wait 2s --no-vnet-hdr",
    ],
    "rm": ["vnet0", "--owner web", "vnet0 vnet1 --ignore-missing", "--owner x a b"],
    "ls": ["", "-a", "--json --sort name", "vnet* --state active"],
    "run": ["--bridge br0 -- qemu -x --y=z", "--bridge br0 true"],
    "open": ["vnet0 -- cmd --flag {fd}", "--owner web vnet0 -- cmd"],
    "set": ["vnet0 --bridge= --up", "ID --inbound 1000:2000:512"],
}


@pytest.mark.parametrize("verb", PLAIN)
def test_everyday_words_are_plain(verb: str) -> None:
    for words in PLAIN[verb]:
        reader = Reader()
        declare(verb)(reader)
        reader.read(words.split())


@pytest.mark.parametrize("words", ["bridge=br0,queues=2", "kind=macvtap,link=eth0"])
def test_properties_of_a_nic_are_plain(words: str) -> None:
    reader = Reader()
    nic.declare(reader)  # type: ignore[arg-type] # it takes declarations as a Parser
    reader.read([f"--{pair}" for pair in words.split(",")])


def test_a_plain_verb_does_not_import_argparse() -> None:
    code = (
        "import sys; from tapster import cli; cli.main(['--version'])\n"
        "assert 'argparse' not in sys.modules\n"
        "try: cli.main(['lss'])\n"
        "except SystemExit: assert 'argparse' in sys.modules\n"
        "else: sys.exit('the mistake was not found')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
