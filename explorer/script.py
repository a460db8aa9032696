# SPDX-License-Identifier: Apache-2.0
"""Actors: real code that stops at each of its calls on the state.

An actor runs a few operations one after the other. To find the next call of its
code, an operation is run from its start. Each call is given the answer that is on
record, up to the first call without an answer: that is the next call. There the run
is thrown away. The code depends on nothing but these answers, so this is the same
as having stopped there. The result is kept in a tree of answers, so no piece of
code is run twice for the same answers.

Between two operations an actor keeps a `memory` and the manager's number, and
nothing else. New `Operations` are constructed for each. These are as good as the
former ones, which have no other state that outlives a call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from explorer.backends import PORTS, RULES, BackendStandIn
from explorer.calls import (
    NETNS,
    PLACES,
    Ask,
    Call,
    LedgerStandIn,
    NamespaceStandIn,
    Raised,
    StandIn,
    SystemStandIn,
)
from tapster.model import Lease
from tapster.operations.acquire import Acquire
from tapster.operations.claims import Claims
from tapster.operations.context import Context
from tapster.operations.devices import Devices
from tapster.operations.operations import Operations
from tapster.operations.rewire import Rewire

LEDGER = "00000000"
"""The id of the ledger in every scenario."""


class Acquired(NamedTuple):
    """What an actor remembers of a device that it has acquired."""

    lease: str
    name: str
    ifindex: int
    bridge: str | None
    backends: tuple[str, ...] = ()
    """The backends that have a part of the lease."""

    @classmethod
    def of(cls, lease: Lease) -> "Acquired":
        bridge = lease.wiring.in_force.bridge
        return cls(lease.id, lease.name, lease.ifindex, bridge, lease.backends)


class Reopened(NamedTuple):
    """What an actor remembers of a device that it has opened again."""

    ifindex: int
    """The device that should be open."""
    opened: int
    """The device that is open."""


def acquired_in(memory: "Memory") -> tuple[Acquired, ...]:
    """Return the devices that an actor remembers to have acquired."""
    if isinstance(memory, Acquired):
        return (memory,)
    return memory if type(memory) is tuple else ()


class Failed(NamedTuple):
    """What an actor remembers of an operation that failed. The actor then ends."""

    why: str


Memory = Any
"""What an actor keeps from one operation to the next; it can be compared."""


class Stopped(BaseException):
    """Raised in an actor's code at the first call without an answer."""


class Actor:
    """One run of an operation's code, with the answers on record."""

    def __init__(
        self, name: str, memory: Memory, manager: int, log: tuple[Any, ...]
    ) -> None:
        self.name = name
        self.memory = memory
        self.next: Call | None = None
        self.on_signal: Callable[[], None] | None = None
        """A signal handler. A signal may come before any call, once."""
        self._answers = iter(log)
        self._operations: Operations | None = None
        self._manager = manager

    @property
    def manager(self) -> int:
        """The number of the actor's manager; 0 if it has none."""
        if self._operations is None:
            return self._manager
        return self._operations.context.claims.number

    def ask(self, call: Call) -> Any:
        """Return the answer to the next call, or raise it if it is an error."""
        if self.on_signal is not None and self._ask(
            Call("host", "signalled", (self.name,))
        ):
            handler, self.on_signal = self.on_signal, None
            handler()
        return self._ask(call)

    def _ask(self, call: Call) -> Any:
        # Code that cleans up when it is stopped comes here too, and is stopped again.
        if self.next is None:
            for answer in self._answers:
                if isinstance(answer, Raised):
                    raise answer.error()
                return answer
            self.next = call
        raise Stopped

    def operations(self, parts: "Parts") -> Operations:
        """Return the operations of this actor. They serve until its operation ends."""
        self._operations = parts.construct(self.ask, self._manager)
        return self._operations


class Parts(NamedTuple):
    """The classes that an actor's operations are constructed from.

    Ledger, kernel, backends, locks and clock are stand-ins. All other code is real,
    unless a scenario removes a protection by replacing a part.
    """

    system: type[SystemStandIn] = SystemStandIn
    namespace: type[NamespaceStandIn] = NamespaceStandIn
    ledger: type[LedgerStandIn] = LedgerStandIn
    backend: type[BackendStandIn] = BackendStandIn
    backends: tuple[str, ...] = ()
    devices: type[Devices] = Devices
    acquire: type[Acquire] = Acquire
    rewire: type[Rewire] = Rewire
    place: str = "kernel"
    """The namespace that the actor is in."""

    def construct(self, ask: Ask, manager: int) -> Operations:
        """Return operations that pass their calls to `ask`."""
        system: Any = self.system(ask, "clock", boot_id=NETNS.boot)
        ledger: Any = self.ledger(ask, "ledger", id=LEDGER, path="")
        netns = PLACES[self.place]
        namespace: Any = self.namespace(ask, self.place, netns=netns)
        locks: Any = StandIn(ask, "locks")
        context = Context(
            ledger=ledger,
            system=system,
            namespace=namespace,
            backends=[
                self.backend(ask, "backend", name=name) for name in self.backends
            ],
            claims=Claims(ledger, open_locks=lambda *_, **__: locks, number=manager),
            start_reaper=lambda _: None,  # reapers are actors here
        )
        return Operations(
            context, devices=self.devices, acquire=self.acquire, rewire=self.rewire
        )


USUAL = Parts()
WITH_BACKENDS = Parts(backends=(PORTS, RULES))


class Op(NamedTuple):
    """An operation: its name, and its code, which returns a memory."""

    name: str
    run: Callable[[Actor], Memory]


class Script(NamedTuple):
    """The operations of one actor of a scenario."""

    name: str
    ops: tuple[Op, ...]
    ours: bool = True
    """Whether the actor is Tapster, or what a model puts in Tapster's place."""
    mortal: bool = False
    """Whether the actor may be killed."""
    owners: tuple[str, ...] = ()
    """The owners for whom the actor works, apart from the one with its name."""


class Node:
    """How far an actor is: everything that its future depends on."""

    __slots__ = ("actor", "call", "id", "log", "manager", "memory", "next", "op")

    def __init__(
        self, id: int, actor: int, op: int, memory: Memory, manager: int
    ) -> None:
        self.id = id
        self.actor = actor
        self.op = op
        """The number of the operation; if all are done, the number of operations."""
        self.memory = memory
        self.manager = manager
        self.log: tuple[Any, ...] = ()
        self.call: Call | None = None
        """The actor's next call; None when all is done."""
        self.next: dict[Any, Node] = {}
        """The node that each answer leads to."""


class Actors:
    """The nodes of all actors, made when they are reached first."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.scripts = scripts
        self.nodes: list[Node] = []
        self._roots: dict[tuple[Any, ...], Node] = {}
        self.dead = [self._node(i, -1, None, 0) for i in range(len(scripts))]
        self.first = [self.root(i, 0, None, 0) for i in range(len(scripts))]

    def root(self, actor: int, op: int, memory: Memory, manager: int) -> Node:
        """Return the node of an actor before an operation."""
        ops = self.scripts[actor].ops
        if op == len(ops) or isinstance(memory, Failed):
            op, manager = len(ops), 0
        key = (actor, op, memory, manager)
        if key not in self._roots:
            node = self._roots[key] = self._node(actor, op, memory, manager)
            if op < len(ops):
                # The operation may end without a call.
                self._roots[key] = self._play(node)
        return self._roots[key]

    def after(self, node: Node, answer: Any) -> Node:
        """Return the node of an actor after its call was answered."""
        if answer not in node.next:
            child = self._node(node.actor, node.op, node.memory, node.manager)
            child.log = (*node.log, answer)
            node.next[answer] = self._play(child)
        return node.next[answer]

    def _node(self, actor: int, op: int, memory: Memory, manager: int) -> Node:
        node = Node(len(self.nodes), actor, op, memory, manager)
        self.nodes.append(node)
        return node

    def _play(self, node: Node) -> Node:
        """Find a node's next call; if its operation is over, the next root."""
        script = self.scripts[node.actor]
        actor = Actor(script.name, node.memory, node.manager, node.log)
        try:
            memory = script.ops[node.op].run(actor)
        except Stopped:
            node.call = actor.next
            return node
        return self.root(node.actor, node.op + 1, memory, actor.manager)
