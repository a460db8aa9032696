# SPDX-License-Identifier: Apache-2.0
"""tapsterd keeps a host in its fleet; without [fleet] nothing of it is imported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import library
from lab.daemon import Daemon
from lab.fleet.etcd import Cluster, cluster
from lab.shell import TAPSTER, sh
from tapster import RequestError, Tap
from tapster.daemon import config
from tapster.fleet import sync_loop
from tapster.fleet.keys import BLOCK_SIZE, Keys
from tapster.fleet.member import Member
from tapster.fleet.registration import RecordState
from tapster.fleet.sync_loop import SyncLoop
from tapster.model import Vm
from tests.fleet.hosts import MAC, Pair, X

OTHER, Y = "52:54:00:aa:bb:dd", Vm("Y")


class SyncLog:
    """What a loop of syncs says."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, fields: dict[str, object]) -> None:
        self.said.append((event, fields))


class TurnedLoop:
    """The loop of syncs of host a, which a test lets turn."""

    def __init__(self, pair: Pair, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(sync_loop, "open_store", lambda _: pair.store)
        self.events = SyncLog()
        self.member: Member | None = None
        self.operations = pair.a.host.operations
        self.loop = SyncLoop(
            str(pair.a.ledger),
            self.operations.context.system,
            str(pair.a.config),
            self.events,
            lambda lease: self.operations.rewire.set(lease, {"up": False}),
        )

    def turn(self) -> list[str]:
        """Sync; the events since the last turn."""
        said = len(self.events.said)
        self.member = self.loop.turn(self.member)
        return [event for event, _ in self.events.said[said:]]


@pytest.fixture
def synced(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[TurnedLoop]:
    made = TurnedLoop(pair, monkeypatch)
    yield made
    if made.member is not None:
        made.member.close()


def test_the_loop_pushes_and_says_what_changes(pair: Pair, synced: TurnedLoop) -> None:
    pair.b.add(MAC, X)
    pair.store.away = True
    pair.a.add(MAC)
    assert [synced.turn() for _ in range(3)] == [["fleet-away"], [], []]
    assert synced.loop.figures() == {"up": 0, "fenced": 0}
    pair.store.away = False
    said = [synced.turn() for _ in range(3)]
    assert said == [["fleet-synced", "fleet-conflict"], [], []]
    assert synced.loop.figures() == {"up": 1, "fenced": 0}


def test_a_fault_does_not_end_the_syncs(
    pair: Pair, synced: TurnedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    synced.turn()
    with monkeypatch.context() as patch:
        patch.setattr(Member, "sync", fail)
        assert synced.turn() == ["fleet-away"]
    assert synced.events.said[-1][1] == {"problem": "ZeroDivisionError: a fault"}
    pair.a.config.write_text("[fleet")
    assert synced.turn() == ["fleet-away"]
    pair.a.configure()
    assert synced.turn() == ["fleet-synced"]


def test_the_loop_follows_the_configuration(pair: Pair, synced: TurnedLoop) -> None:
    synced.turn()
    pair.a.configure("budget = 0.25")
    synced.turn()
    assert synced.member is not None
    assert synced.member.settings.budget == 0.25


@pytest.mark.parametrize("on_fenced", ["report", "down"])
def test_a_fenced_host_lets_go_of_vms_that_run_elsewhere(
    pair: Pair, synced: TurnedLoop, on_fenced: str
) -> None:
    pair.a.configure(f'on_fenced = "{on_fenced}"')
    own, moved = pair.a.add(), pair.a.add(MAC, X)
    synced.turn()
    pair.fleet.fence("a", by="test", why="test")
    assert synced.turn() == ["fleet-away"]
    assert synced.loop.figures() == {"up": 0, "fenced": 1}
    pair.b.add(MAC, X)
    down = ["fleet-down"] if on_fenced == "down" else []
    assert [synced.turn() for _ in range(2)] == [down, []]
    up = {lease.id: lease.wiring.up for lease in pair.a.host.leases()}
    assert up == {own.id: True, moved.id: on_fenced == "report"}


def test_a_device_that_cannot_be_taken_down_keeps_no_other_vm_up(
    pair: Pair, synced: TurnedLoop
) -> None:
    """The bridge of one VM is gone. The other VM would run twice on its network."""
    pair.a.configure('on_fenced = "down"')
    lost, moved = pair.a.add(MAC, X, "br1"), pair.a.add(OTHER, Y)
    synced.turn()
    pair.a.system.stranger().delete_by_name("br1")
    pair.fleet.fence("a", by="test", why="test")
    pair.b.add(MAC, X)
    pair.b.add(OTHER, Y)
    said = [synced.turn() for _ in range(2)]
    assert said == [["fleet-away", "fleet-not-down", "fleet-down"], []]
    up = {lease.id: lease.wiring.up for lease in pair.a.host.leases()}
    assert up == {lost.id: True, moved.id: False}
    pair.a.system.stranger().add_bridge("br1")
    assert synced.turn() == ["fleet-down"]


def test_a_damaged_value_of_the_store_hinders_no_other_record(
    pair: Pair, synced: TurnedLoop
) -> None:
    key = Keys().registration("default", MAC)
    damaged, sound = pair.a.add(MAC, X), pair.a.add(OTHER, Y)
    pair.store.values[key] = "{"
    pair.a.host.release(damaged.id)
    pair.a.host.release(sound.id)
    assert synced.turn() == ["fleet-conflict"]
    found = pair.registration(OTHER)
    assert found is not None
    assert found.state is RecordState.PARKED
    (problem,) = pair.a.member.book.entries("WHERE problem != ''")
    assert f"the store's key {key!r} is damaged" in problem.problem
    del pair.store.values[key]
    synced.turn()
    assert pair.a.member.book.entries("WHERE problem != ''") == []


def test_the_log_says_once_that_the_host_has_not_joined(
    pair: Pair, synced: TurnedLoop
) -> None:
    pair.a.member.leave()
    assert [synced.turn() for _ in range(2)] == [["fleet-away"], []]


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
        ('name = "a"\nendpoints = ["x:1"]', "line 3.*an endpoint is a URL such as"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, table: str, problem: str) -> None:
    file = tmp_path / "tapster.toml"
    file.write_text(f"[fleet]\n{table}\n")
    with pytest.raises(RequestError, match=problem):
        config.load(str(file))


def test_a_file_of_the_fleet_that_is_missing_is_named_and_ends_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tapster.toml"
    file.write_text(
        '[fleet]\nname = "a"\nendpoints = ["https://x"]\nca = "/none/ca.pem"\n'
    )
    loaded, faults = config.check(str(file))
    assert loaded == config.load(str(file))
    assert [str(fault) for fault in faults] == [
        "line 4: fleet.ca: '/none/ca.pem' does not exist on this host"
    ]


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
            library.acquire(client, Tap(bridge="br0", mac=MAC))
            shown = {(c.name, c.label): c.value for c in client.statistics()}
        assert shown["fleet", "conflicts"] == 0
        assert shown["fleet", "block_free"] == BLOCK_SIZE - 1
        assert shown["fleet", "up"] == 1
        assert shown["fleet_registrations", "ok"] == 1
        assert shown["fleet_request_seconds_count", None] == 1
        sh(f"{TAPSTER} --ledger {daemon.ledger} rm {name}")
