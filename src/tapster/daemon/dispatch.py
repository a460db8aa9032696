# SPDX-License-Identifier: Apache-2.0
"""From a request to its answer: checks requests and calls methods.

A method runs in the worker's thread, which also encodes the answer.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from traceback import format_exception

from tapster import __version__
from tapster.daemon import policy
from tapster.daemon.connection import Connection
from tapster.daemon.connections import Connections
from tapster.daemon.log import ERROR, Log
from tapster.daemon.methods.call import Answer, Call, Unfinished
from tapster.daemon.metrics import Metrics
from tapster.daemon.service import Service
from tapster.daemon.state import ConnectionEvent
from tapster.daemon.worker import DROPPED, Joint, Worker
from tapster.errors import TapsterError, unforeseen
from tapster.kernel import unix
from tapster.light import Any, NamedTuple
from tapster.rpc import description, interface, varlink
from tapster.rpc.description import SERVICE_INTERFACE
from tapster.rpc.interface import INTERFACE, METHODS, Event
from tapster.rpc.varlink import SERVICE
from tapster.rpc.wire import NAME

URL = "man:tapsterd(8)"
"""Where this service is described: Varlink asks for an address."""
_INTERFACES = {NAME: INTERFACE, SERVICE: SERVICE_INTERFACE}
_METHODS = {f"{NAME}.{method.name}": method for method in METHODS}
_DROPPABLE = frozenset(
    {
        *("Acquire", "Bind", "Set", "Reopen"),
        *("Get", "List", "History", "Events", "Examine", "GetStatistics"),
    }
)
"""The methods that are not begun for a client that has left. The client did not wait
for the answer, so it cannot rely on the result. A release is carried out all the
same."""


_LOOKUPS = frozenset({"Explain"})
"""The methods that look up users, perhaps at a server that does not answer. They run in
a thread of their own, and delay no call that works on devices."""


class Request(NamedTuple):
    """One request of a client, with the descriptors that came with it."""

    method: str
    parameters: Any
    more: bool
    oneway: bool
    fds: list[int]


class Reply(NamedTuple):
    """An answer as it is sent."""

    data: bytes
    fds: tuple[int, ...] = ()
    undo: Callable[[], None] | None = None
    next_page: Callable[[], Answer] | None = None


class Dispatcher:
    """Answers requests: immediately, or when the worker has carried them out."""

    def __init__(
        self,
        connections: Connections,
        worker: Worker,
        lookups: Worker,
        service: Service,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.stopping = False
        """Whether undoing must happen in this thread, because the daemon stops."""
        self._connections = connections
        self._worker = worker
        self._lookups = lookups
        self._service = service
        self._metrics = metrics
        self._log = log
        connections.on_request = self.receive
        connections.take_back = self.take_back
        connections.fail = self.fail
        connections.explain = self.explain

    # Requests

    def receive(self, connection: Connection, text: bytes) -> None:
        """Answer a request of a connection that has just begun to work on it."""
        fds, connection.fds = connection.fds, []
        try:
            request = _parse(text, fds)
        except varlink.Malformed as error:
            connection.discard(fds)
            self._connections.reject(connection, f"not a Varlink request: {error}")
            return
        try:
            self._dispatch(connection, request)
        except TapsterError as error:
            connection.discard(fds)
            self._answer_error(connection, error, request.oneway)
        except varlink.Unfit as error:
            connection.discard(fds)
            self._metrics.add("failures", "InvalidParameter")
            parameter = description.ParameterName(f"{error.parameter}: {error}")
            self._standard(connection, "InvalidParameter", parameter, request.oneway)
        except Exception as error:  # noqa: BLE001 - one call must not end all
            connection.discard(fds)
            self._answer_error(connection, self.explain(error), request.oneway)

    def explain(self, error: Exception) -> TapsterError:
        """Log an unforeseen error. Return the error to send to the client."""
        self._log(ERROR, "failed", traceback="".join(format_exception(error)))
        return unforeseen(error)

    def _dispatch(self, connection: Connection, request: Request) -> None:
        """Answer immediately, or let the worker answer. Take over the descriptors,
        unless it raises."""
        method = _METHODS.get(request.method)
        if method is None:
            self._describe(connection, request)
            connection.discard(request.fds)
            return
        parameters = varlink.from_json(method.takes, request.parameters)
        self._metrics.add("calls", method.name)
        if method.name == "Ping":
            self._send_answer(connection, _PONG, request.oneway)
        elif method.name == "Watch":
            if request.more:
                self._start_watching(connection)
            else:
                nothing = description.Nothing()
                self._standard(connection, "ExpectedMore", nothing, request.oneway)
        else:
            call = Call(connection.caller, connection.pidfd, parameters, request.fds)
            work = partial(self._service.call, method.name, call)
            joint = None
            if (kind := self._service.kind_of(method.name, call)) is not None:
                joint = Joint(kind, self._call_together, call)
            self._submit(connection, method.name, work, request, joint)
            return
        connection.discard(request.fds)

    def _submit(
        self,
        connection: Connection,
        method: str,
        work: Callable[[], Answer | Unfinished],
        request: Request,
        joint: Joint | None = None,
    ) -> None:
        connection.droppable = method in _DROPPABLE and not request.oneway
        worker = self._lookups if method in _LOOKUPS else self._worker
        connection.job = worker.submit(
            partial(_encoded, work, more=request.more),
            partial(self._done, connection, method, request),
            user=connection.share,
            joint=joint,
        )

    def _call_together(self, calls: Sequence[Call]) -> list[Any]:
        """Carry out calls of one kind. Runs in the worker's thread."""
        return [
            result if isinstance(result, TapsterError) else _encode(result)
            for result in self._service.call_together(calls)
        ]

    def _done(
        self, connection: Connection, method: str, request: Request, result: Any
    ) -> None:
        connection.discard(request.fds)
        if connection.job is not None:
            self._connections.charge(connection, connection.job.spent)
        connection.job = None
        if result is DROPPED:
            self._metrics.add("calls", "dropped")
        elif isinstance(result, TapsterError):
            self._answer_error(connection, result, request.oneway)
        elif isinstance(result, Unfinished):
            if not connection.closed:
                self._submit(connection, method, result.go_on, request)
                return
        elif isinstance(result, Unencodable):
            self._discard_reply(result.answer)
            error = self.explain(result.error)
            self._answer_error(connection, error, request.oneway)
        elif result.next_page is None:
            self._send_answer(connection, result, request.oneway)
        elif connection.closed:
            return
        elif request.more:
            fetch = partial(self._submit, connection, method, result.next_page, request)
            connection.next_page = fetch
            connection.step(ConnectionEvent.PART)
            self._connections.send(connection, result.data)
        else:
            nothing = description.Nothing()
            self._standard(connection, "ExpectedMore", nothing, request.oneway)
        if not connection.closed:
            self._connections.go_on(connection)

    # Events

    def _start_watching(self, connection: Connection) -> None:
        self._connections.subscribe(connection)
        event = Event(round(time.time(), 3), "watching")
        self._connections.send(connection, _event(event))

    def tell(self, event: Event) -> None:
        """Send an event to each client that watches and may know of it."""
        data = None
        rules = self._service.access.rules
        for connection in self._connections.watching():
            if policy.may_see(rules, connection.caller, event.caller_uid):
                data = data or _event(event)
                connection.step(ConnectionEvent.PART)
                self._connections.send(connection, data)

    # Varlink's own interface

    def _describe(self, connection: Connection, request: Request) -> None:
        """Answer the methods that every Varlink service has."""
        where, _, method = request.method.rpartition(".")
        given, oneway = request.parameters, request.oneway
        if where not in _INTERFACES:
            name = description.InterfaceName(where)
            self._standard(connection, "InterfaceNotFound", name, oneway)
        elif request.method == f"{SERVICE}.GetInfo":
            varlink.from_json(description.Nothing, given)
            self._send_answer(connection, _INFO, oneway)
        elif request.method == f"{SERVICE}.GetInterfaceDescription":
            wanted = varlink.from_json(description.InterfaceName, given).interface
            if wanted in _DESCRIPTIONS:
                self._send_answer(connection, _DESCRIPTIONS[wanted], oneway)
            else:
                name = description.InterfaceName(wanted)
                self._standard(connection, "InterfaceNotFound", name, oneway)
        else:
            missing = description.MethodName(method)
            self._standard(connection, "MethodNotFound", missing, oneway)

    # Answers

    def _send_answer(self, connection: Connection, reply: Reply, oneway: bool) -> None:
        if connection.closed or oneway:
            unix.close(reply.fds)
            if reply.undo is not None and (connection.closed or reply.fds):
                self.take_back(reply.undo)
            if not connection.closed:
                connection.step(ConnectionEvent.SILENCE)
            return
        connection.step(ConnectionEvent.ANSWER)
        self._connections.send(connection, reply.data, reply.fds, reply.undo)

    def _discard_reply(self, answer: Answer) -> None:
        unix.close(answer.fds)
        if answer.undo is not None:
            self.take_back(answer.undo)

    def take_back(self, undo: Callable[[], None]) -> None:
        """Undo an answer that its client did not receive."""
        if self.stopping:
            undo()
        else:
            self._worker.submit(undo, self._ignore)

    def _ignore(self, result: Any) -> None:
        """Ignore the result of undoing: failures are in the log."""

    def _answer_error(
        self, connection: Connection, error: TapsterError, oneway: bool
    ) -> None:
        if connection.closed:
            return
        connection.next_page = None
        if oneway:
            self._metrics.add("failures", type(error).__name__)
            connection.step(ConnectionEvent.SILENCE)
            return
        connection.step(ConnectionEvent.ANSWER)
        self.fail(connection, error)

    def fail(self, connection: Connection, error: TapsterError) -> None:
        """Send an error to a connection whose state already says so."""
        name = type(error).__name__
        self._metrics.add("failures", name)
        failure = varlink.to_json(interface.failure(error))
        message = {"error": f"{NAME}.{name}", "parameters": failure}
        self._connections.send(connection, varlink.encode(message))

    def _standard(
        self, connection: Connection, name: str, parameters: Any, oneway: bool
    ) -> None:
        """Answer with one of the errors that every Varlink service has."""
        if oneway:
            connection.step(ConnectionEvent.SILENCE)
            return
        connection.step(ConnectionEvent.ANSWER)
        values = varlink.to_json(parameters)
        message = {"error": f"{SERVICE}.{name}", "parameters": values}
        self._connections.send(connection, varlink.encode(message))


class Unencodable(NamedTuple):
    """An answer that could not be encoded, and why."""

    answer: Answer
    error: Exception


def _parse(text: bytes, fds: list[int]) -> Request:
    """Return the request that a client sent. Raises Malformed."""
    message = varlink.decode(text)
    method = message.get("method")
    if not isinstance(method, str):
        raise varlink.Malformed("it names no method")
    return Request(
        method,
        message.get("parameters", {}),
        message.get("more") is True,
        message.get("oneway") is True,
        fds,
    )


def _encoded(
    work: Callable[[], Answer | Unfinished], *, more: bool
) -> Reply | Unencodable | Unfinished:
    answer = work()
    return answer if isinstance(answer, Unfinished) else _encode(answer, more=more)


def _encode(answer: Answer, *, more: bool = False) -> Reply | Unencodable:
    continues = more and answer.next_page is not None
    try:
        message = {"parameters": varlink.to_json(answer.parameters)}
        data = varlink.encode(message | {"continues": True} if continues else message)
    except Exception as error:  # noqa: BLE001 - what was made for nobody must go
        return Unencodable(answer, error)
    return Reply(data, answer.fds, answer.undo, answer.next_page)


def _answer(parameters: Any) -> Reply:
    return Reply(varlink.encode({"parameters": varlink.to_json(parameters)}))


def _event(event: Event) -> bytes:
    happened = varlink.to_json(interface.Happened(event))
    return varlink.encode({"parameters": happened, "continues": True})


_PONG = _answer(description.Nothing())
_INFO = _answer(
    description.Info(
        "Tapster", "tapsterd", __version__, URL, tuple(sorted(_INTERFACES))
    )
)
_DESCRIPTIONS = {
    name: _answer(description.Description(description.describe(described)))
    for name, described in _INTERFACES.items()
}
