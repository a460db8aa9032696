# SPDX-License-Identifier: Apache-2.0
"""A lease that has an owner is changed by its id, or by its name and owner.

The name of a VM that has ended may be another VM's: a script that cleans up late, by
name, must not release that VM's device.
"""

import shlex
import subprocess
from pathlib import Path

import pytest

from lab import iproute, shell

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


class Command:
    """The command, on a ledger."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger

    def __call__(self, line: str, status: int = 0) -> str:
        """Run a line; return what it printed, with errors."""
        done = subprocess.run(
            [shell.TAPSTER, "--ledger", self.ledger, *shlex.split(line)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done
        return done.stdout


@pytest.fixture
def tapster(ledger: Path) -> Command:
    return Command(ledger)


def state(name: str) -> str:
    """Whether a device is up, as ip sees it."""
    return "up" if "UP" in iproute.links()[name]["flags"] else "down"


def remedy(output: str) -> str:
    """The command that an error proposes, without the words that Command adds."""
    line = output.partition(" if that is meant: ")[2].strip()
    _, _, _, *rest = shlex.split(line)
    return shlex.join(rest)


@pytest.mark.parametrize("filter_", ["owner", "bridge", "netns", "label"])
@pytest.mark.parametrize("verb", ["rm", "reap"])
def test_an_empty_filter_chooses_nothing(
    tapster: Command, verb: str, filter_: str
) -> None:
    """As with `tapster rm --owner "$VM"` in a script whose variable is unset."""
    tapster("add --bridge br0")
    said = tapster(f"{verb} --{filter_} '' vnet0", 2)
    assert said.startswith(f"tapster: --{filter_} is empty")
    assert tapster(f"{verb} --{filter_} ''", 2) == said
    assert state("vnet0") == "up"


@pytest.mark.parametrize("option", ["bridge", "ovs", "redirect", "link"])
def test_an_empty_name_of_a_bridge_makes_no_device(
    tapster: Command, option: str
) -> None:
    """The VM would have no network, and nothing would say so."""
    said = tapster(f"add --{option} ''", 2)
    assert said.startswith(f"tapster: --{option} is empty")
    assert tapster("ls --quiet") == ""


def test_an_empty_name_is_said_to_be_empty(tapster: Command) -> None:
    tapster("add --bridge br0")
    for verb in ("rm ''", "show ''", "set '' --up"):
        assert tapster(verb, 1) == (
            "tapster: no lease has the name or id '': it is empty\n"
        )


@pytest.mark.parametrize("chosen", ["--owner nobody", "--bridge br9", "x*"])
def test_a_choice_that_no_lease_fits_says_so(tapster: Command, chosen: str) -> None:
    """A mistyped owner is noticed; a cleanup may come twice."""
    tapster("add --bridge br0 --owner somebody")
    said = tapster(f"rm {chosen}")
    assert said == "tapster: no lease fits, so none was released\n"
    assert tapster(f"rm --ignore-missing {chosen}") == ""
    assert tapster("rm --owner somebody") == ""


def test_an_owner_that_is_called_like_a_pattern_is_that_owner(tapster: Command) -> None:
    tapster("add --bridge br0 --owner vm1")
    tapster("add --bridge br0 --owner vm[1]")
    assert tapster("ls --quiet --owner vm[1]") == "vnet1\n"
    tapster("rm --owner vm[1] vnet1")
    assert [state("vnet0"), state("vnet1")] == ["up", "down"]
    tapster("add --bridge br0 --owner vm[1]")
    for _ in range(2):  # the second time it is late
        tapster("rm --owner vm[1]")
        assert [state("vnet0"), state("vnet2")] == ["up", "down"]


def test_a_late_cleanup_by_name_is_refused(tapster: Command) -> None:
    """VM A ends; VM B gets A's name; A's script releases the name once more."""
    tapster("add --bridge br0 --owner A --fin-wait 0")
    late = "rm --owner A vnet0"
    tapster(late)
    tapster("add --bridge br0 --owner B")
    assert "belongs to owner 'B'" in tapster("rm vnet0", 1)
    assert "belongs to owner 'B', not to 'A'" in tapster(late, 1)
    assert tapster(f"{late} --ignore-missing") == ""
    assert state("vnet0") == "up"
    assert iproute.ports() == {"vnet0"}


@pytest.mark.parametrize("owner", ["B", "a VM's", "-x", "äö"])
@pytest.mark.parametrize("verb", ["rm", "set --mtu 1300", "take"])
def test_the_error_shows_the_command_that_is_right(
    tapster: Command, verb: str, owner: str
) -> None:
    tapster(f"add --bridge br0 --mtu 1350 --owner={shlex.quote(owner)}")
    refused = tapster(f"{verb} vnet0", 1)
    assert refused.count("\n") == 1
    assert (state("vnet0"), iproute.links()["vnet0"]["mtu"]) == ("up", 1350)
    tapster(remedy(refused))
    assert state("vnet0") == ("down" if verb == "rm" else "up")
    assert iproute.links()["vnet0"]["mtu"] == (1300 if "mtu" in verb else 1350)


def test_ids_always_work(tapster: Command) -> None:
    id = tapster("add --bridge br0 --owner B --id").strip()
    tapster(f"set {id} --mtu 1300")
    tapster(f"take {id}")
    tapster(f"rm {id}")
    tapster(f"rm {id}")
    assert state("vnet0") == "down"


def test_a_name_without_an_owner_works_alone(tapster: Command) -> None:
    tapster("add --bridge br0")
    tapster("set vnet0 --mtu 1300")
    tapster("rm vnet0")
    assert state("vnet0") == "down"


def test_one_refusal_stops_no_other_release(tapster: Command) -> None:
    for owner in ("", "--owner B", "--owner C"):
        tapster(f"add --bridge br0 {owner}")
    refused = tapster("rm vnet1 vnet0 vnet2", 1).splitlines()
    assert [remedy(line) for line in refused] == [
        "rm --owner B vnet1",
        "rm --owner C vnet2",
    ]
    assert iproute.ports() == {"vnet1", "vnet2"}
    assert len(tapster("rm 'vnet*'", 1).splitlines()) == 2
    tapster("rm --owner '[BC]' 'vnet*'")
    assert iproute.ports() == set()


@pytest.mark.parametrize("choice", ["--bridge br0", "--owner B", "--all", "--label k"])
def test_what_is_chosen_by_no_name_needs_no_owner(
    tapster: Command, choice: str
) -> None:
    tapster("add --bridge br0 --owner B --label k=v")
    tapster(f"rm {choice}")
    assert state("vnet0") == "down"


def test_the_owner_chooses_among_namespaces(tapster: Command) -> None:
    shell.sh("mount -t tmpfs tmpfs /run")
    shell.sh("ip netns add blue")
    tapster("add --owner B --name web")
    tapster("add --owner C --name web --netns blue")
    assert remedy(tapster("rm web", 1)) == "rm --owner B web"
    tapster("rm --owner C web")
    assert state("web") == "up"
    assert "web" in tapster("ls -q --owner B")


def test_add_prints_the_id_or_what_is_asked_for(tapster: Command) -> None:
    id = tapster("add --id")
    assert tapster("ls --id") == id
    name, id = tapster("add --format '{name} {id}'").split()
    assert tapster(f"ls {name} --id").strip() == id
    assert "no field 'nme'" in tapster("add --format {nme}", 2)
    assert set(iproute.links()) == {"lo", "br0", "vnet0", "vnet1"}


# reap


def test_one_wait_is_ended_by_name_and_owner(tapster: Command) -> None:
    for owner in ("B", "C"):
        tapster(f"add --fin-wait 60 --owner {owner}")
    tapster("rm --all")
    refused = tapster("reap vnet0", 1)
    assert refused.endswith("reap --owner B vnet0\nreaped 0\n")
    assert "vnet0" in iproute.links()
    assert tapster(remedy(refused.partition("\n")[0])) == "reaped 1\n"
    assert set(iproute.links()) == {"lo", "br0", "vnet1"}
    error = tapster("add --name vnet1", 1)
    assert tapster(error.partition(": tapster ")[2]) == "reaped 1\n"
    assert tapster("add --name vnet1") == "vnet1\n"
    assert "vnet1) is active" in tapster("reap vnet1", 1)


@pytest.mark.parametrize(
    ("choice", "gone"),
    [
        ("--owner B", {"vnet0", "vnet1"}),
        ("--bridge br0", {"vnet0"}),
        ("--label k=v", {"vnet1"}),
        ("--state fin_wait", {"vnet0", "vnet1", "vnet2"}),
        ("--state active", set()),
        ("--owner '*' 'vnet*'", {"vnet0", "vnet1", "vnet2"}),
        ("--netns blue", set()),
    ],
)
def test_filters_choose_the_waits_that_end(
    tapster: Command, choice: str, gone: set[str]
) -> None:
    for options in ("--owner B --bridge br0", "--owner B --label k=v", ""):
        tapster(f"add --fin-wait 60 {options}")
    tapster("rm --all")
    tapster("add --owner B --bridge br0 --label k=v --name vnet9")
    before = set(iproute.links())
    assert tapster(f"reap {choice}") == f"reaped {len(gone)}\n"
    assert before - set(iproute.links()) == gone
    assert "give it alone" in tapster(f"reap --now {choice}", 2)
