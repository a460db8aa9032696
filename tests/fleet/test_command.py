# SPDX-License-Identifier: Apache-2.0
"""`tapster fleet` on two hosts and a real etcd, as its user types it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.fleet.etcd import Cluster, cluster
from lab.shell import TAPSTER, refused, sh
from tapster.fleet.keys import Keys
from tests.command.test_json import check
from tests.fleet.hosts import MAC

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]


class Shells:
    """The command on two hosts; they share a kernel, but not a ledger."""

    def __init__(self, folder: Path, etcd: Cluster) -> None:
        self.folder = folder
        self.etcd = etcd
        for host in ("a", "b"):
            (folder / f"{host}.toml").write_text(
                f'[fleet]\nname = "{host}"\nendpoints = {json.dumps(etcd.endpoints)}\n'
                'on_fenced = "down"\n'
            )

    def run(self, host: str, command: str, status: int = 0) -> str:
        """What the command prints: to standard output, or if it fails, to error."""
        done = subprocess.run(
            [TAPSTER, "--ledger", str(self.folder / f"{host}.db"), *command.split()],
            env=os.environ | {"TAPSTER_CONFIG": str(self.folder / f"{host}.toml")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, (command, done.stdout, done.stderr)
        return done.stdout if status == 0 else done.stderr + done.stdout

    def json(self, host: str, command: str, status: int = 0) -> Any:
        shown = self.run(host, f"{command} --json", status)
        return json.loads(shown[shown.index("{") :])


@pytest.fixture
def shells(world: None, tmp_path: Path) -> Iterator[Shells]:
    os.mkdir("/run/tapster")
    with cluster(tmp_path, 1) as etcd:
        shells = Shells(tmp_path, etcd)
        shells.run("a", "fleet init --apply")
        shells.run("a", "fleet join")
        shells.run("b", "fleet join")
        yield shells


def test_init_prints_what_it_would_and_changes_nothing(
    world: None, tmp_path: Path
) -> None:
    with cluster(tmp_path, 1) as etcd:
        shells = Shells(tmp_path, etcd)
        printed = shells.run("a", "fleet init --host a --host b")
        assert "etcdctl user grant-role b b" in printed
        assert "--prefix=true readwrite /tapster/v1/if/a/" in printed
        assert "readwrite /tapster/v1/permit/a\n" in printed
        assert etcd.values("/tapster") == {}
        assert "52:54:00" in shells.run("a", "fleet init --mac-prefix 52:54:00", 2)
        assert "tapster fleet init" in shells.run("a", "fleet join", 2)


def test_without_etcd_init_prints_what_makes_its_users(
    world: None, tmp_path: Path
) -> None:
    config = tmp_path / "tapster.toml"
    config.write_text('[fleet]\nname = "a"\nendpoints = ["http://127.0.0.1:1"]\n')
    fleet = f"{TAPSTER} fleet --config {config}"
    printed = sh(f"{fleet} init --host a")
    assert "etcd could not be asked: http://127.0.0.1:1" in printed
    assert "etcdctl user grant-role a a" in printed
    assert "Connection refused" in refused(f"{fleet} init --apply")


@pytest.mark.parametrize(
    "verb", ["sync", "sync --dry-run", "leave", "leave --dry-run", "epoch x", "doctor"]
)
def test_an_error_says_that_a_host_has_not_joined(
    world: None, tmp_path: Path, verb: str
) -> None:
    config = tmp_path / "tapster.toml"
    config.write_text('[fleet]\nname = "a"\nendpoints = ["http://127.0.0.1:1"]\n')
    fleet = f"{TAPSTER} --ledger {tmp_path}/ledger.db fleet --config {config}"
    assert "not in the fleet: tapster fleet join" in refused(f"{fleet} {verb}")


def test_a_mac_is_refused_and_a_vm_is_found(shells: Shells) -> None:
    name = shells.run("a", f"add --bridge br0 --vm X --mac {MAC}").strip()
    refused = shells.run("b", f"add --bridge br0 --mac {MAC}", 1)
    assert "VM X has it on host a" in refused
    shells.run("a", "fleet sync")
    (row,) = shells.json("b", f"fleet who {MAC}")["rows"]
    assert (row["host"], row["name"], row["on"]) == ("a", name, "br0")
    (found,) = shells.json("b", "fleet where X")["registrations"]
    assert (found["host"], found["epoch"], found["state"]) == ("a", "0.0", "active")
    assert name in shells.run("b", "fleet ls")
    assert shells.run("b", "fleet ls --host b").count("\n") == 1
    hosts = shells.json("b", "fleet hosts")["hosts"]
    assert [host["name"] for host in hosts] == ["a", "b"]
    assert shells.run("b", "fleet where Y", 1)


def test_every_output_fits_the_schema(shells: Shells) -> None:
    shells.run("a", f"add --bridge br0 --vm X --mac {MAC}")
    check("fleet_done", shells.json("a", "fleet sync --dry-run"))
    check("fleet_sync", shells.json("a", "fleet sync"))
    check("fleet_ls", shells.json("b", "fleet ls"))
    check("fleet_ls", shells.json("b", f"fleet who {MAC}"))
    check("fleet_where", shells.json("b", "fleet where X"))
    check("fleet_hosts", shells.json("b", "fleet hosts"))
    check("doctor", shells.json("a", "fleet doctor", 1))
    check("fleet_done", shells.json("b", "fleet fence a --why test --yes"))
    shells.run("b", f"add --bridge br0 --vm X --mac {MAC}")
    check("fleet_hosts", shells.json("b", "fleet hosts"))
    shells.run("b", "fleet fence a --lift --yes")
    output = shells.json("a", "fleet sync --all", 1)
    assert output["problems"]
    check("fleet_sync", output)
    check("fleet_done", shells.json("b", "fleet init"))


def test_a_vm_that_moves_is_found_on_its_new_host(shells: Shells) -> None:
    source = shells.run("a", f"add --bridge br0 --vm X --mac {MAC}").strip()
    epoch = shells.run("a", f"fleet epoch {source}").strip()
    target = shells.run(
        "b",
        f"add --bridge br0 --vm X --mac {MAC} --incoming {epoch} --standby",
    ).strip()
    shells.run("b", "fleet sync")
    assert shells.json("a", "fleet where X")["registrations"][0]["host"] == "a"
    shells.run("b", f"take {target}")
    shells.run("b", "fleet sync")
    shells.run("a", f"rm {source}")
    shells.run("a", "fleet sync")
    (found,) = shells.json("a", "fleet where X")["registrations"]
    assert (found["host"], found["epoch"], found["state"]) == ("b", "0.1", "active")
    shown = shells.etcd.values(Keys().rows())
    assert [row["name"] for row in shown.values()] == [target]


def test_a_fenced_host_that_is_alive_lets_go(shells: Shells) -> None:
    name = shells.run("a", f"add --bridge br0 --vm X --mac {MAC}").strip()
    shells.run("a", "fleet sync")
    assert "--yes" in shells.run("b", "fleet fence a --why test", 2)
    shells.run("b", "fleet fence a --why test --yes")
    shells.run("b", f"add --bridge br0 --vm X --mac {MAC}")
    assert f"{name} is down" in shells.run("a", "fleet sync", 1)
    (lease,) = shells.json("a", "ls")["leases"]
    assert lease["up"] is False
    problems = shells.json("a", "fleet doctor", 1)["problems"]
    assert any("declared dead" in problem["description"] for problem in problems)
    shells.run("b", "fleet fence a --lift --yes")
    shells.run("a", "fleet sync --all", 1)  # it reports that b has X


def test_giving_up_a_vm_or_a_host(shells: Shells) -> None:
    name = shells.run("a", f"add --bridge br0 --vm X --mac {MAC}").strip()
    shells.run("a", f"rm {name}")
    shells.run("a", "fleet sync")
    before = shells.etcd.values("/tapster")
    shells.run("b", "fleet forget X --dry-run")
    shells.run("b", "fleet evict a --dry-run")
    shells.run("a", "fleet leave --dry-run")
    assert shells.etcd.values("/tapster") == before
    shells.run("b", "fleet forget X --yes")
    shells.run("b", "fleet evict a --yes")
    left = shells.etcd.values(Keys().blocks)
    assert [block["host"] for block in left.values()] == ["b"]
    assert "evicted" in shells.run("a", "fleet sync", 1)
    shells.run("b", "fleet leave")
    assert shells.etcd.values(Keys().blocks) == {}


def test_without_a_fleet_the_verb_says_so(world: None, tmp_path: Path) -> None:
    done = subprocess.run(
        [TAPSTER, "fleet", "ls"],
        env=os.environ | {"TAPSTER_CONFIG": str(tmp_path / "none.toml")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no [fleet]" in done.stderr
