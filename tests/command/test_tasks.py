# SPDX-License-Identifier: Apache-2.0
"""What users of ip, virsh, podman and kubectl try first: each task takes one command.

The output of each is looked at in a pipe and on a terminal of 80 columns, with and
without colours.
"""

import os
import pty
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import iproute, library, shell
from tapster import HistoryEvent, Host, Macvtap, Tap, cli

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

COLUMNS = 80
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MOVING = re.compile(r"\d+(\.\d+)?[smhd]?\b")
"""Ages, seconds left and clocks differ from one run to the next."""


class Task(NamedTuple):
    """What somebody wants, the command, and what the output has to contain."""

    wish: str
    command: str
    shows: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    status: int = 0


READING = [
    Task("list what runs", "ls", ("vnet0", "vnet1", "web", "br0"), ("vnet4",)),
    Task("list what runs, shortest", "", ("vnet0", "active"), ("vnet4",)),
    Task("list also names that wait", "ls --all", ("vnet4", "fin_wait")),
    Task("names for a script", "ls -q", ("vnet0\n", "ci0\n"), ("web",)),
    Task("lease ids for a script", "ls --id", (), ("vnet0",)),
    Task("the devices of a VM", "ls -q --owner web", ("vnet0\nvnet1\n",), ("vnet2",)),
    Task("the devices of some VMs", "ls -q --owner 'w*'", ("vnet0\n",), ("vnet2",)),
    Task("the devices on a bridge", "ls -q --bridge br1", ("vnet1\n",), ("vnet0",)),
    Task("what sits on a NIC", "ls -q --bridge low", ("vnet3\n",), ("vnet0",)),
    Task("devices by pattern", "ls -q 'ci*'", ("ci0\n",), ("vnet",)),
    Task("two devices", "ls -q vnet0 ci0", ("vnet0\n", "ci0\n"), ("vnet1",)),
    Task("devices in a namespace", "ls --netns blue", ("blue", "pod"), ("web",)),
    Task("names that wait", "ls -q --state fin_wait", ("vnet4\n",), ("vnet0",)),
    Task("devices with a label", "ls -q --label role", ("vnet0\n",), ("vnet1",)),
    Task("devices by label", "ls -q --label role=f*", ("vnet0\n",), ("vnet1",)),
    Task("sorted by owner", "ls --sort owner", ("NAME",)),
    Task("sorted by name", "ls -q --sort name", ("ci0\n",)),
    Task("a VM's MAC", "ls vnet0 --format '{mac}'", ("52:54:00:00:00:01\n",)),
    Task("a table for DHCP", "ls --format '{mac} {name}'", ("00:00:01 vnet0\n",)),
    Task("a label's value", "ls vnet0 --format '{labels.role}'", ("front\n",)),
    Task("leases for a program", "ls --json", ('"name": "vnet0"',)),
    Task("which device is not as it should be", "ls vnet2", ("differs",)),
    Task("why is my VM off the network", "show vnet2", ("differs link", "up is off")),
    Task("all of a VM's devices", "show --owner web", ("vnet0", "vnet1")),
    Task("one device for a program", "show vnet0 --json", ('"alias": "tapster:',)),
    Task("who has this name", "who vnet0", ("web",), (" db ",)),
    Task("who had this name", "who vnet5", ("old",)),
    Task("who had it an hour ago", "who vnet5 --at 1h", ("NAME",), ("old",)),
    Task("who has what at this moment", "who --at 0s", ("web", "db", "vnet4")),
    Task("what ran in the last minutes", "who --since 10m", ("old", "web")),
    Task("which names a VM has had", "who --owner web", ("vnet0", "vnet1"), (" db ",)),
    Task("whose MAC is this", "who --mac 52:54:00:00:00:01", ("web",), (" db ",)),
    Task("leases by label", "who --label role=front", ("vnet0",), ("vnet1",)),
    Task("the last two leases", "who --limit 2", (), ("old",)),
    Task("the history for a program", "who --json", ('"owner": "old"',)),
    Task("who was refused", "events --event refused", ("no bridges 'br7'",), ("lost",)),
    Task("what happened to a name", "events vnet5", ("lost", "(old)"), ("refused",)),
    Task("what happened lately", "events --since 1h", ("refused", "lost")),
    Task("what happened long ago", "events --until 2h", (), ("refused", "lost")),
    Task("refusals for a program", "events --json", ('"event": "refused"',)),
    Task("an event with a typo", "events --event lots", ("mean 'lost'?",), (), 2),
    Task("a picture", "report", ("<html", "vnet5")),
    Task("a picture in a file", "report -o /run/r.html", ("wrote /run/r.html",)),
    Task("what happens now, once", "top --count 1", ("6 active", "vnet0")),
    Task("a time to come", "who --at 2999-01-01", ("in the future",), (), 2),
    Task("what is wrong here", "doctor", ("vnet2", "tapster recover"), (), 1),
    Task("what a repair would do", "recover --dry-run", ("rewire vnet2",)),
    Task("what a user may do", "doctor --user root", ("everything",)),
    Task("help", "--help", ("verbs:", "report")),
    Task("help for a verb", "ls --help", ("--owner", "--format")),
    Task("help for the longest verb", "run --help", ("--nic",)),
    Task("the version", "--version", ("tapster ",)),
    Task("a verb with a typo", "lss", ("did you mean 'ls'?",), (), 2),
    Task("a verb of another tool", "delete vnet0", ("did you mean 'rm'?",), (), 2),
    Task("an option with a typo", "ls --ownr x", ("mean '--owner'?",), (), 2),
    Task("a name with a typo", "show vnte0", ("did you mean 'vnet0'?",), (), 1),
    Task("a value with a typo", "ls --sort nme", ("did you mean 'name'?",), (), 2),
    Task("what would be removed", "rm --owner web --dry-run", ("vnet0\nvnet1\n",)),
    Task("an owned name", "rm vnet0", ("tapster rm --owner web vnet0\n",), (), 1),
    Task("an owner instead of a name", "show web", ("give --owner web",), (), 1),
    Task("another's name", "rm --owner db vnet0", ("owner 'web', not to",), (), 1),
]

CHANGING = [
    Task("a device on a bridge", "add --bridge br0", ("vnet",)),
    Task("a device for a VM", "add --owner app --label tier=2", ("vnet",)),
    Task("a device with a name of its own", "add --name web7", ("web7\n",)),
    Task("a counted name", "add --name 'n%d' --naming next", ("n0\n",)),
    Task("a name that waits longer", "add --fin-wait 1m", ("vnet",)),
    Task("a limited device", "add --bridge br0 --outbound 1000", ("vnet",)),
    Task("see what is done", "-v add --bridge br0", ("ip tuntap add", "master br0")),
    Task("remove one device", "rm --owner web vnet0"),
    Task("remove late and again", "rm --owner x --ignore-missing vnet0"),
    Task("a device, and the id of its lease", "add --format '{name} {id}'", ("vnet",)),
    Task("remove everything of a VM", "rm --owner web"),
    Task("remove everything", "rm --all"),
    Task("remove what is on a bridge", "rm --bridge br1"),
    Task("remove by pattern", "rm --owner '*' 'ci*'"),
    Task("remove if it is there", "rm --ignore-missing nothing"),
    Task("free the names that wait", "reap --now", ("reaped 1",)),
    Task("free one name", "reap --owner gone vnet4", ("reaped 1",)),
    Task("repair", "recover", ("rewire vnet2",)),
    Task("move a running VM", "set --owner web vnet0 --bridge br1"),
    Task("pull the cable out", "set --owner web vnet0 --down"),
    Task("run a program with a device", "run -- echo {name}", ("vnet",)),
    Task(
        "run a program with two",
        "run --nic bridge=br0 --nic bridge=br1 -- echo {name0} {name1}",
        ("vnet",),
    ),
    Task("the program's exit code", "run -- sh -c 'exit 7'", status=7),
    Task(
        "a program that is missing", "run -- nothing-here", ("cannot start",), (), 127
    ),
]

GONE_BY_OTHERS = "another program deleted the device"
REFUSED = "the policy allows uid 1000 no bridges 'br7'"

GONE = {
    "rm --owner web vnet0": {"vnet0"},
    "rm --owner web": {"vnet0", "vnet1"},
    "rm --bridge br1": {"vnet1"},
    "rm --owner '*' 'ci*'": {"ci0"},
    "rm --all": {"vnet0", "vnet1", "vnet2", "vnet3", "ci0"},
}
"""Devices here that go down with a command."""


@pytest.fixture
def farm(world: None, ledger: Path) -> Path:
    """Some VMs' devices, one of them broken, one released, one long gone."""
    shell.sh("mount -t tmpfs tmpfs /run")
    for line in (
        "ip link add br1 type bridge",
        "ip link set br1 up",
        "ip link add low type veth peer name far",
        "ip link set low up",
        "ip netns add blue",
    ):
        shell.sh(line)
    with Host(ledger, reaper=library.no_reaper) as host:
        old = host.acquire(Tap(name="vnet5", owner="old", fin_wait=0))
        old.close()
        host.release(old)
        now = time.time()
        for event in (
            HistoryEvent(now, "lost", old.id, old.name, "old", None, GONE_BY_OTHERS),
            HistoryEvent(now, "refused", "", "vnet%d", "bob", 1000, REFUSED),
        ):
            host.operations.context.ledger.record_event(event)
        for spec in (
            Tap(
                "br0", owner="web", mac="52:54:00:00:00:01", labels=(("role", "front"),)
            ),
            Tap("br1", owner="web"),
            Tap("br0", owner="db"),
            Macvtap("low", owner="db"),
            Tap(owner="gone", fin_wait=600),
            Tap(name="ci%d", owner="ci"),
        ):
            with host.acquire(spec) as device:
                if spec.owner == "gone":
                    host.release(device)
    with Host(ledger, netns="blue", reaper=library.no_reaper) as host:
        host.acquire(Tap(owner="pod")).close()
    shell.sh("ip link set vnet2 down")
    return ledger


def piped(command: str, ledger: Path) -> tuple[str, int]:
    """Run a command, with its output in a pipe."""
    done = subprocess.run(
        [shell.TAPSTER, *shlex.split(command)],
        env=_environment(ledger),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


def typed(command: str, ledger: Path, **more: str) -> str:
    """Run a command on a terminal of 80 columns."""
    mine, its = pty.openpty()
    subprocess.run(["stty", "cols", str(COLUMNS), "rows", "24"], stdin=its, check=True)
    process = subprocess.Popen(
        [shell.TAPSTER, *shlex.split(command)],
        env=_environment(ledger) | {"TERM": "xterm"} | more,
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    try:
        while data := os.read(mine, 1 << 16):
            shown += data
    except OSError:  # the terminal's other end is closed
        pass
    os.close(mine)
    process.wait()
    return shown.decode().replace("\r\n", "\n")


def _environment(ledger: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "TAPSTER_LEDGER": str(ledger),
        "LC_ALL": "C.UTF-8",
    }


def check(task: Task, output: str) -> None:
    """Look for what a task's output has to contain, and at its width."""
    unbroken = re.sub(r"\n {10,}", " ", output)  # a line that was too long
    for text in task.shows:
        assert text in output or text in unbroken, (text, output)
    for text in task.lacks:
        assert text not in output, (text, output)
    assert "Traceback" not in output
    if "--json" not in task.command and task.command != "report":
        # Errors are one line, as long as they need to be.
        lines = [] if task.status else output.splitlines()
        assert [line for line in lines if len(line) > COLUMNS] == []


def ids(tasks: list[Task]) -> list[str]:
    return [task.wish for task in tasks]


@pytest.mark.parametrize("task", READING, ids=ids(READING))
def test_a_task_that_looks_prints_what_it_should(farm: Path, task: Task) -> None:
    output, status = piped(task.command, farm)
    assert status == task.status, output
    assert not COLOUR.search(output)
    check(task, output)
    plain = typed(task.command, farm, NO_COLOR="1")
    assert not COLOUR.search(plain)
    check(task, plain)
    coloured = typed(task.command, farm)
    check(task, COLOUR.sub("", coloured))
    same = [MOVING.sub("", COLOUR.sub("", text)) for text in (plain, coloured)]
    assert same[0].split() == same[1].split()


@pytest.mark.parametrize("task", CHANGING, ids=ids(CHANGING))
def test_a_task_that_changes_something_prints_what_it_should(
    farm: Path, task: Task
) -> None:
    output, status = piped(task.command, farm)
    assert status == task.status, output
    if not task.command.startswith("-v"):
        check(task, output)
    up = {name for name, link in iproute.links().items() if "UP" in link["flags"]}
    assert not up & GONE.get(task.command, set())


@pytest.mark.parametrize("task", CHANGING, ids=ids(CHANGING))
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "plain"])
def test_a_task_on_a_terminal_prints_what_it_should(
    farm: Path, task: Task, colour: bool
) -> None:
    output = typed(task.command, farm, **({} if colour else {"NO_COLOR": "1"}))
    assert colour or not COLOUR.search(output)
    if not task.command.startswith("-v"):
        check(task, COLOUR.sub("", output))


def test_a_terminal_gets_colours(farm: Path) -> None:
    assert "\x1b[32mactive" in typed("ls", farm)
    assert "\x1b[31mdiffers" in typed("ls", farm)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_fits_the_terminal(ledger: Path, verb: str) -> None:
    output, status = piped(f"{verb} --help", ledger)
    assert status == 0
    assert [line for line in output.splitlines() if len(line) > COLUMNS] == []


def test_there_are_sixty_tasks_and_more() -> None:
    assert len({task.wish for task in (*READING, *CHANGING)}) >= 60
