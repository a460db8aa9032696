# SPDX-License-Identifier: Apache-2.0
"""The command, as its users run it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, library, shell
from lab.reapers import wait_for
from tapster import Host, Tap
from tapster.cli import output

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(ledger: Path) -> dict[str, str]:
    return {**os.environ, "TAPSTER_LEDGER": str(ledger)}


@pytest.fixture
def tapster(environment: dict[str, str]) -> Run:
    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [shell.TAPSTER, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done
        return done

    return run


def parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["version"] == 1
    return document


LEASE_FIELDS = {
    "labels",
    *("id", "name", "ifindex", "kind", "state", "owner", "mac", "bridge", "lower"),
    *("mode", "mtu", "queues", "isolated", "netns", "created", "released"),
    *("fin_wait", "fin_wait_left", "pid", "placeholder"),
    *("ovs", "learning", "vlan", "trunks", "external_ids", "filter", "addresses"),
    *("guard", "vnet_hdr", "root_guard", "bpdu_guard", "outbound_pps"),
    "redirect",
    *("inbound", "outbound", "standby", "up"),
    *("caller_uid", "on_close"),
}


def test_add_prints_the_name_alone(tapster: Run) -> None:
    done = tapster("add", "--bridge", "br0")
    assert (done.stdout, done.stderr) == ("vnet0\n", "")
    assert iproute.ports() == {"vnet0"}


def test_json_is_versioned_and_has_these_fields(tapster: Run) -> None:
    lease = parsed(tapster("add", "--bridge", "br0", "--owner", "vm1", "--json"))[
        "lease"
    ]
    assert set(lease) == LEASE_FIELDS == set(output.LEASE_FIELDS)
    assert lease["name"] == "vnet0"
    assert lease["ifindex"] == iproute.links()["vnet0"]["ifindex"]
    assert (lease["state"], lease["kind"], lease["owner"]) == ("active", "tap", "vm1")
    assert (lease["bridge"], lease["netns"], lease["pid"]) == ("br0", None, None)
    listed = lease | {"differs": False}
    assert parsed(tapster("ls", "--json"))["leases"] == [listed]
    shown = parsed(tapster("show", "vnet0", "--json"))
    assert shown["lease"] == lease
    assert shown["device"]["alias"].endswith(lease["id"])
    tapster("rm", lease["id"])
    assert parsed(tapster("ls", "--json"))["leases"] == []
    (waiting,) = parsed(tapster("ls", "--all", "--json"))["leases"]
    assert waiting["state"] == "fin_wait"
    assert 0 < waiting["fin_wait_left"] <= 5
    (entry,) = parsed(tapster("who", "vnet0", "--json"))["entries"]
    assert (entry["owner"], entry["lease"]) == ("vm1", lease["id"])


def test_tapster_alone_shows_the_leases(tapster: Run) -> None:
    tapster("add", "--bridge", "br0", "--owner", "vm1")
    alone, listed = (
        [line.split()[:5] for line in done.stdout.splitlines()]
        for done in (tapster(), tapster("ls"))
    )
    assert alone == listed
    assert alone[1][:3] == ["vnet0", "active", "br0"]


def test_every_option_of_add_reaches_the_device(tapster: Run) -> None:
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    options = "--name ci%d-a --naming stable --key k --mac 52:54:00:AA:00:01 --mtu 1300"
    more = "--queues 3 --isolated --user nobody --group 12345 --fin-wait 9 --bridge br0"
    name = tapster("add", *options.split(), *more.split()).stdout.strip()
    assert name.startswith("ci")
    assert name.endswith("-a")
    link = iproute.links()[name]
    assert (link["mtu"], link["address"]) == (1300, "fe:54:00:aa:00:01")
    assert link["linkinfo"]["info_slave_data"]["isolated"] is True
    data = link["linkinfo"]["info_data"]
    assert data["multi_queue"] is True
    assert (data["user"], data["group"]) == ("nobody", 12345)
    macvtap = tapster("add", "--link", "low", "--mode", "vepa").stdout.strip()
    assert iproute.links()[macvtap]["linkinfo"]["info_data"]["mode"] == "vepa"


def test_who_shows_the_owner_at_a_point_in_time(tapster: Run) -> None:
    for owner in ("first", "second"):
        tapster("add", "--name", "web", "--owner", owner)
        tapster("rm", "--owner", owner, "web")
        tapster("reap", "--now")
    second, first = parsed(tapster("who", "web", "--json"))["entries"]
    assert (second["owner"], first["owner"]) == ("second", "first")
    (then,) = parsed(tapster("who", "web", "--at", first["created"], "--json"))[
        "entries"
    ]
    assert then["owner"] == "first"
    assert parsed(tapster("who", "web", "--at", "0", "--json"))["entries"] == []
    assert "in the future" in tapster("who", "--at", "2999-01-01", status=2).stderr


def test_who_finds_by_every_field_of_a_lease(tapster: Run) -> None:
    for owner, mac in (("red", "52:54:00:00:00:01"), ("blue", "52:54:00:00:00:02")):
        tapster(
            *("add", "--owner", owner, "--mac", mac.upper(), "--label", f"role={owner}")
        )

    def found(*options: str) -> list[str]:
        entries = parsed(tapster("who", *options, "--json"))["entries"]
        return [entry["owner"] for entry in entries]

    assert found() == ["blue", "red"]
    assert found("--owner", "red") == ["red"]
    assert found("--mac", "52:54:00:00:00:02") == ["blue"]
    assert found("--label", "role=red") == ["red"]
    (lease,) = parsed(tapster("ls", "--owner", "red", "--json"))["leases"]
    assert lease["labels"] == {"role": "red"}
    assert found("--lease", lease["id"]) == ["red"]
    assert found("--limit", "1") == ["blue"]
    assert found("--since", "1h") == ["blue", "red"]
    assert found("--until", "1h") == []
    assert tapster("ls", "-q", "--label", "role=b*").stdout == "vnet1\n"
    assert tapster("ls", "-q", "--label", "role").stdout == "vnet0\nvnet1\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["frob"], 2, "no verb 'frob'"),
        (["list"], 2, "did you mean 'ls'?"),
        (["recvoer"], 2, "did you mean 'recover'?"),
        (["ls", "x", "--sort", "nme"], 2, "did you mean 'name'?"),
        (["set", "a", "b", "--mtu", "1"], 2, "'b' is one argument too many"),
        (["add", "--frob"], 2, "no option '--frob'"),
        (["add", "--bridg", "br0"], 2, "did you mean '--bridge'?"),
        (["add", "--queues", "x"], 2, "'x' is not a whole number"),
        (["add", "--name", "sixteen-letters-"], 2, "at most 15"),
        (["add", "--naming", "stable"], 2, "naming 'stable' needs a key"),
        (["add", "--key", "k"], 2, "naming 'lowest' takes no key, and key is 'k'"),
        (["add", "--mac", "01:00:00:00:00:00"], 2, "not a unicast"),
        (["add", "--kind", "macvtap"], 2, "give --link"),
        (["add", "--link", "lo", "--bridge", "br0"], 2, "does not go with a macvtap"),
        (["add", "--user", "nobody-at-all"], 2, "no user 'nobody-at-all'"),
        (["add", "--bridge", "nix"], 1, "no bridge 'nix'"),
        (["add", "--netns", "nix"], 1, "no network namespace 'nix'"),
        (["rm", "nix"], 1, "'nix'"),
        (["show", "nix"], 1, "'nix'"),
        (["who", "vnet0", "--at", "noon"], 2, "'noon'"),
        (["who", "--at", "1", "--since", "1"], 2, "give one"),
        (["add", "--label", "x"], 2, "'x' is not KEY=VALUE"),
        (["add", "--owner", ""], 2, "--owner: it is empty"),
        (["run", "--owner=", "--", "true"], 125, "--owner: it is empty"),
        (["who", ""], 2, "NAME: it is empty"),
        (["events", ""], 2, "NAME: it is empty"),
        (["add", "--kind", "tpa"], 2, "'tpa' is not one of tap, macvtap"),
        (["add", "--fin-wait", "5x"], 2, "'5x' is not a duration"),
        (["rm"], 2, "nothing was chosen"),
        (["rm", "--all", "vnet0"], 2, "give it alone"),
        (["ls", "--format", "{nme}"], 2, "no field 'nme'"),
        (["ls", "--format", "name,mac"], 2, "names no field"),
        (["run"], 125, "needs a COMMAND"),
        (["run", "--bridge", "br0", "--", ""], 125, "COMMAND is empty"),
        (["add", "--filter=yes"], 2, "it takes no value, not 'yes'"),
        (["run", "--frob"], 125, "no option '--frob'"),
        (["run", "--bridge", "nix", "--", "true"], 125, "no bridge 'nix'"),
        (["run", "--", "true", "{fd1}"], 125, "numbered 0 to 0"),
        (["run", "--nic", "frob=1", "--", "true"], 125, "no option 'frob'"),
        (["run", "--nic", "brdige=x", "--", "true"], 125, "mean 'bridge'?"),
        (["libvirt"], 2, "required: ACTION; see"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    tapster: Run, arguments: Sequence[str], status: int, said: str
) -> None:
    done = tapster(*arguments, status=status)
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert set(iproute.links()) == {"lo", "br0"}


def test_a_lease_that_cannot_be_repaired_hinders_no_other_vm(
    tapster: Run, ledger: Path
) -> None:
    lost = library.abandon(ledger)
    done = tapster("add", "--bridge", "br0")
    assert done.stdout == "vnet1\n"
    assert "another lease was not repaired: there is no bridge 'gone'" in done.stderr
    tapster("run", "--bridge", "br0", "--", "true")
    tapster("rm", lost.name, "--owner", "gone")


def test_without_root_the_missing_capability_is_named(
    environment: dict[str, str],
) -> None:
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", shell.TAPSTER, "add"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stderr
    assert done.stderr.count("\n") == 1


def test_run_fills_in_and_exits_with_the_commands_status(tapster: Run) -> None:
    show = 'echo "$@"; readlink /proc/self/fd/$1; exit 7'
    places = ["{fd0}", "{fds1}", "{name0}", "{mac1}", "{ifindex0}", '{"json": {}}']
    nics = ["--nic", "bridge=br0,name=a%d", "--nic", "bridge=br0,queues=2,mac="]
    nics[3] += "52:54:00:00:00:02"
    done = tapster("run", *nics, "--", "sh", "-c", show, "sh", *places, status=7)
    words, device = done.stdout.splitlines()
    fd, fds, name, mac, ifindex, rest = words.split(" ", 5)
    assert device == "/dev/net/tun"
    assert len({fd, *fds.split(":")}) == 3
    assert (name, mac, rest) == ("a0", "52:54:00:00:00:02", '{"json": {}}')
    assert int(ifindex) == iproute.links()["a0"]["ifindex"]
    assert iproute.ports() == set()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/nowhere/nothing"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_run_releases_after_every_kind_of_end(
    tapster: Run, command: list[str], status: int
) -> None:
    tapster("run", "--bridge", "br0", "--", *command, status=status)
    assert iproute.ports() == set()
    assert parsed(tapster("ls", "--json"))["leases"] == []


def start_run(environment: dict[str, str], script: str) -> subprocess.Popen[str]:
    """`tapster run` of a shell script; returns when the script has said a line."""
    started = subprocess.Popen(
        [shell.TAPSTER, "run", "--bridge", "br0", "--", "sh", "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    return started


def test_run_passes_signals_on(environment: dict[str, str]) -> None:
    script = "trap 'exit 5' TERM; echo up; while read line; do :; done"
    started = start_run(environment, script)
    assert started.stdout
    started.stdout.readline()
    started.terminate()
    assert started.wait() == 5
    started.communicate()
    assert iproute.ports() == set()


INTERRUPTED = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("up", flush=True)
signal.sigwait({signal.SIGINT})
print("int", flush=True)
input()
print("int" * len(signal.sigpending()), flush=True)
"""
"""A command that cannot miss a signal, as a shell between two commands may."""


def test_ctrl_c_reaches_the_command_once(environment: dict[str, str]) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [shell.TAPSTER, "run", "--bridge", "br0", "--"]
        command += [sys.executable, "-c", INTERRUPTED]
        os.execve(command[0], command, environment)
    said = b""

    def until(word: bytes) -> None:
        nonlocal said
        while word not in said:
            assert select.select([terminal], [], [], 30)[0], said
            said += os.read(terminal, 1000)

    until(b"up")
    os.write(terminal, b"\x03")
    until(b"int")
    os.write(terminal, b"\n")
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):  # the other end is closed: there is nothing more
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert said.count(b"int\r\n") == 1
    assert iproute.ports() == set()


def test_a_vm_that_outlives_a_killed_run_keeps_its_port(
    environment: dict[str, str], tapster: Run
) -> None:
    started = start_run(environment, "echo $$; read line")
    assert started.stdout
    child = int(started.stdout.readline())
    ended = os.pidfd_open(child)
    started.kill()
    started.wait()
    for _ in range(2):
        (lease,) = parsed(tapster("ls", "--json"))["leases"]
        assert lease["pid"] == child
        tapster("recover")
        assert iproute.ports() == {"vnet0"}
    os.kill(child, signal.SIGKILL)
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)
    started.communicate()
    # The reaper may be ending the lease. Until it has, `ls` shows the lease as before.
    wait_for(
        lambda: not tapster("ls", "--quiet").stdout and not iproute.ports(),
        "the lease ends, and the device leaves the bridge",
    )


def test_run_works_where_the_caller_ignores_its_children(
    environment: dict[str, str],
) -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [shell.TAPSTER, "run", "--bridge", "br0", "--", "sh", "-c", "exit 3"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, check=False
    )
    assert done.returncode == 3
    assert iproute.ports() == set()


@pytest.mark.parametrize("words", ["--help", "add --help", "--version"])
def test_a_text_that_could_not_be_printed_is_a_failure(words: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [shell.TAPSTER, *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "tapster: writing the output: No space left on device\n",
    )


def test_a_name_that_could_not_be_printed_leaves_no_device(
    environment: dict[str, str],
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [shell.TAPSTER, "add", "--bridge", "br0"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "tapster: writing the output: No space left on device\n",
    )
    assert iproute.ports() == set()


def test_a_host_without_proc_is_not_mistaken_for_an_output_that_fails(
    environment: dict[str, str],
) -> None:
    hidden = f"umount --lazy /proc; exec {shell.TAPSTER} ls"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hidden],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "tapster: /proc/self/status: No such file or directory\n",
    )


def test_a_shells_own_braces_are_left_to_it(tapster: Run) -> None:
    script = "name=mine; echo ${name} {name} {{name}"
    done = tapster("run", "--bridge", "br0", "--", "sh", "-c", script)
    assert done.stdout == "mine vnet0 {name}\n"


def test_the_reaper_holds_nothing_of_the_process_that_started_it(
    tapster: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    tapster("add", "--name", "web", "--fin-wait", "30")
    lock = tmp_path / "lock"
    script = 'exec 9>"$1"; flock 9; "$2" rm web; exec 9>&-; flock -n "$1" true'
    subprocess.run(
        ["bash", "-c", script, "bash", str(lock), shell.TAPSTER],
        env=environment,
        check=True,
        timeout=20,
    )


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_with_closed_outputs_succeeds_and_fails_as_any(
    environment: dict[str, str], closed: str
) -> None:
    """Service managers and cron start programs so."""

    def run(words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", f"{shell.TAPSTER} {words} {closed}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    printed = "vnet0\n" if closed == "2>&-" else ""
    assert run("add --bridge br0") == (0, printed)
    assert run("run --bridge br0 -- true {fd}") == (0, "")
    assert run("rm nothing") == (1, ""), "an error is no output"
    assert run("add --nonsense") == (2, "")
    assert run("rm vnet0") == (0, "")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("-v add --bridge br0", 0),
        ("run --bridge br0 -- /nothing", 127),
        ("run --nonsense -- true", 125),
        ("add --nonsense", 2),
        ("rm nothing vnet0", 1),
    ],
)
def test_an_error_that_nobody_can_read_changes_no_result(
    tapster: Run, environment: dict[str, str], words: str, status: int
) -> None:
    tapster("add", "--bridge", "br0")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [shell.TAPSTER, *words.split()],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=full,
            check=False,
        )
    assert done.returncode == status
    left = tapster("ls", "--all", "--format", "{name} {state}").stdout.splitlines()
    assert ("vnet0 active" in left) == ("rm" not in words)
    assert not any(line.endswith("reserved") for line in left)


def test_recover_says_what_it_would_do_and_then_does_it(tapster: Run) -> None:
    tapster("add", "--bridge", "br0")
    shell.sh("ip link del vnet0")
    dry = tapster("recover", "--dry-run").stdout
    assert dry.startswith("hold_name vnet0 (active")
    assert "vnet0" not in iproute.links()
    assert tapster("recover").stdout == dry
    assert "vnet0" in iproute.links()
    assert tapster("recover").stdout == ""


def test_doctor_finds_what_is_wrong_and_names_a_remedy(
    tapster: Run, tmp_path: Path
) -> None:
    done = tapster("doctor")
    assert (done.stdout, done.stderr) == ("", "nothing is wrong\n")
    tapster("add", "--bridge", "br0")
    shell.sh("ip tuntap add vnet7 mode tap")
    other = tmp_path / "lost.db"
    tapster("add", "--ledger", str(other), "--bridge", "br0")
    for file in tmp_path.glob("lost.db*"):
        file.unlink()
    shell.sh("ip link set vnet0 nomaster")
    shell.sh("ip link del vnet0")
    found = parsed(tapster("doctor", "--json", status=1))["problems"]
    problems = " / ".join(one["description"] for one in found)
    assert "vnet7 is foreign" in problems
    assert "lease vnet0" in problems
    assert "vnet1 belongs to another ledger" in problems
    (remedy,) = (one["remedy"] for one in found if "vnet1" in one["description"])
    assert tapster(*remedy.rpartition("tapster ")[2].split()).stdout == (
        "deleted vnet1\n"
    )
    assert "vnet1" not in iproute.links()
    assert "vnet7" in iproute.links()


def test_the_claim_of_a_dead_manager_on_a_sound_lease_is_dropped(
    ledger: Path,
) -> None:
    with Host(ledger, reaper=library.no_reaper) as host:
        lease = library.acquire(host, Tap(bridge="br0"))
        opened = host.operations.context.ledger
        opened.claim(lease.id, 1, lambda manager: False)
        assert host.settle() == []
        assert host.find(lease.id).manager is None
        assert iproute.ports() == {"vnet0"}


def test_set_changes_a_live_device_and_an_empty_value_takes_away(
    tapster: Run,
) -> None:
    tapster("add", "--bridge", "br0", "--isolated", "--mtu", "1400")
    tapster("set", "vnet0", "--no-isolated", "--no-learning", "--down")
    link = iproute.links()["vnet0"]
    port = link["linkinfo"]["info_slave_data"]
    assert (port["isolated"], port["learning"], port["flood"]) == (False, False, False)
    assert "UP" not in link["flags"]
    changed = parsed(
        tapster("set", "vnet0", "--bridge=", "--learning", "--up", "--json")
    )["lease"]
    assert (changed["bridge"], changed["learning"], changed["mtu"]) == (
        None,
        True,
        1400,
    )
    assert "UP" in iproute.links()["vnet0"]["flags"]
    assert iproute.ports() == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to change"),
        (["--vlan", "7"], "name a bridge"),
        (["--inbound", "9:8"], "peak 8 is less than the average, 9"),
        (["--external-id", "x"], "'x' is not KEY=VALUE"),
        (["--trunk", "x"], "--trunk: 'x' is not a list of VLANs"),
        (["--inbound", "1:2:3:4"], "'1:2:3:4' is not a rate"),
    ],
    ids=str,
)
def test_set_says_what_is_wrong(tapster: Run, options: list[str], said: str) -> None:
    tapster("add")
    done = tapster("set", "vnet0", *options, status=2)
    assert said in done.stderr


def test_the_values_that_show_prints_begin_in_one_column(tapster: Run) -> None:
    tapster("add", "--bridge", "br0")
    shell.sh("ip link set vnet0 nomaster")
    lines = tapster("show", "vnet0").stdout.splitlines()
    fields = [re.match("(?:device |differs )?[a-z0-9_]+  +", line) for line in lines]
    assert len({field and field.end() for field in fields}) == 1
    assert lines[-1].startswith("differs link ")


def test_show_and_doctor_say_what_differs(tapster: Run) -> None:
    tapster("add", "--bridge", "br0")
    shell.sh("ip link set vnet0 nomaster")
    wrong = "bridge is None, not br0"
    assert wrong in tapster("show", "vnet0").stdout
    assert parsed(tapster("show", "vnet0", "--json"))["differences"] == {"link": wrong}
    assert wrong in tapster("doctor", status=1).stdout
    assert "rewire vnet0" in tapster("recover").stdout
    assert iproute.ports() == {"vnet0"}
