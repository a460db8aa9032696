# SPDX-License-Identifier: Apache-2.0
"""The command through the daemon, as a user without privileges types it."""

import json
import os
import signal
import subprocess

import pytest

from lab import iproute, shell
from lab.daemon import ALICE, BOB, Daemon, as_user
from lab.lines import Lines

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


def test_every_verb_works_without_root_and_prints_the_same(daemon: Daemon) -> None:
    assert daemon.tapster("add", "--bridge", "br0", "--owner", "vm").stdout == "vnet0\n"
    listed = json.loads(daemon.tapster("ls", "--json").stdout)
    direct = subprocess.run(
        [shell.TAPSTER, "--ledger", str(daemon.ledger), "ls", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert listed == json.loads(direct.stdout)
    (lease,) = listed["leases"]
    assert (lease["name"], lease["caller_uid"], lease["pid"]) == ("vnet0", ALICE, None)
    table = daemon.tapster("ls").stdout
    assert table.splitlines()[1].split()[:2] == ["vnet0", "active"]
    assert "device alias" in daemon.tapster("show", "vnet0").stdout
    daemon.tapster("rm", lease["id"])
    assert iproute.ports() == set()
    assert daemon.tapster("ls").stdout.count("\n") == 1
    assert lease["mac"] in daemon.tapster("who", "vnet0").stdout
    assert daemon.tapster("ls", "--all", uid=BOB).stdout.count("\n") == 1


def test_run_binds_to_the_command_and_ends_with_it(daemon: Daemon) -> None:
    show = "readlink /proc/self/fd/{fd}; exit 7"
    done = daemon.tapster(
        "run", "--bridge", "br0", "--", "sh", "-c", show, "sh", status=7
    )
    assert done.stdout == "/dev/net/tun\n"
    assert iproute.ports() == set()


def test_a_vm_outlives_its_supervisor_and_the_daemon(daemon: Daemon) -> None:
    arguments = ("run", "--bridge", "br0", "--", "sh", "-c", "echo $$; read end")
    process = subprocess.Popen(
        [
            *as_user(ALICE),
            str(daemon.programs / "tapster"),
            "--socket",
            str(daemon.socket),
            *arguments,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    child = os.pidfd_open(int(process.stdout.readline()))
    daemon.stop(signal.SIGKILL)
    process.kill()
    daemon.start()
    events = daemon.events()
    assert iproute.ports() == {"vnet0"}
    signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(child)
    process.communicate()
    assert next(events).event == "released"
    assert iproute.ports() == set()


def test_a_refusal_is_the_policys_and_is_wrong_usage_of_nothing(
    daemon: Daemon,
) -> None:
    said = daemon.tapster("add", "--bridge", "br9", status=1).stderr
    assert 'bridges = ["br9"]' in said
    for verb in ("reap", "recover", "doctor"):
        assert "maintain" in daemon.tapster(verb, status=1).stderr
    done = daemon.tapster("add", "--bridge", "br0", "--fin-wait", "2d", status=2)
    assert "fin_wait must be" in done.stderr


def test_without_a_daemon_it_says_what_to_do(daemon: Daemon) -> None:
    daemon.stop()
    said = daemon.tapster("ls", status=1).stderr
    assert "no daemon answers" in said
    assert "start tapsterd" in said
    daemon.start()


def test_a_socket_that_keeps_the_user_out_is_no_daemon_that_is_missing(
    daemon: Daemon,
) -> None:
    daemon.socket.chmod(0o600)
    said = daemon.tapster("ls", status=1).stderr
    daemon.socket.chmod(0o666)
    assert "keeps this user out" in said
    assert "start tapsterd" not in said


def test_root_uses_the_daemon_with_the_option(daemon: Daemon) -> None:
    def tapster(*arguments: str) -> str:
        command = [shell.TAPSTER, "--socket", str(daemon.socket), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout

    assert tapster("add", "--bridge", "br0") == "vnet0\n"
    assert len(daemon.logged("acquired")) == 1
    tapster("rm", "vnet0")
    assert tapster("reap", "--now") == "reaped 1\n"
    assert tapster("recover") == ""
    assert tapster("doctor") == ""
    wrong = [shell.TAPSTER, "--socket", "x", "--ledger", "y", "ls"]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("json_lines", [False, True])
def test_watch_prints_events_as_they_come(daemon: Daemon, json_lines: bool) -> None:
    command = [shell.TAPSTER, "--socket", str(daemon.socket), "watch"]
    if json_lines:
        command.append("--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        assert "watching" in watch.stdout.readline()
        daemon.tapster("add", "--bridge", "br0", "--owner", "vm")
        line = watch.stdout.readline()
        if json_lines:
            event = json.loads(line)
            assert (event["version"], event["event"], event["name"]) == (
                1,
                "acquired",
                "vnet0",
            )
        else:
            assert line.split()[1:4] == ["acquired", "vnet0", "(vm)"]
        watch.send_signal(signal.SIGINT)
        assert watch.wait() == 130


def test_top_shows_leases_and_events(daemon: Daemon) -> None:
    arguments = ("top", "--interval", "0.2", "--count", "3")
    daemon.tapster("add", "--bridge", "br0", "--owner", "vm")
    shown = daemon.tapster(*arguments).stdout
    assert shown.count("tapster  ") == 3
    assert "1 active" in shown
    assert "vnet0" in shown
    command = [shell.TAPSTER, "--socket", str(daemon.socket), *arguments[:3]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as top:
        assert top.stdout
        lines = Lines(top.stdout)
        lines.wait_for("tapster  ", 20)
        refused = daemon.tapster("rm", "vnet0", status=1).stderr
        assert refused.endswith("if that is meant: tapster rm --owner vm vnet0\n")
        daemon.tapster("rm", "--owner", "vm", "vnet0")
        lines.wait_for("released", 20)
        top.send_signal(signal.SIGINT)
        assert top.wait() == 130


def test_the_policy_is_explained_for_a_user(daemon: Daemon) -> None:
    check = [*("tapsterd", "--check-config"), "--config", str(daemon.config)]
    check[0] = shell.TAPSTER + "d"
    done = subprocess.run(
        [*check, "--user", "nobody"], capture_output=True, text=True, check=True
    )
    assert "2 rules, and nothing is wrong" in done.stdout
    assert "may do nothing" in done.stdout
    daemon.config.write_text('[[allow]]\nusers = ["nobody"]\nbridges = ["br7"]\n')
    explained = daemon.tapster(
        "doctor", "--user", "nobody", "--config", str(daemon.config)
    ).stdout
    assert "bridges br7" in explained
    daemon.config.write_text("[[allow]")
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "line 1" in done.stderr


def test_through_the_daemon_the_process_must_be_the_callers(daemon: Daemon) -> None:
    with subprocess.Popen(["sleep", "1000"], user=BOB) as other:
        said = daemon.tapster("add", "--pid", str(other.pid), uid=ALICE, status=1)
        assert f"process {other.pid} is not" in said.stderr
        assert daemon.tapster("ls", "-q").stdout == "", "nothing is left"
        other.kill()
        other.wait()
        said = daemon.tapster("add", "--pid", str(other.pid), status=2)
        assert f"there is no process {other.pid}" in said.stderr
    with subprocess.Popen(["sleep", "1000"], user=ALICE) as own:
        events = daemon.events()
        daemon.tapster("add", "--bridge", "br0", "--pid", str(own.pid))
        assert iproute.ports() == {"vnet1"}
        own.kill()
        assert [next(events).event for _ in range(2)] == ["acquired", "released"]
        assert iproute.ports() == set()


def test_without_root_the_daemon_opens_it(daemon: Daemon) -> None:
    daemon.tapster("add", "--bridge", "br0", "--owner", "web")
    show = ("sh", "-c", "readlink /proc/self/fd/{fd}; echo $TAPSTER_NAME; id -u")
    refused = daemon.tapster("open", "vnet0", "--", *show, status=125)
    assert "--owner web" in refused.stderr
    done = daemon.tapster("open", "--owner", "web", "vnet0", "--", *show)
    assert done.stdout == f"/dev/net/tun\nvnet0\n{ALICE}\n"
    refused = daemon.tapster("open", "vnet0", "--", "true", uid=BOB, status=125)
    assert "no lease" in refused.stderr


def test_a_foreign_mac_is_put_back_at_once_and_reported(daemon: Daemon) -> None:
    daemon.tapster("add", "--bridge", "br0", "--owner", "web")
    events = daemon.events()
    before = iproute.links()["vnet0"]
    shell.sh("ip link set vnet0 address 02:00:00:00:00:01")
    changed = next(events)
    assert (changed.event, changed.owner) == ("changed", "web")
    assert "02:00:00:00:00:01, not fe:" in str(changed.detail)
    assert next(events).event == "sound"
    after = iproute.links()["vnet0"]
    for field in ("address", "ifalias", "master", "mtu"):
        assert after[field] == before[field]
    shell.sh("ip link set vnet0 alias other")
    assert [next(events).event for _ in range(2)] == ["changed", "sound"]
    assert iproute.links()["vnet0"]["ifalias"] == before["ifalias"]
    kept = daemon.tapster("report").stdout
    assert kept.count('"changed"') == 2, "the history has it"
