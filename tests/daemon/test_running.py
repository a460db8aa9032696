# SPDX-License-Identifier: Apache-2.0
"""How tapsterd is run: units, socket activation, metrics and the dashboard."""

import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import shell
from lab.daemon import ALICE, POLICY, SERVICE, Daemon
from tapster import DaemonError, NotAllowed, Tap
from tapster.daemon.config import load
from tapster.daemon.metrics import FAMILIES, HISTOGRAMS, Metrics
from tapster.kernel import unix

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

UNITS = Path(__file__).parents[2] / "units"


def figures(text: str) -> dict[str, float]:
    """What Prometheus would read."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)
    }


def test_users_reach_the_daemon_in_a_directory_that_it_made(tmp_path: Path) -> None:
    """The daemon's umask closes to others what the daemon makes."""
    path = tmp_path / "made" / "too" / "socket"
    before = os.umask(0o077)
    try:
        listening = unix.listen(str(path), mode=0o666)
    finally:
        os.umask(before)
    with listening:
        for made in (path.parent, path.parent.parent):
            assert made.stat().st_mode & 0o777 == 0o755
        assert path.stat().st_mode & 0o777 == 0o666


def test_prometheus_reads_what_happened(world: None) -> None:
    shell.sh("ip link set lo up")
    listen = '[metrics]\nlisten = "127.0.0.1:9474"\neverybody = true\n'
    with Daemon(policy=listen + POLICY) as daemon:
        daemon.start()
        shell.sh("ip tuntap add vnet0 mode tap")
        with daemon.connect(ALICE) as alice:
            lease = alice.acquire(Tap(bridge="br0"))
            assert lease.name == "vnet1", "vnet0 is foreign"
            lease.close()
            with pytest.raises(NotAllowed):
                alice.acquire(Tap(bridge="br9"))
            with urllib.request.urlopen("http://127.0.0.1:9474/metrics") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain")
                found = figures(answer.read().decode())
            alice.release(lease.id)
        assert found['tapster_leases{state="active"}'] == 1
        assert found['tapster_calls_total{method="Acquire"}'] == 2
        assert found['tapster_refused_total{reason="policy"}'] == 1
        assert found['tapster_failures_total{error="NotAllowed"}'] == 1
        assert found['tapster_events_total{event="acquired"}'] == 1
        assert found["tapster_collisions_total"] >= 1
        assert found['tapster_acquire_seconds_bucket{le="+Inf"}'] == 1
        assert found["tapster_acquire_seconds_count"] == 1
        assert 0 < found["tapster_acquire_seconds_sum"] < 60


def test_metrics_are_off_by_default(daemon: Daemon) -> None:
    listening = shell.sh("ss -Htln") + shell.sh(f"ss -Hxlp src {daemon.socket}")
    assert listening.count("\n") == 1


def test_the_dashboard_shows_figures_that_there_are() -> None:
    dashboard = json.loads((UNITS / "grafana-dashboard.json").read_text())
    asked: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"tapster_\w+", target["expr"]))
    exported = set(re.findall(r"^# TYPE (\w+)", Metrics().text(), re.MULTILINE))
    assert {re.sub("_bucket$", "", name) for name in asked} == exported
    assert len(exported) == len(FAMILIES) + len(HISTOGRAMS)


def start_on(listening: socket.socket, daemon: Daemon) -> subprocess.Popen[bytes]:
    """Start tapsterd as systemd does: with its socket as descriptor 3."""
    given = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=varlink"
    start = f'exec 3<&0 </dev/null; {given} exec "$@"'
    tapsterd = str(daemon.programs / "tapsterd")
    files = ["--ledger", str(daemon.ledger), "--config", str(daemon.config)]
    return subprocess.Popen(
        ["sh", "-c", start, "sh", tapsterd, *files],
        stdin=listening.fileno(),
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def listening(daemon: Daemon) -> Iterator[socket.socket]:
    """The daemon's socket, as systemd holds it; the daemon is not running."""
    daemon.stop()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(daemon.socket))
        daemon.socket.chmod(0o666)
        listening.listen()
        yield listening
    daemon.socket.unlink()
    daemon.config.write_text(POLICY)
    daemon.start()


def test_systemd_may_hand_over_the_socket(
    daemon: Daemon, listening: socket.socket
) -> None:
    """As sd_listen_fds(3) says: descriptor 3, and the pid in the environment."""
    with daemon.connect(ALICE) as early:
        process = start_on(listening, daemon)
        early.ping()
    process.terminate()
    assert process.wait(20) == 0
    assert daemon.socket.exists(), "it is systemd's"


def test_callers_of_a_daemon_that_cannot_start_get_an_answer(
    daemon: Daemon, listening: socket.socket
) -> None:
    daemon.config.write_text('[[allow]]\nbridges = "secret"\n')
    with daemon.connect(ALICE) as first, daemon.connect(ALICE) as second:
        process = start_on(listening, daemon)
        for caller in (first, second):
            with pytest.raises(DaemonError, match="its configuration") as raised:
                caller.ping()
            assert "secret" not in str(raised.value)
    assert process.wait(20) == 2, "systemd must not start it again by itself"


@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        ("LISTEN_FDS=x", "", "LISTEN_FDS is a number of sockets, not 'x'"),
        ("LISTEN_FDS=-1", "", "LISTEN_FDS is a number of sockets, not '-1'"),
        ("LISTEN_FDS=1", "", "descriptor 3 of LISTEN_FDS=1 is no socket: Bad file"),
        ("LISTEN_FDS=1", "3</etc/passwd", "is no socket: Socket operation on non-"),
        ("", "--config /none", "/none: No such file or directory"),
        ("ulimit -n 12;", "", "Too many open files"),
        ("", "--user root", "--user goes with --check-config"),
        ("", "--config ''", "--config is empty: give a path, or leave the option out"),
        ("", "--ledger ''", "--ledger is empty: give a path, or leave the option out"),
    ],
)
def test_a_daemon_that_cannot_start_says_why(
    tmp_path: Path, before: str, arguments: str, said: str
) -> None:
    """systemd tells from the status 2 that it need not start the daemon again."""
    tapsterd = Path(shell.TAPSTER).with_name("tapsterd")
    files = f"--ledger {tmp_path}/ledger.db --socket {tmp_path}/socket"
    given = before if ";" in before else f"export LISTEN_PID=$$ {before};"
    line = f"exec 3<&-; {given} exec {tapsterd} {files} {arguments}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, said in done.stderr) == (2, True), done
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "socket").exists()


def test_the_socket_of_another_daemon_stays(daemon: Daemon) -> None:
    daemon.socket.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.socket))
        daemon.stop()
        assert daemon.socket.exists()
    daemon.socket.unlink()
    daemon.start()
    daemon.socket.unlink()
    daemon.stop()  # with the status 0
    daemon.start()


def test_prometheus_may_read_at_an_address_of_ipv6(world: None) -> None:
    shell.sh("ip link set lo up")
    listen = '[metrics]\nlisten = "[::1]:9475"\neverybody = true\n'
    with Daemon(policy=listen + POLICY) as daemon:
        daemon.start()
        with urllib.request.urlopen("http://[::1]:9475/metrics") as answer:
            assert b"tapster_leases" in answer.read()


def test_the_example_policy_is_one(tmp_path: Path) -> None:
    example = (UNITS / "tapster.toml").read_text()
    assert load(str(UNITS / "tapster.toml")).config.allow == ()
    live = re.sub(r"^# (?=[\[a-z_]+( =|\]))", "", example, flags=re.MULTILINE)
    live = live.replace("/etc/qemu/bridge.conf", str(tmp_path / "none"))
    (tmp_path / "none").write_text("allow br0\n")
    (tmp_path / "live.toml").write_text(live)
    config = load(str(tmp_path / "live.toml")).config
    assert config.allow[0].bridges == ("br0", "lab*")
    defaults: Any = type(config.limits)()
    assert config.limits == defaults, "the example shows the defaults"


def test_the_daemon_looks_after_devices_that_root_makes_beside_it(world: None) -> None:
    with Daemon() as daemon:
        add = [shell.TAPSTER, "--ledger", str(daemon.ledger), "add", "--bridge", "br0"]
        subprocess.run(add, check=True)
        daemon.start()
        subprocess.run(add, check=True)
        with daemon.connect() as root:
            assert [lease.name for lease in root.leases()] == ["vnet0", "vnet1"]
            root.release(root.leases()[0].id)
        owners = {
            one.name: one.stat().st_uid for one in Path("/run/test").glob("ledger*")
        }
        assert set(owners.values()) == {SERVICE}, owners


def test_systemd_finds_nothing_wrong_and_little_exposed(tmp_path: Path) -> None:
    for unit in ("tapsterd.service", "tapsterd.socket"):
        text = (UNITS / unit).read_text()
        text = text.replace("/usr/bin/tapsterd", "/bin/true")
        text = re.sub("^Documentation=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / unit).write_text(text)
    verify = ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    service = str(tmp_path / "tapsterd.service")
    security = ["systemd-analyze", "security", "--offline=true", service]
    shown = subprocess.run(security, capture_output=True, text=True, check=True).stdout
    exposure = re.search(r"exposure level for tapsterd.service: ([\d.]+)", shown)
    assert exposure
    assert float(exposure[1]) <= 3.1


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link"])
def test_the_daemon_replaces_nothing_but_a_socket(daemon: Daemon, kind: str) -> None:
    path = Path("/run/test/other.sock")
    target = Path("/run/test/target")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        target.write_text("precious")
        path.symlink_to(target)
    before = path.lstat()
    done = subprocess.run(
        [daemon.programs / "tapsterd", "--socket", path, "--config", daemon.config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "something else than a socket is there" in done.stderr
    assert path.lstat() == before
