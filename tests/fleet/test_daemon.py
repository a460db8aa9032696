# SPDX-License-Identifier: Apache-2.0
"""tapsterd keeps a host in its fleet; without [fleet] nothing of it is imported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.daemon import Daemon
from lab.etcd import Cluster, cluster
from lab.shell import TAPSTER, sh
from tapster import RequestError
from tapster.daemon import config
from tapster.fleet import drain
from tapster.fleet.drain import Drain
from tapster.fleet.keys import BLOCK_SIZE, Keys
from tests.fleet.hosts import MAC, Away, Pair, X


class Events:
    """What a drain says; each can be waited for."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, fields: dict[str, object]) -> None:
        self.said.append((event, fields))


def test_a_drain_pushes_and_says_what_changes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "open_store", lambda _: pair.store)
    events = Events()
    context = pair.a.host.operations.context
    made = Drain(str(pair.a.ledger), context.system, str(pair.a.config), events)
    member = made.open()
    assert member is not None
    pair.b.add(MAC, X)
    pair.store.away = True
    pair.a.add(MAC)
    for _ in range(3):
        made.step(member)
    pair.store.away = False
    for _ in range(3):
        made.step(member)
    assert [event for event, _ in events.said] == [
        *("fleet-away", "fleet-synced", "fleet-conflict")
    ]
    member.close()


def test_the_log_says_once_that_the_host_has_not_joined(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "open_store", lambda _: Away())
    pair.a.member.leave()
    events = Events()
    context = pair.a.host.operations.context
    made = Drain(str(pair.a.ledger), context.system, str(pair.a.config), events)
    assert made.open() is None
    assert made.open() is None
    assert len(events.said) == 1


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('endpoints = ["http://x"]', "needs name"),
        ('name = "a"', "needs endpoints"),
        ('name = "a/b"\nendpoints = ["http://x"]', "host 'a/b'"),
        ('name = "a"\nendpoints = []', "endpoints cannot be"),
        ('name = "a"\nendpoints = ["http://x"]\nbudget = 0', "budget is 0 to 60"),
        ('name = "a"\nendpoints = ["http://x"]\nwhen_away = "no"', "go or refuse"),
        ('name = "a"\nendpoints = ["http://x"]\nuser = "a"', "password_file"),
        ('name = "a"\nendpoints = ["http://x"]\nprefix = "x/"', "begins with"),
        ('name = "a"\nendpoints = ["http://x"]\nspeed = 1', "no setting 'speed'"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, table: str, problem: str) -> None:
    file = tmp_path / "tapster.toml"
    file.write_text(f"[fleet]\n{table}\n")
    with pytest.raises(RequestError, match=problem):
        config.load(str(file))


@pytest.fixture
def etcd(world: None, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 1) as running:
        yield running


@pytest.mark.kernel
def test_the_daemon_syncs(etcd: Cluster) -> None:
    urls = json.dumps(etcd.endpoints)
    policy = f'[fleet]\nname = "a"\nendpoints = {urls}\n'
    with Daemon(policy=policy, root=True) as daemon:
        for action in ("init --apply", "join"):
            fleet = f"fleet --config {daemon.config} {action}"
            sh(f"{TAPSTER} --ledger {daemon.ledger} {fleet}")
        name = sh(f"{TAPSTER} --ledger {daemon.ledger} add --bridge br0").strip()
        assert etcd.values(Keys().rows()) == {}
        with etcd.watching(Keys().rows()) as lines:
            daemon.start()
            line = next(line for line in lines if line.startswith("{"))
        assert json.loads(line)["name"] == name
        with daemon.connect() as client:
            shown = {count.label: count for count in client.statistics()}
        assert shown["conflicts"].value == 0
        assert shown["block_free"].value == BLOCK_SIZE - 1
        sh(f"{TAPSTER} --ledger {daemon.ledger} rm {name}")
