# SPDX-License-Identifier: Apache-2.0
"""The whole world of a scenario, and what one step of an actor does to it."""

from typing import Any, NamedTuple

from explorer import backends
from explorer.backends import Entry
from explorer.calls import Call, Question, Raised
from explorer.kernels import (
    LOOKS,
    Change,
    Kernels,
    View,
)
from explorer.ledgers import READS, Ledgers
from explorer.script import (
    Failed,
    Held,
    Node,
    Script,
    Scripts,
    held_in,
)
from tapster.model import Lease, Life, Process

NIGH = 10.0
"""Seconds that pass when time passes: more than any FIN WAIT here."""


class Machine(NamedTuple):
    """A virtual machine that runs."""

    owner: str
    held: Held


class Rest(NamedTuple):
    """What is neither in the ledger nor in the kernel."""

    locks: frozenset[tuple[int, int]] = frozenset()
    """Which manager numbers each actor has locked."""
    time: int = 0
    """How often time has passed."""
    writer: int = -1
    """The actor that is inside a transaction of the ledger."""
    kills: int = 0
    """How many actors were killed."""
    running: frozenset[Machine] = frozenset()
    stopped: frozenset[tuple[str, str]] = frozenset()
    """Whose machine has stopped, and the name that its device had."""
    entries: frozenset[Entry] = frozenset()
    """What the backends hold."""
    away: bool = False
    """Whether the switch cannot be reached."""
    counter: int = 0
    given: frozenset[int] = frozenset()
    """What a daemon that is not Tapster has in memory."""


class State(NamedTuple):
    """A state of the world: numbers of states of its parts."""

    namespace: int
    ledger: int
    rest: Rest
    nodes: tuple[int, ...]


class Event(NamedTuple):
    """What one step was."""

    actor: str
    ours: bool
    op: str
    call: Call
    answer: Any
    changes: tuple[Change, ...]
    done: Any
    """The memory of the operation that this step ended, or None."""


class Moment(NamedTuple):
    """A step and the world before and after it: what an invariant judges."""

    event: Event
    manager: int
    namespace: View
    kernel_before: View
    leases: tuple[Lease, ...]
    leases_before: tuple[Lease, ...]
    now: float
    rest: Rest
    rest_before: Rest
    ours: frozenset[str]
    """The names of all actors that are Tapster."""


class Universe:
    """All states of one scenario, found as they are asked for."""

    def __init__(self, scripts: tuple[Script, ...], directory: str, kills: int) -> None:
        self.scripts = scripts
        self.kills = kills
        self.actors = Scripts(scripts)
        self.kernels = Kernels(tuple(script.name for script in scripts))
        self.ledgers = Ledgers(directory)
        self.ours = frozenset(one.name for one in scripts if one.ours)
        self._clocks = [
            i
            for i, one in enumerate(scripts)
            if any(op.name == "pass" for op in one.ops)
        ]
        self._late = [
            i
            for i, one in enumerate(scripts)
            if any(op.name == "late" for op in one.ops)
        ]

    def start(self) -> State:
        return State(0, 0, Rest(), tuple(node.id for node in self.actors.first))

    def node(self, state: State, actor: int) -> Node:
        return self.actors.nodes[state.nodes[actor]]

    def step(self, state: State, actor: int) -> tuple[State, Event] | None:
        """What the actor does next; None if it is over, or has to wait."""
        node = self.node(state, actor)
        script = self.scripts[actor]
        while (call := node.call) is not None:
            done = self._answer(state, actor, call)
            if done is None:
                return None
            state, answer, changes = done
            op = script.ops[node.op].name
            after = self.actors.after(node, answer)
            memory = None
            if after.op != node.op or after.call is None:
                state, memory = self._end(state, actor, op, after)
            nodes = state.nodes
            nodes = (*nodes[:actor], after.id, *nodes[actor + 1 :])
            state = state._replace(nodes=nodes)
            node = after
            if memory is not None or not self._unseen(state, call, answer):
                return state, Event(
                    script.name, script.ours, op, call, answer, changes, memory
                )
        return None

    def kill(self, state: State, actor: int) -> State | None:
        """The actor dies here; None if it cannot, or would not be missed."""
        node = self.node(state, actor)
        if (
            not self.scripts[actor].mortal
            or state.rest.kills == self.kills
            or node.call is None
            or node is self.actors.first[actor]
        ):
            return None
        rest = _without(state.rest, actor)._replace(kills=state.rest.kills + 1)
        dead = self.actors.dead[actor].id
        nodes = (*state.nodes[:actor], dead, *state.nodes[actor + 1 :])
        return State(state.namespace, state.ledger, rest, nodes)

    def _answer(
        self, state: State, actor: int, call: Call
    ) -> tuple[State, Any, tuple[Change, ...]] | None:
        rest = state.rest
        if call.on in ("kernel", "outside"):
            did = self.kernels.do(state.namespace, self.scripts[actor].name, call)
            return state._replace(namespace=did.state), did.answer, did.changes
        if call.on == "ledger":
            return self._ask_ledger(state, actor, call)
        answer: Any = None
        if call.on == "locks":
            rest, answer = self._lock(rest, actor, call)
        elif call.on == "clock":
            found = self._time(state, call)
            if found is None:
                return None
            rest, answer = found
        elif call.on == "daemon":
            rest, answer = _daemon(rest, call)
        elif call.on == "backend":
            entries, away, answer = backends.answer(rest.entries, rest.away, call)
            if (entries, away) != (rest.entries, rest.away):
                rest = rest._replace(entries=entries, away=away)
        else:
            found = self._machine(rest, actor, call)
            if found is None:
                return None
            rest, answer = found
        return state._replace(rest=rest), answer, ()

    def _ask_ledger(
        self, state: State, actor: int, call: Call
    ) -> tuple[State, Any, tuple[Change, ...]] | None:
        rest = state.rest
        if call.verb == "rollback":
            return state._replace(rest=rest._replace(writer=-1)), None, ()
        if call.verb in READS:
            read = self.ledgers.do(state.ledger, rest.time * NIGH, call)
            return state, read.answer, ()
        if rest.writer not in (-1, actor):
            return None
        wrote = self.ledgers.do(state.ledger, rest.time * NIGH, call)
        writer = actor if isinstance(wrote.answer, Question) else -1
        if writer != rest.writer:
            rest = rest._replace(writer=writer)
        return state._replace(ledger=wrote.state, rest=rest), wrote.answer, ()

    def _lock(self, rest: Rest, actor: int, call: Call) -> tuple[Rest, Any]:
        (manager,) = call.args
        if call.verb == "enter":
            return rest._replace(locks=rest.locks | {(actor, manager)}), None
        assert call.verb == "alive"
        # Byte 0 is the reaper's: it is an actor here, and always there.
        return rest, manager == 0 or any(m == manager for _, m in rest.locks)

    def _time(self, state: State, call: Call) -> tuple[Rest, Any] | None:
        rest = state.rest
        if call.verb == "pass":
            # A late cleanup is not later than FIN WAIT is long.
            stopped = {owner for owner, _ in rest.stopped}
            for actor in self._late:
                waits = self.node(state, actor).call
                if waits and (waits.verb != "stopped" or waits.args[0] in stopped):
                    return None
            return rest._replace(time=rest.time + 1), None
        if call.verb == "process":
            (pid,) = call.args
            return rest, Process(pid, pid, pid)
        if call.verb == "life":
            (process,) = call.args
            owner = self.scripts[process.pid].name
            ended = any(name == owner for name, _ in rest.stopped)
            return rest, Life.ENDED if ended else Life.LIVES
        assert call.verb in ("boottime", "wallclock")
        return rest, rest.time * NIGH if call.verb == "boottime" else 0.0

    def _machine(self, rest: Rest, actor: int, call: Call) -> tuple[Rest, Any] | None:
        if call.verb == "pid":
            return rest, actor
        if call.verb == "stop":
            (owner,) = call.args
            gone = [one for one in rest.running if one.owner == owner]
            if not gone:
                return None
            stopped = {(owner, one.held.name) for one in gone}
            running = rest.running - set(gone)
            return rest._replace(running=running, stopped=rest.stopped | stopped), None
        if call.verb == "stopped":
            for owner, name in rest.stopped:
                if owner == call.args[0]:
                    return rest, name
            return None
        assert call.verb == "killed"
        return (rest, None) if rest.kills >= call.args[0] else None

    def _unseen(self, state: State, call: Call, answer: Any) -> bool:
        """Whether nobody could tell this step from no step: it goes with the next.

        It changed nothing for others, and its answer will never be another one
        (or, of a transaction that begins: would have been the same before
        whatever others do between it and what follows).
        """
        if isinstance(answer, Question) or call.verb in (
            "stopped",
            "killed",
            "pid",
            "process",
        ):
            return True
        if call.on == "kernel":
            return call.args in LOOKS
        if call.verb == "life":
            return answer is Life.ENDED
        if call.verb == "alive":
            return not answer or call.args == (0,)
        if call.verb == "boottime":
            return all(self.node(state, one).call is None for one in self._clocks)
        return False

    def _end(self, state: State, actor: int, op: str, after: Node) -> tuple[State, Any]:
        """The end of an operation, and perhaps of the actor's process."""
        rest = state.rest
        memory = after.memory
        if op == "acquire" and (got := held_in(memory)):
            machines = {Machine(self.scripts[actor].name, held) for held in got}
            rest = rest._replace(running=rest.running | machines)
        if after.call is None:
            rest = _without(rest, actor)
        return state._replace(rest=rest), (memory,)


def _without(rest: Rest, actor: int) -> Rest:
    """Without what the kernel and the ledger take from a process that ends."""
    locks = frozenset(lock for lock in rest.locks if lock[0] != actor)
    return rest._replace(
        locks=locks, writer=-1 if rest.writer == actor else rest.writer
    )


def _daemon(rest: Rest, call: Call) -> tuple[Rest, Any]:
    """What a daemon does with its memory, all in one step."""
    if call.verb == "next":
        return rest._replace(counter=rest.counter + 1), rest.counter
    if call.verb == "lowest":
        number = min(set(range(len(rest.given) + 1)) - rest.given)
        return rest._replace(given=rest.given | {number}), number
    if call.verb == "give_back":
        number = int(call.args[0].removeprefix("vnet"))
        return rest._replace(given=rest.given - {number}), None
    assert call.verb == "restart"
    return rest._replace(counter=0, given=frozenset()), None


def shown(event: Event) -> str:
    """A step, as a line."""
    call = event.call
    args = [_short(one) for one in call.args]
    args += [f"{key}={_short(value)}" for key, value in call.named if value is not None]
    args = [arg for arg in args if arg]
    answer = event.answer
    if isinstance(answer, Raised):
        end = f" ! {answer.kind.__name__}: {answer.text}"
    else:
        end = f" -> {_short(answer)}" if answer is not None else ""
    line = f"{event.actor}: {event.op}: {call.on}.{call.verb}({', '.join(args)}){end}"
    if event.done and event.done[0] is not None:
        line += f" [{event.op} ends: {_short(event.done[0])}]"
    return line


def _short(value: Any) -> str:
    if isinstance(value, Lease):
        text = f"{value.name} #{_index(value.ifindex)} {value.state}"
        by = f" by {value.manager}" if value.manager else ""
        return f"<{text}{by}>"
    if isinstance(value, Held):
        return f"{value.name} #{_index(value.ifindex)}"
    if isinstance(value, Failed):
        return f"failed: {value.why}"
    if isinstance(value, int) and not isinstance(value, bool):
        return _index(value)
    if hasattr(value, "_fields"):
        return " ".join(
            f"{key}={_short(one)}"
            for key, one in zip(value._fields, value, strict=True)
            if one not in (None, "")
            and key in ("ifindex", "name", "up", "master", "alias")
        )
    if isinstance(value, tuple):
        return "[" + ", ".join(_short(one) for one in value) + "]"
    return str(value)


def _index(number: int) -> str:
    """An ifindex of ours, as a small number."""
    return f"+{number - (1 << 30)}" if number >= 1 << 30 else str(number)
