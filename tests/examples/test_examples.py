# SPDX-License-Identifier: Apache-2.0
"""Each program in examples/ runs, on real devices."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, shell
from lab.daemon import Daemon
from lab.shell import sh

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.usefixtures("world")]

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOW = 'echo "$NAME $MAC"; cat /sys/class/net/$NAME/operstate >/dev/null'


@pytest.fixture
def environment(ledger: Path) -> dict[str, str]:
    folder = Path(shell.TAPSTER).parent
    return {
        **os.environ,
        "TAPSTER_LEDGER": str(ledger),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        daemon.start()
        yield daemon


def run(
    *command: str, environment: dict[str, str], text: str = "", status: int = 0
) -> str:
    """Run a program; return what it printed."""
    done = subprocess.run(
        command,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done
    return done.stdout + done.stderr


def active(environment: dict[str, str]) -> list[dict[str, Any]]:
    shown = run(shell.TAPSTER, "ls", "--json", environment=environment)
    leases: list[dict[str, Any]] = json.loads(shown)["leases"]
    return leases


def test_the_ci_farm_starts_and_stops_its_vms(environment: dict[str, str]) -> None:
    farm = str(EXAMPLES / "ci-farm.sh")
    show = 'readlink /proc/self/fd/$1 >/dev/null; echo "$JOB on $2"; [ $JOB != bad ]'
    command = [farm, "br0", "2", "sh", "-c", show, "sh", "{fd}", "{name}"]
    said = run(*command, environment=environment, text="one\ntwo\nthree\n")
    jobs = dict(line.split(" on ") for line in said.splitlines())
    assert jobs.keys() == {"one", "two", "three"}
    assert all(name.startswith("ci") for name in jobs.values())
    run(*command, environment=environment, text="one\nbad\n", status=1)
    assert not iproute.ports()
    assert not active(environment)


def test_the_orchestrator_starts_and_stops_its_vms(
    environment: dict[str, str], daemon: Daemon
) -> None:
    environment["TAPSTER_SOCKET"] = str(daemon.socket)
    program = [sys.executable, str(EXAMPLES / "orchestrator.py")]
    script = f"{SHOW}; readlink /proc/self/fd/$FD"
    command = [*program, "br0", "5", "sh", "-c", script]
    said = run(*command, environment=environment).splitlines()
    assert said.count("/dev/net/tun") == 5
    named = {line.split()[0] for line in said if line.startswith("vnet")}
    assert named == {f"vnet{number}" for number in range(5)}
    assert not iproute.ports()
    complaint = run(*program, "br1", "1", "true", environment=environment, status=1)
    assert "there is no bridge 'br1'" in complaint


def test_the_go_program_acquires_and_releases(
    environment: dict[str, str], daemon: Daemon, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    building = {
        **environment,
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(tmp_path / "cache"),
    }
    source = str(EXAMPLES / "varlink" / "main.go")
    run("go", "build", "-o", str(start), source, environment=building)
    assert not sh(f"gofmt -l {source}")
    environment["TAPSTER_SOCKET"] = str(daemon.socket)
    said = run(str(start), "br0", "sh", "-c", SHOW, environment=environment)
    name, mac = said.split()
    assert name == "vnet0"
    assert mac.startswith("52:54:00:")
    assert not iproute.ports()
    said = run(str(start), "br1", "true", environment=environment, status=1)
    assert "io.tapster.NoSuchLink" in said


class Ansible:
    """Calls the module as Ansible does: with the parameters in a file."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._file = folder / "parameters.json"
        self._environment = environment

    def run(self, *, check: bool = False, **parameters: Any) -> dict[str, Any]:
        ansible = {"_ansible_check_mode": check, "_ansible_version": "2.14"}
        self._file.write_text(json.dumps({**parameters, **ansible}))
        module = str(EXAMPLES / "ansible/library/tapster_device.py")
        command = ["/usr/bin/python3", module, str(self._file)]
        result: dict[str, Any] = json.loads(
            run(*command, environment=self._environment)
        )
        return result


@pytest.fixture
def ansible(tmp_path: Path, environment: dict[str, str]) -> Ansible:
    return Ansible(tmp_path, environment)


def test_the_ansible_module_makes_moves_and_removes_a_device(
    ansible: Ansible, environment: dict[str, str]
) -> None:
    sh("ip link add br1 type bridge")
    wanted: dict[str, Any] = {"owner": "db", "bridge": "br0", "name": "db%d"}
    assert ansible.run(**wanted, check=True) == {"changed": True, "lease": None}
    assert not active(environment)
    result = ansible.run(**wanted)
    assert result["changed"]
    assert result["lease"]["name"] == "db0"
    again = ansible.run(**wanted)
    assert not again["changed"]
    assert again["lease"]["id"] == result["lease"]["id"]
    moved = ansible.run(owner="db", bridge="br1")
    assert moved["changed"]
    assert iproute.ports("br1") == {"db0"}
    assert ansible.run(owner="db", state="absent") == {"changed": True}
    assert ansible.run(owner="db", state="absent") == {"changed": False}
    assert not active(environment)


def test_ansible_gets_the_reason_of_a_failure(ansible: Ansible) -> None:
    result = ansible.run(owner="db", bridge="br7")
    assert result["failed"]
    assert "there is no bridge 'br7'" in result["msg"]
    assert "no option bridgex" in ansible.run(owner="db", bridgex=1)["msg"]
    assert "owner is missing" in ansible.run()["msg"]
    ansible.run(owner="db", bridge="br0", mac="52:54:00:00:00:01")
    other = ansible.run(owner="db", mac="52:54:00:00:00:02")
    assert "has another mac" in other["msg"]


def test_every_example_is_in_the_list_and_has_a_test() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"({path.relative_to(EXAMPLES)})" in listed
