# SPDX-License-Identifier: Apache-2.0
"""`tapster run --wait-forwarding`: the command starts when its frames pass."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab import shell
from lab.lines import Lines

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world", "own_ledger")]

SHOW = ["sh", "-c", "bridge -j link show dev $TAPSTER_NAME", "{fd}"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [shell.TAPSTER, "run", "--fin-wait", "0", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def span(delay: int = 200) -> None:
    """Let br0 take part in the spanning tree; the delay is in hundredths of seconds."""
    shell.sh(f"ip link set br0 type bridge stp_state 1 forward_delay {delay}")


def state(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    (port,) = json.loads(done.stdout)
    return str(port["state"])


def leases() -> str:
    return shell.sh(f"{shell.TAPSTER} ls --all -q")


def test_the_command_starts_when_the_port_forwards() -> None:
    span()
    assert state(run("--bridge", "br0", "--", *SHOW)) != "forwarding"
    words = ["--bridge", "br0", "--wait-forwarding", "--", *SHOW]
    assert state(run(*words)) == "forwarding"


def test_without_a_spanning_tree_nothing_is_waited_for() -> None:
    words = ["--nic", "bridge=br0", "--nic", "mtu=1400", "--wait-forwarding", "1", "--"]
    assert state(run(*words, *SHOW)) == "forwarding"


def test_the_wait_has_an_end_and_leaves_nothing() -> None:
    span(1500)
    done = run("--bridge", "br0", "--wait-forwarding", "0.2", "--", *SHOW)
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.startswith(
        "tapster: bridge 'br0' does not forward frames of 'vnet0' after 0.2 s; see: "
    )
    assert leases() == ""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_signal_ends_the_wait(number: int, status: int) -> None:
    span(1500)
    with subprocess.Popen(
        ["bridge", "monitor", "link"], stdout=subprocess.PIPE
    ) as monitor:
        assert monitor.stdout is not None
        options = ["--bridge", "br0", "--fin-wait", "0", "--wait-forwarding"]
        command = [shell.TAPSTER, "run", *options, "--", *SHOW]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            Lines(monitor.stdout).wait_for(r"vnet0: .* state listening", 30)
            os.kill(process.pid, number)
            assert process.communicate(timeout=10)[0] == b""
        monitor.kill()
    assert process.returncode == status
    assert leases() == ""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--bridge br0", "COMMAND needs {fd}"),
        ("--nic mtu=1400 --nic bridge=br0", "COMMAND needs {fd1}"),
        ("--bridge br0 --standby", "leave --down and --standby out"),
        ("--bridge br0 --down", "leave --down and --standby out"),
    ],
)
def test_what_would_never_forward_is_refused(options: str, complaint: str) -> None:
    done = run(*options.split(), "--wait-forwarding", "--", "true", "{fd0}{name}"[5:])
    assert done.returncode == 125
    assert complaint in done.stderr
    assert leases() == ""


def test_a_template_may_name_the_descriptor(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_text("{fd}")
    options = ["--bridge", "br0", "--template", f"{source}={output}"]
    assert run(*options, "--wait-forwarding", "--", "true").returncode == 0
