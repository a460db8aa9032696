# SPDX-License-Identifier: Apache-2.0
"""Every way in which an endpoint can fail to answer, tried once.

The endpoint is a server of the test's own that does one thing with one request.
"""

import json
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest

from lab.reapers import wait_for
from tapster import RequestError
from tapster.fleet import macs
from tapster.fleet.etcd import Endpoint, Etcd, EtcdRefusal, Login, parse_endpoint
from tapster.fleet.keys import Keys
from tapster.fleet.member import open_store
from tapster.fleet.settings import Settings
from tapster.fleet.store import FleetUnavailable, FleetUnclear
from tests.fleet.hosts import MAC, Pair

TIMEOUT = 0.5
Reply = Callable[[socket.socket], None]


def answer(body: bytes, status: int = 200, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status} Status\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def refusal(status: int, code: int, message: str) -> bytes:
    return answer(json.dumps({"error": message, "code": code}).encode(), status)


def code(text: str) -> str:
    return b64encode(text.encode()).decode()


DONE = answer(b'{"succeeded": true}')


def says(data: bytes) -> Reply:
    return lambda connection: connection.sendall(data)


def closes(connection: socket.socket) -> None:
    connection.close()


def resets(connection: socket.socket) -> None:
    linger = b"\1\0\0\0\0\0\0\0"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def is_silent(_: socket.socket) -> None:
    pass


def dribbles(connection: socket.socket) -> None:
    """A byte now and then, so that no timeout of a socket ever ends."""
    ended = threading.Event()
    for byte in answer(b" " * 1000):
        connection.sendall(bytes([byte]))
        if ended.wait(0.05):
            return


Stores = Callable[..., Etcd]


@pytest.fixture
def etcd() -> Iterator[Stores]:
    """Makes stores, and closes them at the end."""
    with ExitStack() as stack:
        yield lambda *endpoints, **options: stack.enter_context(
            closing(Etcd(endpoints, **options))
        )


class ScriptedServer:
    """Answers each request with the next of its replies; the last one stays."""

    def __init__(self, *replies: Reply) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._replies = [*replies]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint(False, "127.0.0.1", self._socket.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._open.append(connection)
                if self._socket.fileno() < 0:  # `close` may have missed it
                    connection.close()
                    return
                threading.Thread(
                    target=self._talk, args=(connection,), daemon=True
                ).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("rb") as file:
            while line := file.readline():
                path = line.split()[1].decode()
                headers = {}
                while (head := file.readline()) not in (b"\r\n", b""):
                    name, _, value = head.decode().partition(": ")
                    headers[name.lower()] = value.strip()
                body = file.read(int(headers.get("content-length", 0)))
                self.requests.append((path, headers, body))
                reply = self._replies[0]
                if len(self._replies) > 1:
                    del self._replies[0]
                reply(connection)

    def close(self) -> None:
        self._socket.close()
        for connection in self._open:
            with suppress(OSError):
                connection.close()


@contextmanager
def serving(*replies: Reply) -> Iterator[ScriptedServer]:
    server = ScriptedServer(*replies)
    try:
        yield server
    finally:
        server.close()


BAD = {
    "closed": closes,
    "reset": resets,
    "silent": is_silent,
    "dribbled": dribbles,
    "half a body": says(answer(b'{"succ', length=100)),
    "garbage": says(b"\0\1\2garbage\r\n\r\n"),
    "no JSON": says(answer(b"<html>")),
    "a list": says(answer(b"[]")),
    "500": says(refusal(500, 2, "context deadline exceeded")),
    "503": says(refusal(503, 14, "etcdserver: no leader")),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_write_without_an_answer_is_unclear(etcd: Stores, bad: str) -> None:
    with serving(BAD[bad]) as server:
        store = etcd(server.endpoint, timeout=TIMEOUT)
        began = monotonic()
        with pytest.raises(FleetUnclear, match=str(server.endpoint)):
            store.commit({}, {"/a": "1"})
        assert monotonic() - began < TIMEOUT + 0.2
        assert len(server.requests) == 1, "it must not be sent twice"


@pytest.mark.parametrize("bad", BAD)
def test_a_read_is_asked_of_the_next_endpoint(etcd: Stores, bad: str) -> None:
    with serving(BAD[bad]) as server, serving(says(answer(b"{}"))) as other:
        store = etcd(server.endpoint, other.endpoint, timeout=TIMEOUT)
        began = monotonic()
        assert store.read(["/a"]) == {}
        assert monotonic() - began < TIMEOUT + 0.2
        store.read(["/a"])
        assert len(server.requests) == 1, "the endpoint that answered is kept"


def test_a_write_goes_to_the_next_endpoint_if_it_could_not_be_sent(
    etcd: Stores,
) -> None:
    with serving(says(DONE)) as server:
        nobody = Endpoint(False, "127.0.0.1", 1)
        store = etcd(nobody, server.endpoint, timeout=TIMEOUT)
        assert store.commit({}, {"/a": "1"}).done


def test_no_endpoint_listens(etcd: Stores) -> None:
    store = etcd(Endpoint(False, "127.0.0.1", 1), timeout=TIMEOUT)
    with pytest.raises(
        FleetUnavailable, match=r"127\.0\.0\.1:1: Connection refused"
    ) as e:
        store.commit({}, {"/a": "1"})
    assert not isinstance(e.value, FleetUnclear)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (429, 8, "etcdserver: mvcc: database space exceeded"),
        (403, 7, "etcdserver: permission denied"),
        (400, 3, "etcdserver: duplicate key given in txn request"),
    ],
)
def test_a_refusal_is_clear(etcd: Stores, status: int, code: int, message: str) -> None:
    with serving(says(refusal(status, code, message))) as server:
        store = etcd(server.endpoint, server.endpoint, timeout=TIMEOUT)
        with pytest.raises(EtcdRefusal, match=message.removeprefix("etcdserver: ")):
            store.commit({}, {"/a": "1"})
        assert len(server.requests) == 1


def test_the_answer_of_an_endpoint_is_fit_to_print(etcd: Stores) -> None:
    with serving(says(refusal(403, 7, "\x1b[2J" + "x" * 5000))) as server:
        with pytest.raises(EtcdRefusal) as error:
            etcd(server.endpoint, timeout=TIMEOUT).read(["/a"])
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 600


def test_a_login_is_renewed_once(etcd: Stores, tmp_path: Path) -> None:
    cache = tmp_path / "token"
    expired = says(refusal(401, 16, "etcdserver: invalid auth token"))
    with serving(
        says(answer(b'{"token": "one"}')),
        says(DONE),
        expired,
        says(answer(b'{"token": "two"}')),
        says(DONE),
    ) as server:
        login = Login("host", lambda: "secret")
        store = etcd(server.endpoint, login=login, cache=str(cache))
        assert store.commit({}, {"/a": "1"}).done
        assert store.commit({}, {"/a": "2"}).done
        paths = [path for path, _, _ in server.requests]
        tokens = [headers.get("authorization") for _, headers, _ in server.requests]
        assert [path.rsplit("/", 1)[1] for path in paths] == [
            *("authenticate", "txn", "txn", "authenticate", "txn")
        ]
        assert tokens == [None, "one", "one", None, "two"]
        assert cache.stat().st_mode & 0o777 == 0o600
        again = etcd(server.endpoint, login=login, cache=str(cache))
        assert again.commit({}, {"/a": "3"}).done
        assert server.requests[-1][1]["authorization"] == "two"


def test_a_wrong_password_is_asked_for_once(etcd: Stores) -> None:
    said = "etcdserver: authentication failed, invalid user ID or password"
    with serving(says(refusal(400, 3, said))) as server:
        store = etcd(server.endpoint, login=Login("host", lambda: "wrong"))
        with pytest.raises(EtcdRefusal, match="invalid user ID or password"):
            store.commit({}, {"/a": "1"})
        assert len(server.requests) == 1


def test_a_damaged_answer_of_the_right_form(etcd: Stores) -> None:
    body = json.dumps({"responses": [{"response_range": {"kvs": [{"key": "%%%"}]}}]})
    with (
        serving(says(answer(body.encode()))) as server,
        pytest.raises(FleetUnavailable, match="damaged"),
    ):
        etcd(server.endpoint).read(["/a"])


def test_a_connection_that_the_server_has_closed_is_opened_again(etcd: Stores) -> None:
    closed = threading.Semaphore(0)

    def last(connection: socket.socket) -> None:
        connection.sendall(DONE)
        connection.shutdown(socket.SHUT_RDWR)
        closed.release()

    with serving(last) as server:
        store = etcd(server.endpoint, timeout=TIMEOUT)
        for number in range(5):
            assert store.commit({}, {"/a": str(number)}).done
            assert closed.acquire(timeout=10)


def test_a_connection_is_closed_if_the_server_says_so(etcd: Stores) -> None:
    head, _, body = DONE.partition(b"\r\n")
    with serving(says(head + b"\r\nConnection: close\r\n" + body)) as server:
        store = etcd(server.endpoint, timeout=TIMEOUT)
        for number in range(5):
            assert store.commit({}, {"/a": str(number)}).done


def test_a_token_that_cannot_be_sent_is_not_sent(etcd: Stores) -> None:
    token = json.dumps({"token": "a\r\nX-Other: b"}).encode()
    with serving(says(answer(token)), says(DONE)) as server:
        store = etcd(server.endpoint, login=Login("host", lambda: "secret"))
        assert store.commit({}, {"/a": "1"}).done
        assert not any("x-other" in headers for _, headers, _ in server.requests)


def test_keys_are_coded_for_the_gateway(etcd: Stores) -> None:
    with serving(says(DONE)) as server:
        etcd(server.endpoint).commit({"/a": None}, {"/b": "1", "/c": None})
        body = json.loads(server.requests[0][2])
        coded = code("/a")
        assert body["compare"][0]["key"] == coded
        assert body["failure"] == [{"request_range": {"key": coded}}]
        assert [*body["success"][1]] == ["request_delete_range"]


def test_the_budget_is_for_all_requests_of_an_acquire(etcd: Stores, pair: Pair) -> None:
    permit = Keys().permit("b")
    kv = {"key": code(permit), "value": code(pair.store.values[permit])}
    body = {"responses": [{"response_range": {"kvs": [kv]}}]}
    ended = threading.Event()

    def late(connection: socket.socket) -> None:
        ended.wait(0.3)
        connection.sendall(answer(json.dumps(body).encode()))

    with serving(late) as server:
        pair.b.settings = pair.b.settings._replace(endpoints=(str(server.endpoint),))
        pair.b.configure()
        pair.b.store = etcd(server.endpoint)
        began = monotonic()
        pair.b.add(MAC)
        assert monotonic() - began < pair.b.settings.budget + 0.2
        assert len(server.requests) == 2
    (entry,) = pair.b.member.book.dirty()
    assert "no answer in time" in entry.problem


@pytest.mark.parametrize("anxious", [60.0, 0.0])
def test_an_acquire_soon_after_one_without_an_answer_waits_less(
    etcd: Stores, pair: Pair, monkeypatch: pytest.MonkeyPatch, anxious: float
) -> None:
    monkeypatch.setattr(macs, "ANXIOUS", anxious)
    budget = macs.WAITING * pair.b.settings.budget

    def seconds() -> float:
        began = monotonic()
        pair.b.host.release(pair.b.add(MAC).id)
        pair.b.host.reap(now=True)
        return monotonic() - began

    with serving(is_silent) as server:
        pair.b.settings = pair.b.settings._replace(endpoints=(str(server.endpoint),))
        pair.b.configure()
        pair.b.store = etcd(server.endpoint)
        waited = [seconds() >= budget for _ in range(3)]
        assert waited == [True, not anxious, not anxious]
        wait_for(
            lambda: len(server.requests) == 3, "each acquire has asked all the same"
        )


def test_a_missing_password_is_no_obstacle_to_an_acquire(tmp_path: Path) -> None:
    missing = str(tmp_path / "password")
    with serving(says(DONE)) as server:
        settings = Settings("a", (str(server.endpoint),), user="a")
        store = open_store(settings._replace(password_file=missing))
        with pytest.raises(FleetUnavailable, match=f"{missing}: No such file"):
            store.read(["/a"])


def test_a_wrong_endpoint_is_no_obstacle_to_an_acquire(
    pair: Pair, etcd: Stores
) -> None:
    """As a store that is away. A faulty file of settings was none before."""
    pair.b.settings = pair.b.settings._replace(endpoints=("etcd1:2379",))
    pair.b.configure()
    pair.b.store = etcd(Endpoint(False, "127.0.0.1", 1))
    lease = pair.b.add(MAC)
    entry = pair.b.member.book.of_lease(lease.id)
    assert entry is not None
    assert "an endpoint is a URL" in entry.problem
    pair.b.configure('when_away = "refuse"')
    with pytest.raises(FleetUnavailable, match="an endpoint is a URL"):
        pair.b.add(MAC, bridge="br1")


@pytest.mark.parametrize(
    "url",
    [
        *("", "etcd1", "ftp://x", "http://", "http://x:99999", "http://x/path"),
        *("http://[::1", "http://x:0", "http://a b", "http://u:p@x", "http://x?y"),
        *("http://.x", "http://a..b", f"http://{'a' * 64}.example"),
    ],
)
def test_a_url_that_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="endpoint"):
        parse_endpoint(url)


def test_an_endpoint_can_be_ipv6() -> None:
    assert parse_endpoint("https://[::1]:1") == Endpoint(True, "::1", 1)
    assert str(parse_endpoint("https://[::1]")) == "https://[::1]:2379"


def test_an_endpoint_that_does_not_answer_is_asked_last(
    etcd: Stores, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    with serving(is_silent) as bad, serving(says(DONE)) as good:
        store = etcd(bad.endpoint, good.endpoint, timeout=TIMEOUT, cache=cache)
        with pytest.raises(FleetUnclear):
            store.commit({}, {"/a": "1"})
        assert store.commit({}, {"/a": "1"}).done
        again = etcd(bad.endpoint, good.endpoint, timeout=TIMEOUT, cache=cache)
        assert again.commit({}, {"/a": "1"}).done
        assert len(bad.requests) == 1
