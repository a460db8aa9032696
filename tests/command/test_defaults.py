# SPDX-License-Identifier: Apache-2.0
"""Defaults of the command: the file, the environment, and what overrides them."""

import os
import subprocess
from pathlib import Path

import pytest

from lab import iproute, shell
from tapster.cli.defaults import Defaults
from tapster.daemon import config
from tapster.errors import RequestError
from tapster.kernel.linux import LinuxSystem
from tapster.ledger import Ledger
from tapster.model import HistoryQuery

FILE = """
[defaults]
bridge = "br0"
fin_wait = "1m"
naming = "next"
mac_prefix = "52:54:00:ab"
history = 1
history_days = 30
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "tapster.toml"
    path.write_text(FILE)
    return path


def test_the_file_says_what_options_are(settings: Path) -> None:
    found = Defaults(str(settings))
    assert (found.bridge, found.fin_wait, found.naming) == ("br0", 60.0, "next")
    assert (found.history, found.history_days) == (1, 30)
    assert str(found.mac()).startswith("52:54:00:ab:")
    assert found.mac() != found.mac()
    assert found.mac("web") == Defaults(str(settings)).mac("web") != found.mac("db")
    assert str(found.mac("web")).startswith("52:54:00:ab:")


def test_the_environment_takes_precedence(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPSTER_BRIDGE", "br1")
    monkeypatch.setenv("TAPSTER_FIN_WAIT", "2s")
    found = Defaults(str(settings))
    assert (found.bridge, found.fin_wait) == ("br1", 2.0)


def test_without_a_file_there_are_tapsters_own(tmp_path: Path) -> None:
    found = Defaults(str(tmp_path / "nothing"))
    assert (found.bridge, found.fin_wait, found.naming) == (None, 5.0, "lowest")
    assert found.mac() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bride = 'br0'", "no 'bride'; there are: bridge"),
        ("fin_wait = '5x'", "'5x' is not a duration"),
        ("naming = 'stable'", "lowest or next, not 'stable'"),
        ("history_days = 0", "history_days is a number of days"),
        ("mac_prefix = '53'", "of a unicast MAC, such as 52:54:00, not '53'"),
        ("mac_prefix = 'x'", "mac_prefix is 1 to 5 bytes .*, not 'x'"),
        ("mac_prefix = '2:2:2:2:2:2'", "mac_prefix is 1 to 5 bytes"),
        ("history = 'all'", "not 'all'"),
        ("history = 9223372036854775808", "history is a number of leases"),
        ("bridge = [", "Invalid value"),
        ("bridge = 5", "bridge is the name of a bridge, not 5"),
        ("mac_prefix = 5", "mac_prefix is a text such as '52:54:00', not 5"),
        ("naming = 5", "lowest or next, not 5"),
        ("fin_wait = 'nan'", "'nan' is not a duration"),
    ],
)
def test_an_impossible_value_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tapster.toml"
    path.write_text(f"[defaults]\n{text}\n")
    with pytest.raises(RequestError, match=rf"^{path}: .*{said}"):
        Defaults(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "[ defaults ]\nbridge = 'br0'",
        "['defaults']\nbridge = 'br0'",
        "defaults.bridge = 'br0'",
        "defaults = { bridge = 'br0' }",
    ],
)
def test_each_form_of_a_table_is_read(tmp_path: Path, text: str) -> None:
    """The daemon reads them all, and says that nothing is wrong."""
    path = tmp_path / "tapster.toml"
    path.write_text(text)
    assert Defaults(str(path)).bridge == "br0"
    path.write_text("[[defaults]]\nbridge = 'br0'\n")
    with pytest.raises(RequestError, match="with one bracket"):
        Defaults(str(path))


def test_the_variable_that_is_wrong_is_named(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPSTER_NAMING", "stable")
    with pytest.raises(RequestError, match=r"^TAPSTER_NAMING: the default of naming"):
        Defaults(str(settings))


def test_the_daemon_reads_the_same_file(settings: Path) -> None:
    config.load(str(settings))
    settings.write_text("[defaults]\nbride = 'br0'\n")
    with pytest.raises(RequestError, match="bride"):
        config.load(str(settings))


@pytest.mark.kernel
@pytest.mark.usefixtures("world")
def test_the_command_uses_the_defaults(ledger: Path) -> None:
    shell.write_settings(FILE)

    def tapster(*arguments: str) -> str:
        return subprocess.run(
            [shell.TAPSTER, *arguments],
            env={**os.environ, "TAPSTER_LEDGER": str(ledger)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    tapster("add")
    assert iproute.ports() == {"vnet0"}
    tapster("add", "--bridge=")
    assert iproute.ports() == {"vnet0"}
    assert tapster("ls", "vnet0", "--format", "{fin_wait} {mac}").startswith(
        "60.0 52:54:00:ab:"
    )
    tapster("rm", "--all")
    tapster("reap", "--now")
    with_history = Ledger(ledger, LinuxSystem())
    assert len(with_history.entries(HistoryQuery())) == 1
    with_history.close()


@pytest.mark.kernel
@pytest.mark.usefixtures("world")
def test_a_mistake_in_the_settings_keeps_no_device(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapster = [shell.TAPSTER, "--ledger", str(ledger)]
    subprocess.run([*tapster, "add", "--bridge", "br0"], check=True)
    monkeypatch.setenv("TAPSTER_FIN_WAIT", "soon")
    done = subprocess.run(
        [*tapster, "rm", "vnet0"], check=False, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    assert "the history keeps its size: TAPSTER_FIN_WAIT: " in done.stderr
    assert iproute.ports() == set()
    subprocess.run([*tapster, "reap", "--now"], check=True)
    assert "vnet0" not in iproute.links()
