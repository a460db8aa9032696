# SPDX-License-Identifier: Apache-2.0
"""A value of an option that can mean nothing is refused, and nothing is done.

A variable of a script may be unset: `tapster add --bridge br0 --address "$IP"` must not
make a port without a filter.
"""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from lab import shell
from tapster.cli import events
from tapster.model import HistoryEvent

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


class Command:
    """The command, on a ledger."""

    def __init__(self, ledger: Path) -> None:
        self._environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}

    def __call__(self, *words: str, status: int = 0, **variables: str) -> str:
        """Run the words; return what was printed, with errors."""
        done = subprocess.run(
            [shell.TAPSTER, *words],
            env=self._environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == status, done
        return done.stdout


@pytest.fixture
def tapster(ledger: Path) -> Command:
    return Command(ledger)


@pytest.mark.parametrize(
    "option",
    [
        *("address", "external-id", "inbound", "mtu", "outbound", "outbound-pps"),
        *("trunk", "vlan", "mac", "key", "link-netns", "netns"),
    ],
)
@pytest.mark.parametrize("verb", ["add", "run"])
def test_an_empty_value_makes_no_device(
    tapster: Command, verb: str, option: str
) -> None:
    command = ["--", "true"] if verb == "run" else []
    failed = 125 if verb == "run" else 2
    words = (verb, "--bridge", "br0", f"--{option}", "")
    assert f"--{option}" in (said := tapster(*words, *command, status=failed))
    assert "is empty" in said
    assert tapster("ls", "--all", "--quiet") == ""


def test_a_nic_may_drop_what_the_others_have(tapster: Command) -> None:
    nics = ("--nic", "bridge=br0", "--nic", "bridge=br0,address=,no-filter")
    words = ("run", "--address", "192.0.2.1", "--no-guard", *nics, "--")
    shown = tapster(*words, shell.TAPSTER, "ls", "--format", "{filter} {addresses}")
    assert shown == "yes 192.0.2.1\nno \n"
    said = tapster("run", "--nic", "bridge=br0,address=", "--", "true", status=125)
    assert said.startswith("tapster: --address is empty")


@pytest.mark.parametrize("nic", ["", "bridge=br0,", ",bridge=br0", "bridge=br0,,mtu=9"])
def test_an_empty_part_of_a_nic_is_refused(tapster: Command, nic: str) -> None:
    said = tapster("run", "--nic", nic, "--", "true", status=125)
    assert said.startswith(f"tapster: --nic {nic!r} has an empty part")


@pytest.mark.parametrize(
    "words",
    [
        ("--socket", "", "ls"),
        ("doctor", "--remove", ""),
        ("doctor", "--config", "", "--user", "root"),
        ("fleet", "--config", "", "ls"),
        ("fleet", "ls", "--host", ""),
        ("fleet", "where", ""),
        ("fleet", "evict", ""),
        ("open", "vnet0", "--netns", "", "--", "true"),
        ("report", "-o", ""),
        ("set", "vnet0", "--netns", "", "--up"),
        ("who", "--label", ""),
        ("who", "--lease", ""),
        ("who", "--mac", ""),
        ("events", "--lease", ""),
    ],
)
def test_an_empty_value_stands_for_no_default(
    tapster: Command, words: tuple[str, ...]
) -> None:
    assert "is empty" in tapster(*words, status=125 if "open" in words else 2)


def test_an_empty_verb_is_no_verb(tapster: Command) -> None:
    assert tapster("", status=2).startswith("tapster: there is no verb ''")
    said = tapster("recover", "", status=2)
    assert said.startswith("tapster recover: '' is one argument too many")


@pytest.mark.parametrize("given", ["nan", "inf", "-5", "1_0", "1e3", "5x", "ms", "."])
@pytest.mark.parametrize(
    "words", ["add --fin-wait=", "add --wait=", "top --count 1 --interval="]
)
def test_what_is_no_duration_is_refused(
    tapster: Command, words: str, given: str
) -> None:
    said = tapster(*f"{words}{given}".split(), status=2)
    assert f"{given!r} is not a duration such as 10" in said
    assert tapster("ls", "--quiet") == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("top --count 0", "--count: '0' is not 1 or more"),
        ("top --count=-1", "--count: '-1' is not 1 or more"),
        ("top --interval 0", "--interval: '0' is not more than 0 seconds"),
        ("who --limit 0", "--limit: '0' is not 1 or more"),
        (f"who --limit {1 << 70}", "limit must be 1 to 9223372036854775807"),
        ("who --mac 52-54-00", "MAC '52-54-00' is not of the form 52:54:00:12"),
        ("who --at nan", "time 'nan' is not of the form"),
        ("who --since=-inf", "time '-inf' is not of the form"),
        ("who --since 1h --until 2h", "--until '2h' is before --since '1h'"),
        ("events --since 1h --until 2h", "--until '2h' is before --since '1h'"),
        ("report --since 1h --until 2h", "--until '2h' is before --since '1h'"),
        ("ls -q --json", "--json and --quiet do not go together: give one"),
        ("ls --id --format {name}", "--format and --id do not go together"),
        ("add --id --json", "--json and --id do not go together: give one"),
        ("ls --format {name", "--format: '{name' has no closing brace"),
        ("ls --format {name.x}", "'name' has no parts, as 'name.x' asks for"),
        ("add --trunk 10-5", "'10-5': a range rises, within 1 to 4094"),
        ("fleet --config /none ls", "there is no file '/none'"),
        ("doctor --config x", "--config goes with --user; to look for faults"),
        ("doctor --config /none --user root", "/none: No such file or directory"),
    ],
)
def test_the_error_says_what_would_be_right(
    tapster: Command, words: str, said: str
) -> None:
    assert said in tapster(*words.split(), status=2)


def test_an_event_without_a_detail_ends_with_its_owner() -> None:
    event = HistoryEvent(0.0, "reopened", "0" * 16, "vnet0", "web")
    assert events.lines(event, 80)[0].endswith(" reopened vnet0 (web)")


def test_the_time_that_was_typed_is_in_the_error(tapster: Command) -> None:
    said = tapster("who", "--at", "yesterday 25:00", status=2)
    assert said.startswith("tapster: time 'yesterday 25:00' is not of the form")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--ledger x.db ls", "x.db"),
        ("add --netns ./pod", "./pod"),
        ("run --template /etc/hostname=out -- true", "out"),
    ],
)
def test_a_working_directory_that_is_gone_is_named(
    tapster: Command, tmp_path: Path, words: str, named: str
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with contextlib.chdir(folder):
        folder.rmdir()
        said = tapster(*words.split(), status=125 if "run" in words else 2)
        assert said.startswith(f"tapster: {named!r} leads nowhere, because the working")
        assert tapster("add", "--bridge", "br0") == "vnet0\n"


@pytest.mark.parametrize("columns", ["0", "1", "-3", "none"])
def test_no_width_of_the_terminal_is_a_fault(tapster: Command, columns: str) -> None:
    tapster("add", "--bridge", "br0")
    shell.sh("ip link set vnet0 down")
    tapster("recover")  # an event
    for words in ("ls", "events", "who", "show vnet0", "add --help", "top --count 1"):
        tapster(*words.split(), COLUMNS=columns)


def test_an_earlier_report_stays_if_the_disk_is_full(
    tapster: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    shell.sh(f"mount -t tmpfs -o size=64k tmpfs {folder}")
    page = folder / "names.html"
    tapster("report", "-o", str(page))
    before = page.read_text()
    (folder / "other").write_bytes(bytes(1 << 15))
    said = tapster("report", "-o", str(page), status=1)
    assert said == f"tapster: {page}: No space left on device\n"
    assert page.read_text() == before
    assert {entry.name for entry in folder.iterdir()} == {"names.html", "other"}
    assert "<html" in tapster("report", "-o", "/dev/stdout")


def test_the_page_of_a_report_is_utf8_whatever_the_locale(tapster: Command) -> None:
    tapster("add", "--bridge", "br0", "--owner", "Zoë")
    page = tapster("report", PYTHONIOENCODING="ascii")
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["owners"] == ["Zoë"]
