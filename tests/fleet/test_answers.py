# SPDX-License-Identifier: Apache-2.0
"""etcd's answers in every wrong form: the store is unavailable, and nothing else."""

import json
import random
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tapster.fleet.etcd import Etcd, Login, parse_endpoint
from tapster.fleet.store import FleetUnavailable, FleetUnclear


def coded(text: str) -> str:
    return b64encode(text.encode()).decode()


PAIR = {"key": coded("/a/b"), "value": coded("{}"), "mod_revision": "3"}
GOOD: dict[str, dict[str, Any]] = {
    "kv/txn": {
        "header": {},
        "succeeded": True,
        "responses": [{"response_range": {"kvs": [PAIR, PAIR], "count": "2"}}],
    },
    "kv/range": {"kvs": [PAIR], "count": "1"},
    "lease/grant": {"ID": "123", "TTL": "60"},
    "lease/keepalive": {"result": {"ID": "123", "TTL": "60"}},
    "maintenance/status": {"version": "3.4.23", "dbSize": "123", "leader": "1"},
    "maintenance/alarm": {"alarms": [{"memberID": "1", "alarm": "NOSPACE"}]},
    "auth/authenticate": {"token": "abc"},
}
ODD: list[Any] = [
    *(None, True, 0, -1, 1 << 70, 0.5, 1e308, "", "x", "!!!!", "\ud800"),
    *([], [[]], {}, {"a": 1}, [None], ["x"], [5]),
]
CALLS: dict[str, Callable[[Etcd], object]] = {
    "read": lambda etcd: etcd.read(["/a"]),
    "scan": lambda etcd: [*etcd.scan("/a")],
    "commit": lambda etcd: etcd.commit({"/a": None}, {"/a": "x"}),
    "open": lambda etcd: etcd.open_session(60),
    "keep": lambda etcd: etcd.keep_session(1),
    "alarms": lambda etcd: [alarm + "" for alarm in etcd.alarms()],
    "members": lambda etcd: [
        isinstance(status, str) or (status["version"] + "", status["dbSize"] + 0)
        for _, status in etcd.members()
    ],
    "doctor": lambda etcd: etcd.is_open_to_all("/a"),
}
ROUNDS = 60


class Store:
    """Answers by HTTP as it is told."""

    def __init__(self) -> None:
        self.answer: Callable[[str], tuple[int, bytes]] = lambda _: (200, b"{}")
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = store.answer(self.path.removeprefix("/v3/"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        serve = partial(self._server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()

    def client(self, login: Login | None = None) -> Etcd:
        endpoint = parse_endpoint(f"http://127.0.0.1:{self._server.server_port}")
        return Etcd([endpoint], login=login)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(Store()) as store:
        yield store


def changed(value: Any, chance: random.Random) -> Any:
    """A value with something odd in it, here and there."""
    if chance.random() < 0.12:
        return chance.choice(ODD)
    if isinstance(value, dict):
        return {
            key: changed(inner, chance)
            for key, inner in value.items()
            if chance.random() < 0.95
        }
    if isinstance(value, list):
        return [changed(inner, chance) for inner in value]
    return value


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_of_another_form_is_none(store: Store, call: str) -> None:
    chance = random.Random(1)

    def answer(path: str) -> tuple[int, bytes]:
        if chance.random() < 0.05:
            return 200, b"[" * 50000
        status = 200 if chance.random() < 0.9 else chance.choice([400, 401, 403, 500])
        return status, json.dumps(changed(GOOD[path], chance)).encode()

    store.answer = answer
    outcomes = set()
    for number in range(ROUNDS):
        login = Login("user", lambda: "password") if number % 2 else None
        with closing(store.client(login)) as etcd:
            try:
                CALLS[call](etcd)
                outcomes.add("good")
            except FleetUnavailable:
                outcomes.add("unavailable")
    assert outcomes == {"good"} if call == "members" else {"good", "unavailable"}


@pytest.mark.parametrize("succeeded", ["false", 1, [], {}])
def test_a_write_that_has_no_clear_answer_may_be_applied(
    store: Store, succeeded: Any
) -> None:
    store.answer = lambda _: (200, json.dumps({"succeeded": succeeded}).encode())
    with closing(store.client()) as etcd, pytest.raises(FleetUnclear):
        etcd.commit({"/a": None}, {"/a": "x"})


@pytest.mark.parametrize("pairs", [[], [PAIR]])
def test_a_scan_that_does_not_go_on_ends(store: Store, pairs: list[Any]) -> None:
    store.answer = lambda _: (200, json.dumps({"kvs": pairs, "more": True}).encode())
    with (
        closing(store.client()) as etcd,
        pytest.raises(FleetUnavailable, match="more keys follow, and none comes"),
    ):
        list(etcd.scan("/a"))
