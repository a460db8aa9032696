# SPDX-License-Identifier: Apache-2.0
"""The manual page names what the command has, no less and no more, and is right."""

import argparse
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tapster import cli
from tapster.cli import events
from tapster.cli.parser import Parser
from tapster.daemon import __main__ as daemon
from tapster.daemon import reports

PAGE = Path(__file__).parents[2] / "man/tapster.1"
SOURCE = PAGE.parents[1] / "src/tapster"
TEXT = PAGE.read_text("utf-8")

# The body of each section and subsection by its title.
_, *_PARTS = re.split(r"^\.S[hs] (.+)\n", TEXT, flags=re.MULTILINE)
SECTIONS = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))

EXAMPLES = [
    (display or line).replace("\\e", "\\")
    for display, line in re.findall(
        r"^\.Bd .*\n((?:[^.].*\n)+)\.Ed|^\.Dl (.+)", SECTIONS["EXAMPLES"], re.MULTILINE
    )
]

# What the examples take for granted. QEMU gets as far as it can without a guest.
LAB = r"""
mount -t tmpfs tmpfs /run
(cat /etc/passwd; echo ci:x:4242:4242::/:/bin/false) >passwd
mount --bind passwd /etc/passwd
for bridge in br0 br1; do ip link add $bridge type bridge; done
ip link add eth0 type veth peer name eth1
ip link set eth0 up
truncate -s 1M disk.qcow2
qemu=$(command -v qemu-system-x86_64)
mkdir bin
cat >bin/qemu-system-x86_64 <<END
#!/bin/sh
echo '{"execute": "qmp_capabilities"} {"execute": "quit"}' |
    $qemu "\$@" -display none -S -qmp stdio
END
chmod +x bin/qemu-system-x86_64
PATH=$PWD/bin:$PATH
"""


def options_of(verb: str) -> dict[str, argparse.Action]:
    """The options that a verb declares, or with "" the command itself."""
    if verb:
        parser = Parser()
        parser.add_argument("--ledger")
        parser.add_argument("--socket")
        parser.add_argument("-v", "--verbose", action="store_true")
        import_module(cli.module_name(verb)).declare(parser)
    else:
        parser = cli.top_parser()
        cli.declare(parser)
    return {option: one for one in parser._actions for option in one.option_strings}


def items(section: str) -> set[str]:
    """The options that the lists of a section explain."""
    heads = re.findall(r"^\.It (Fl .+)", SECTIONS[section], re.MULTILINE)
    return {f"-{name}" for head in heads for name in re.findall(r"Fl (\S+)", head)}


SHARED = ("DEVICE OPTIONS", "WIRING OPTIONS", "SELECTION OPTIONS")
"""Sections with options of several verbs."""


def test_the_page_lints() -> None:
    lint = ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)]
    done = subprocess.run(lint, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_page_has_every_verb_in_the_order_of_the_help() -> None:
    assert re.findall(r"^\.Ss (.+)", TEXT, re.MULTILINE) == list(cli.VERBS)


def test_the_page_has_the_options_of_the_command_itself() -> None:
    assert items("DESCRIPTION") == set(options_of(""))


def test_watch_explains_every_event_that_the_daemon_reports() -> None:
    daemon = (PAGE.parents[1] / "src/tapster/daemon").rglob("*.py")
    reported = {
        event
        for path in daemon
        for event in re.findall(r'\breport\(\s*"(\w+)"', path.read_text("utf-8"))
    }
    explained = set(re.findall(r"\b[a-z]+\b", SECTIONS["watch"]))
    assert reported
    assert reported <= explained


def test_events_chooses_and_explains_every_event_that_is_recorded() -> None:
    daemon, operations = (
        "".join(path.read_text("utf-8") for path in (SOURCE / room).rglob("*.py"))
        for room in ("daemon", "operations")
    )
    calls = re.findall(r'\breport\(\s*"(\w+)"', daemon)
    problems = re.findall(r'\breturn \(?\s*f?"(\w+): (?:the|another) ', daemon)
    repairs = re.findall(r'\bevent, detail = "(\w+)"', operations)
    recorded = {"refused", "changed", *calls, *problems, *repairs} - set(reports.LIFE)
    assert recorded == set(events.EVENTS)
    both = SECTIONS["events"] + SECTIONS["watch"]
    assert recorded <= set(re.findall(r"\b[a-z]+\b", both))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_page_has_every_option_of(verb: str) -> None:
    explained = items(verb) | items("DESCRIPTION") - {"--version"}
    for section in SHARED:
        if f".Sx {section}" in SECTIONS[verb]:
            explained |= items(section)
    assert explained == set(options_of(verb))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_synopsis_has_every_option_of(verb: str) -> None:
    _, *usages = SECTIONS["SYNOPSIS"].split(".Nm tapster\n")
    (usage,) = (one for one in usages if one.startswith(f".Cm {verb}\n"))
    named = {f"-{name}" for name in re.findall(r"^\.Op Fl (\S+)", usage, re.MULTILINE)}
    assert named <= items(verb)
    # A short option stands for the long one beside it.
    assert items(verb) - named <= {"--all", "--quiet", "--output"}
    for section in SHARED:
        assert (section.lower() in usage) == (f".Sx {section}" in SECTIONS[verb])


def test_the_page_has_every_value_of_an_option() -> None:
    for option, action in options_of("add").items():
        if action.choices:
            head = f".It Fl {option[1:]} Cm {' | '.join(action.choices)}\n"
            assert head in SECTIONS["DEVICE OPTIONS"]


@pytest.mark.kernel
@pytest.mark.e2e
def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    """Each is run as it stands, with no name in FIN WAIT from the one before."""
    script = "\ntapster reap --now\n".join([LAB, *EXAMPLES])
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-euxc", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TAPSTER_LEDGER": str(tmp_path / "ledger.db"),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"SHUTDOWN"') == TEXT.count("qemu-system-x86_64 -")


def test_the_daemons_page_lints_and_has_its_options() -> None:
    page = PAGE.with_name("tapsterd.8")
    lint = ["mandoc", "-T", "lint", "-W", "warning", str(page)]
    done = subprocess.run(lint, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    heads = re.findall(r"^\.It Fl (?:h , Fl )?-(\S+)", page.read_text(), re.MULTILINE)
    parser = daemon.parser()
    declared = {option for one in parser._actions for option in one.option_strings}
    assert {f"--{name}" for name in heads} == declared - {"-h"}
