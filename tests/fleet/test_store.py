# SPDX-License-Identifier: Apache-2.0
"""What every store must do: the one in memory, and a real etcd."""

import itertools
import random
from collections.abc import Iterator

import pytest

from lab.fleet.etcd import Cluster, cluster
from lab.namespaces import namespaces
from lab.shell import sh
from tapster.fleet.memory import MemoryStore
from tapster.fleet.store import MAX_KEYS, Store
from tests.fleet.clusters import store_of


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("etcd")
    with namespaces():
        sh("ip link set lo up")
        with cluster(folder, 1) as running:
            yield running


@pytest.fixture(
    params=["memory", pytest.param("etcd", marks=pytest.mark.kernel)],
)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    real = store_of(request.getfixturevalue("etcd"))
    for key, _ in real.scan("/"):
        real.commit({}, {key: None})
    yield real
    real.close()


def test_a_commit_writes_all_or_nothing(store: Store) -> None:
    assert store.commit({"/a": None}, {"/a": "1", "/b": "2"}).done
    refused = store.commit({"/a": "1", "/b": "x"}, {"/a": "3", "/c": "3"})
    assert (refused.done, dict(refused.found)) == (False, {"/a": "1", "/b": "2"})
    assert store.read(["/a", "/b", "/c"]) == {"/a": "1", "/b": "2"}
    assert store.commit({"/a": "1", "/c": None}, {"/a": None, "/b": "4"}).done
    assert store.read(["/a", "/b", "/c"]) == {"/b": "4"}


def test_an_absent_key_can_be_expected(store: Store) -> None:
    assert not store.commit({"/a": "1"}, {"/a": "2"}).done
    assert store.commit({"/a": None}, {"/a": ""}).done
    assert store.read(["/a"]) == {"/a": ""}
    assert not store.commit({"/a": None}, {"/a": "2"}).done
    assert store.commit({"/a": ""}, {"/a": None}).done
    assert store.commit({"/a": None}, {"/a": None}).done


def test_values_are_text_of_any_kind(store: Store) -> None:
    value = 'ä "\\\n\0\U0001f600'
    store.commit({}, {"/ä": value})
    assert store.read(["/ä"]) == {"/ä": value}
    assert store.commit({"/ä": value}, {"/ä": "x"}).done


def test_a_scan_is_of_a_prefix_and_in_order(store: Store) -> None:
    pairs = {f"/p/{number:04}": str(number) for number in range(2100)}
    keys = [*pairs]
    for first in range(0, len(keys), MAX_KEYS):
        batch = keys[first : first + MAX_KEYS]
        store.commit({}, {key: pairs[key] for key in batch})
    store.commit({}, {"/p": "x", "/q": "y", "/o/": "z"})
    assert [*store.scan("/p/")] == [*pairs.items()]
    assert [*store.scan("/none/")] == []


def test_a_commit_takes_the_promised_number_of_keys(store: Store) -> None:
    keys = [f"/{number}" for number in range(MAX_KEYS)]
    assert store.commit(dict.fromkeys(keys), dict.fromkeys(keys, "v")).done
    assert len(store.read(keys)) == MAX_KEYS


def test_keys_of_a_session_last_as_long_as_it(store: Store) -> None:
    session = store.open_session(60)
    assert store.keep_session(session)
    store.commit({}, {"/s": "here"}, session=session)
    assert store.read(["/s"]) == {"/s": "here"}
    assert not store.keep_session(session + 1)


@pytest.mark.kernel
def test_both_stores_do_the_same(etcd: Cluster) -> None:
    real, memory = store_of(etcd), MemoryStore()
    for key, _ in real.scan("/"):
        real.commit({}, {key: None})
    dice = random.Random(7)
    keys = ["/1", "/2", "/3"]
    values = [None, "a", "b"]
    for _ in range(300):
        expected = {
            key: dice.choice(values) for key in dice.sample(keys, dice.randrange(3))
        }
        writes = {
            key: dice.choice(values) for key in dice.sample(keys, 1 + dice.randrange(2))
        }
        assert real.commit(expected, writes) == memory.commit(expected, writes)
        assert real.read(keys) == memory.read(keys)
    assert [*real.scan("/")] == [*memory.scan("/")]
    real.close()


@pytest.mark.kernel
def test_one_of_two_hosts_gets_a_key_that_both_want(etcd: Cluster) -> None:
    stores = [store_of(etcd) for _ in range(3)]
    for number, first in itertools.product(range(10), range(3)):
        key = f"/race/{number}/{first}"
        order = stores[first:] + stores[:first]
        assert [s.commit({key: None}, {key: "x"}).done for s in order] == [
            True,
            False,
            False,
        ]
    for store in stores:
        store.close()
