# SPDX-License-Identifier: Apache-2.0
"""etcd as the store of a fleet, through its JSON gateway and Python's own http.client.

No library is used: the libraries bring gRPC, which has 23 MB and takes 0.2 s to import,
or are no longer maintained, or know only one endpoint. The gateway needs none of them.
docs/fleet.md names the traps of the gateway.

The time limit of a call covers all endpoints, the TLS handshake and a login. If
an endpoint fails, the next endpoint is asked. A write is tried at another endpoint only
if nothing of it was sent. Otherwise the store may or may not have applied the write,
and the call raises FleetUnclear.
"""

import io
import json
import os
import socket
import ssl
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse

from tapster.errors import RequestError
from tapster.fleet.store import Committed, FleetUnavailable, FleetUnclear
from tapster.light import Any, NamedTuple

PAGE = 1000
"""Keys in an answer to `scan`."""
LARGEST = 1 << 26
"""Bytes of an answer."""
IDLE = 30.0
"""Seconds after which a connection is not used again: a firewall may have dropped it
silently. More than the time between two syncs."""


HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._:%")
"""Of names and addresses of hosts."""


class Login(NamedTuple):
    """A user of the store and how to get the password."""

    user: str
    password: Callable[[], str]


class Certificates(NamedTuple):
    """Files in PEM: the authority of the store, and the certificate of this client."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


NO_CERTIFICATES = Certificates()


class EtcdRefusal(FleetUnavailable):
    """The store has read the request and refused it."""

    def __init__(self, status: int, code: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.code = code


class Endpoint(NamedTuple):
    tls: bool
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint of a URL. Raises RequestError."""
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        host, port = url.hostname or "", 2379 if url.port is None else url.port
        host.encode("idna")  # as a look-up does, with the same error
    except ValueError:
        raise _no_endpoint(text) from None
    plain = f"{url.scheme}://{url.netloc}"
    # A user and a password have settings of their own.
    if (
        url.scheme not in ("http", "https")
        or text not in (plain, f"{plain}/")
        or not host
        or not set(host) <= HOST_CHARACTERS
        or not port
        or "@" in url.netloc
    ):
        raise _no_endpoint(text)
    return Endpoint(url.scheme == "https", host, port)


def _no_endpoint(text: str) -> RequestError:
    return RequestError(
        f"an endpoint is a URL such as https://etcd1:2379, not {text!r}"
    )


class Etcd:
    """A store behind one or more endpoints. May be used by one thread at a time."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        login: Login | None = None,
        certificates: Certificates = NO_CERTIFICATES,
        timeout: float = 5.0,
        cache: str | None = None,
    ) -> None:
        """Connect at the first call.

        `timeout` is for each call. `cache` is a file, readable by its owner alone, in
        which the token and the endpoint of the last call are kept for the next
        process.
        """
        if not endpoints:
            raise RequestError("a fleet needs at least one endpoint of etcd")
        self.timeout = timeout
        self._endpoints = [*endpoints]
        self._login = login
        self._certificates = certificates
        self._cache = cache
        self._context: ssl.SSLContext | None = None
        self._wire: TimedConnection | None = None
        self._used = 0.0
        self.token = ""
        self._recall()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    # The store

    def read(self, keys: Sequence[str]) -> Mapping[str, str]:
        ranges = [{"request_range": {"key": _coded(key)}} for key in keys]
        return _found(self.call("kv/txn", {"success": ranges}))

    def scan(self, prefix: str) -> Iterator[tuple[str, str]]:
        start, end = prefix.encode(), prefix.encode()
        end = end[:-1] + bytes([end[-1] + 1])
        while True:
            answer = self.call(
                "kv/range",
                {
                    "key": b64encode(start).decode(),
                    "range_end": b64encode(end).decode(),
                    "limit": PAGE,
                },
            )
            pairs = _pairs(answer)
            yield from pairs
            if not answer.get("more"):
                return
            before, start = start, pairs[-1][0].encode() + b"\0" if pairs else b""
            if start <= before:
                raise _damaged("more keys follow, and none comes")

    def commit(
        self,
        expected: Mapping[str, str | None],
        writes: Mapping[str, str | None],
        *,
        session: int = 0,
    ) -> Committed:
        body = {
            "compare": [_compare(key, value) for key, value in expected.items()],
            "success": [_write(key, value, session) for key, value in writes.items()],
            "failure": [{"request_range": {"key": _coded(key)}} for key in expected],
        }
        answer = self.call("kv/txn", body, writes=True)
        succeeded = answer.get("succeeded", False)
        if not isinstance(succeeded, bool):
            raise FleetUnclear(f"etcd's answer is damaged: succeeded is {succeeded!r}")
        if succeeded:
            return Committed(True, {})
        return Committed(False, _found(answer))

    def open_session(self, seconds: int) -> int:
        answer = self.call("lease/grant", {"TTL": seconds}, writes=True)
        with _as_damaged():
            return int(answer["ID"])

    def keep_session(self, session: int) -> bool:
        answer = self.call("lease/keepalive", {"ID": session})
        with _as_damaged():
            return int(answer.get("result", {}).get("TTL", 0)) > 0

    # For doctor

    def members(self) -> Iterator[tuple[Endpoint, Mapping[str, Any] | str]]:
        """The status of each endpoint, or why there is none."""
        for endpoint in [*self._endpoints]:
            self.close()
            try:
                answer = self.call("maintenance/status", {}, only=endpoint)
                with _as_damaged():
                    size = int(answer.get("dbSize", 0))
            except FleetUnavailable as error:
                yield endpoint, str(error)
            else:
                version = str(answer.get("version", "?"))
                yield endpoint, {"version": version, "dbSize": size}
        self.close()

    def alarms(self) -> list[str]:
        """Return the alarms of the store, such as NOSPACE."""
        answer = self.call("maintenance/alarm", {})
        with _as_damaged():
            return [str(alarm["alarm"]) for alarm in answer.get("alarms", [])]

    def is_open_to_all(self, prefix: str) -> bool:
        """Return whether the store answers a caller without a password."""
        stranger = Etcd(
            self._endpoints, certificates=self._certificates, timeout=self.timeout
        )
        try:
            stranger.call("kv/range", {"key": _coded(prefix)})
        except EtcdRefusal:
            return False
        finally:
            stranger.close()
        return True

    def certificate_ends(self) -> float | None:
        """Return when the certificate of the store ends, in seconds since the epoch."""
        self.close()
        self.call("maintenance/status", {})
        sock = self._wire and self._wire.sock
        if not isinstance(sock, ssl.SSLSocket):
            return None
        shown = sock.getpeercert() or {}
        return ssl.cert_time_to_seconds(str(shown["notAfter"]))

    # Calls

    def call(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        writes: bool = False,
        only: Endpoint | None = None,
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        endpoints = [only] if only else [*self._endpoints]
        text = json.dumps(body).encode()
        problem: FleetUnavailable | None = None
        for number, endpoint in enumerate(endpoints):
            # The last endpoint gets all the time that is left.
            left = deadline - time.monotonic()
            if left <= 0:
                break
            until = deadline - left + left / (len(endpoints) - number)
            # A write that was sent cannot go to another endpoint: it gets all the time.
            window = Window(until, deadline if writes else until)
            try:
                answer = self._ask_with_login(
                    endpoint, path, text, window, writes=writes
                )
            except EtcdRefusal as error:
                if error.status < 500:
                    raise
                problem = error
            except FleetUnavailable as error:
                self._demote(endpoint)
                if isinstance(error, FleetUnclear):
                    raise
                problem = error
            else:
                self._prefer(endpoint)
                return answer
        raise problem or FleetUnavailable(f"{path}: no time was left")

    def _ask_with_login(
        self,
        endpoint: Endpoint,
        path: str,
        text: bytes,
        window: "Window",
        *,
        writes: bool,
    ) -> dict[str, Any]:
        fresh = False
        if self._login is not None and not self.token:
            self._log_in(endpoint, window.connect)
            fresh = True
        try:
            return self._ask(endpoint, path, text, window, writes=writes)
        except EtcdRefusal as error:
            # 16 is gRPC's "unauthenticated": the token has expired. etcd gives the
            # same message with 3 or 2 after a restart or a change of its users.
            expired = error.code == 16 or "auth token" in str(error)
            if self._login is None or fresh or not expired:
                raise
        self._log_in(endpoint, window.connect)
        return self._ask(endpoint, path, text, window, writes=writes)

    def _log_in(self, endpoint: Endpoint, until: float) -> None:
        assert self._login is not None
        self.token = ""
        body = {"name": self._login.user, "password": self._login.password()}
        try:
            answer = self._ask(
                endpoint,
                "auth/authenticate",
                json.dumps(body).encode(),
                Window(until, until),
            )
        except EtcdRefusal as error:
            if error.code == 9:  # authentication is not enabled: no token is needed
                return
            raise
        self.token = _checked_token(answer.get("token", ""))
        self._remember(endpoint)

    def _ask(
        self,
        endpoint: Endpoint,
        path: str,
        text: bytes,
        window: "Window",
        *,
        writes: bool = False,
    ) -> dict[str, Any]:
        """Send one request to one endpoint."""
        try:
            wire = self._connect(endpoint, window.connect)
        except OSError as error:
            self.close()
            raise FleetUnavailable(f"{endpoint}: {_said(error)}") from error
        wire.until = window.answer
        try:
            # In one piece: the server reads it at once.
            wire.sendall(_head(endpoint, path, self.token, len(text)) + text)
            response = HTTPResponse(wire, method="POST")  # type: ignore[arg-type]
            response.begin()
            raw = response.read(LARGEST)
            self._used = time.monotonic()
            answer = json.loads(raw)
            if not isinstance(answer, dict):
                raise ValueError(f"the answer is {type(answer).__name__}")
        except (OSError, HTTPException, RecursionError, ValueError) as error:
            self.close()
            problem = f"{endpoint}: {_said(error)}"
            if writes:
                raise FleetUnclear(f"{problem}; it may be applied") from error
            raise FleetUnavailable(problem) from error
        if response.will_close:
            self.close()
        if response.status == 200 and "error" not in answer:
            return answer
        self._refuse(endpoint, response.status, answer, writes=writes)
        raise AssertionError("it has raised")

    def _refuse(
        self, endpoint: Endpoint, status: int, answer: dict[str, Any], *, writes: bool
    ) -> None:
        said = answer.get("error")
        said = said.get("message") if isinstance(said, dict) else said
        said = str(said or answer.get("message") or f"HTTP status {status}")[:500]
        said = "".join(c if c.isprintable() else "?" for c in said)
        problem = f"{endpoint}: {said.removeprefix('etcdserver: ')}"
        code = answer.get("code", 0)
        if writes and (status >= 500 or status == 408):
            raise FleetUnclear(f"{problem}; it may be applied")
        raise EtcdRefusal(status, code if isinstance(code, int) else 0, problem)

    # Connections

    def _connect(self, endpoint: Endpoint, until: float) -> "TimedConnection":
        if self._wire is not None:
            idle = time.monotonic() - self._used
            if (
                self._wire.endpoint == endpoint
                and idle < IDLE
                and not _is_closed(self._wire.sock)
            ):
                return self._wire
            self.close()
        plain = _dial(endpoint, until)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = plain
            if endpoint.tls:
                plain.settimeout(_left(until))
                sock = self._tls().wrap_socket(plain, server_hostname=endpoint.host)
        except BaseException:
            plain.close()
            raise
        self._wire = TimedConnection(endpoint, sock)
        return self._wire

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            files = self._certificates
            try:
                context = ssl.create_default_context(cafile=files.ca)
                if files.cert:
                    context.load_cert_chain(files.cert, files.key, _no_passphrase)
            except OSError as error:
                names = ", ".join(file for file in files if file)
                raise FleetUnavailable(
                    f"certificates {names}: {_said(error)}"
                ) from error
            self._context = context
        return self._context

    def _prefer(self, endpoint: Endpoint) -> None:
        if self._endpoints[0] != endpoint:
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)
            self._remember(endpoint)

    def _demote(self, endpoint: Endpoint) -> None:
        """Ask every other endpoint first from now on."""
        if self._endpoints[0] == endpoint and len(self._endpoints) > 1:
            self._endpoints.append(self._endpoints.pop(0))
            self._remember(self._endpoints[0])

    # The cache for the next process

    def _recall(self) -> None:
        if self._cache is None:
            return
        with suppress(OSError, ValueError, TypeError, KeyError):
            with open(self._cache) as file:
                known = json.load(file)
            if self._login is not None and known["user"] == self._login.user:
                self.token = _checked_token(known["token"])
            first = [e for e in self._endpoints if str(e) == known["endpoint"]]
            rest = [e for e in self._endpoints if e not in first]
            self._endpoints = first + rest

    def _remember(self, endpoint: Endpoint) -> None:
        if self._cache is None:
            return
        known = {
            "endpoint": str(endpoint),
            "token": self.token,
            "user": self._login.user if self._login else "",
        }
        new = f"{self._cache}.{os.getpid()}"
        with suppress(OSError):  # the cache only saves time
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(new, flags, 0o600), "w") as file:
                json.dump(known, file)
            os.replace(new, self._cache)


class Window(NamedTuple):
    """By when an endpoint must be connected, and by when it must have answered."""

    connect: float
    answer: float


class TimedConnection:
    """A connection whose sends and receives must all end by one time.

    A timeout of a socket begins again with every byte. This time limit does not.
    """

    def __init__(self, endpoint: Endpoint, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self.sock = sock
        self.until = 0.0

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(_left(self.until))
        self.sock.sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        """Return the file from which HTTPResponse reads."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self.sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, wire: TimedConnection) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wire.sock.settimeout(_left(self._wire.until))
        return self._wire.sock.recv_into(buffer)


def _no_passphrase() -> str:
    """Refuse a key that has a passphrase: OpenSSL would ask for it at the terminal."""
    raise FleetUnavailable(
        "the key of fleet.key has a passphrase: decrypt it with: "
        "openssl pkey -in KEY -out NEW"
    )


def _left(until: float) -> float:
    """Return the seconds until a time. Raises TimeoutError if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _head(endpoint: Endpoint, path: str, token: str, length: int) -> bytes:
    """Return the head of a request."""
    lines = [
        f"POST /v3/{path} HTTP/1.1",
        f"Host: {str(endpoint).partition('//')[2]}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *([f"Authorization: {token}"] if token else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _dial(endpoint: Endpoint, until: float) -> socket.socket:
    """Connect to the first address of an endpoint that accepts."""
    problem = OSError(f"{endpoint.host} has no address")
    for family, kind, protocol, _, address in _addresses(endpoint, until):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(until))
            sock.connect(address)
        except OSError as error:
            sock.close()
            problem = error
        else:
            return sock
    raise problem


def _addresses(endpoint: Endpoint, until: float) -> Sequence[Any]:
    """Look a name up. A name server can take longer than any timeout, so a thread asks
    it."""
    where = endpoint.host, endpoint.port, 0, socket.SOCK_STREAM, 0
    with suppress(socket.gaierror):
        return socket.getaddrinfo(*where, socket.AI_NUMERICHOST)
    found: list[Any] = []
    problems: list[OSError] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(*where))
        except OSError as error:
            problems.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_left(until))
    if problems:
        raise problems[0]
    if thread.is_alive():
        raise TimeoutError
    return found


def _is_closed(sock: socket.socket) -> bool:
    """Return whether the other side has closed an idle connection."""
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK) if not isinstance(sock, ssl.SSLSocket) else (
            sock.read(1)
        )
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True  # closed, or bytes that no request asked for


def _checked_token(token: object) -> str:
    """Return a token; "" if the token cannot be part of a request's head."""
    good = isinstance(token, str) and token.isascii() and token.isprintable()
    return str(token) if good else ""


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# The gateway's JSON


def _coded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _plain(coded: str) -> str:
    return b64decode(coded, validate=True).decode()


def _compare(key: str, value: str | None) -> dict[str, Any]:
    if value is None:
        return {
            "key": _coded(key),
            "target": "CREATE",
            "result": "EQUAL",
            "create_revision": 0,
        }
    return {
        "key": _coded(key),
        "target": "VALUE",
        "result": "EQUAL",
        "value": _coded(value),
    }


def _write(key: str, value: str | None, session: int) -> dict[str, Any]:
    if value is None:
        return {"request_delete_range": {"key": _coded(key)}}
    put = {"key": _coded(key), "value": _coded(value)}
    if session:
        put["lease"] = str(session)
    return {"request_put": put}


def _found(answer: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    with _as_damaged():
        for response in answer.get("responses", []):
            found.update(_pairs(response.get("response_range", {})))
    return found


def _pairs(ranged: Mapping[str, Any]) -> list[tuple[str, str]]:
    with _as_damaged():
        return [
            (_plain(kv["key"]), _plain(kv.get("value", "")))
            for kv in ranged.get("kvs", [])
        ]


@contextmanager
def _as_damaged() -> Iterator[None]:
    """Read a part of an answer. Raises FleetUnavailable if it is of another form."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error


def _damaged(problem: str) -> FleetUnavailable:
    return FleetUnavailable(f"etcd's answer is damaged: {problem}")
