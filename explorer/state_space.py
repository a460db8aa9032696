# SPDX-License-Identifier: Apache-2.0
"""The states of a scenario, and what one step of an actor does to a state."""

from typing import Any, NamedTuple

from explorer import backends
from explorer.backends import Entry
from explorer.calls import Call, Question, Raised
from explorer.kernel_states import (
    CONSTANT_QUERIES,
    Change,
    KernelState,
    KernelStates,
)
from explorer.ledger_states import READS, LedgerStates
from explorer.script import (
    Acquired,
    Actors,
    Failed,
    Node,
    Reopened,
    Script,
    acquired_in,
)
from tapster.errors import LedgerError
from tapster.model import Lease, Life, Process
from tapster.model import State as LeaseState

TIME_STEP = 10.0
"""Seconds that pass when time passes: more than any FIN WAIT of a scenario."""
STARTERS = 1000
"""The pid of a process that starts a VM is this and the number of its actor; the pid
of the VM is the number of the actor."""
INVISIBLE = frozenset(
    {"killed", "own_pid", "pid", "process", "started", "stopped", "until"}
)
"""Calls that change nothing, and whose answer stays the same once there is one."""


class RunningVM(NamedTuple):
    """A VM that runs."""

    owner: str
    device: Acquired


class Environment(NamedTuple):
    """The part of a state that is neither in the ledger nor in the kernel."""

    locks: frozenset[tuple[int, int]] = frozenset()
    """The manager numbers that each actor has locked."""
    time: int = 0
    """How many times FIN WAIT has passed."""
    writer: int = -1
    """The actor that is inside a transaction of the ledger."""
    kills: int = 0
    """How many actors were killed."""
    running: frozenset[RunningVM] = frozenset()
    stopped: frozenset[tuple[str, str]] = frozenset()
    """The owners whose VMs have stopped, with the names of the devices."""
    entries: frozenset[Entry] = frozenset()
    """The entries of the backends."""
    away: bool = False
    """Whether the switch cannot be reached."""
    counter: int = 0
    given: frozenset[int] = frozenset()
    """What a daemon that is not Tapster has in memory."""
    hidden: bool = False
    """Whether /proc and the other namespaces cannot be seen at the moment."""
    signals: frozenset[str] = frozenset()
    """The actors to which a signal is on its way."""
    opened: frozenset[int] = frozenset()
    """The waiting taps, at rest, that a program has opened before an operation claimed
    them."""


class State(NamedTuple):
    """A state: the numbers of the states of its parts."""

    namespace: int
    ledger: int
    environment: Environment
    nodes: tuple[int, ...]


class Step(NamedTuple):
    """One step of an actor."""

    actor: str
    ours: bool
    op: str
    call: Call
    answer: Any
    changes: tuple[Change, ...]
    done: Any
    """The memory of the operation that this step ended, or None."""


class Transition(NamedTuple):
    """A step, with the state before and after it: what an invariant judges."""

    step: Step
    manager: int
    namespace: KernelState
    kernel_before: KernelState
    leases: tuple[Lease, ...]
    leases_before: tuple[Lease, ...]
    now: float
    environment: Environment
    environment_before: Environment
    ours: frozenset[str]
    """The names of all actors that are Tapster."""
    owners: frozenset[str]
    """The owners for whom the actor of this step works."""


class StateSpace:
    """All states of one scenario. They are computed when they are reached."""

    def __init__(self, scripts: tuple[Script, ...], directory: str, kills: int) -> None:
        self.scripts = scripts
        self.kills = kills
        self.actors = Actors(scripts)
        self.kernels = KernelStates(tuple(script.name for script in scripts))
        self.ledgers = LedgerStates(directory)
        self.ours = frozenset(script.name for script in scripts if script.ours)
        self.owners = [frozenset((script.name, *script.owners)) for script in scripts]
        """The owners for whom each actor works."""
        self._hides = any(op.name == "hide" for script in scripts for op in script.ops)
        self._clocks = [
            i
            for i, script in enumerate(scripts)
            if any(op.name == "pass" for op in script.ops)
        ]
        self._late = [
            i
            for i, script in enumerate(scripts)
            if any(op.name == "late" for op in script.ops)
        ]

    def start(self) -> State:
        return State(0, 0, Environment(), tuple(node.id for node in self.actors.first))

    def node(self, state: State, actor: int) -> Node:
        return self.actors.nodes[state.nodes[actor]]

    def step(self, state: State, actor: int) -> tuple[State, Step] | None:
        """Return the actor's next step; None if the actor has ended, or has to wait."""
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
            if memory is not None or not self._is_invisible(state, call, answer):
                return state, Step(
                    script.name, script.ours, op, call, answer, changes, memory
                )
        return None

    def kill(self, state: State, actor: int) -> State | None:
        """Kill the actor here; None if it cannot die, or its death changes nothing."""
        node = self.node(state, actor)
        if (
            not self.scripts[actor].mortal
            or state.environment.kills == self.kills
            or node.call is None
            or node is self.actors.first[actor]
        ):
            return None
        before = state.environment
        environment = _without(before, actor)._replace(kills=before.kills + 1)
        namespace = self._close_files(state, actor)
        dead = self.actors.dead[actor].id
        nodes = (*state.nodes[:actor], dead, *state.nodes[actor + 1 :])
        return State(namespace, state.ledger, environment, nodes)

    def _close_files(self, state: State, actor: int) -> int:
        """Close the taps that a process has open when it is killed.

        A VM that has been started has its descriptor from that process.
        """
        namespace, name = state.namespace, self.scripts[actor].name
        running = {vm.device.ifindex for vm in state.environment.running}
        for ifindex, author in self.kernels.views[namespace].authors.items():
            if author == name and ifindex not in running:
                call = Call("outside", "let_go", (ifindex,))
                namespace = self.kernels.do(namespace, name, call).state
        return namespace

    def _answer(
        self, state: State, actor: int, call: Call
    ) -> tuple[State, Any, tuple[Change, ...]] | None:
        environment = state.environment
        if call.on in ("kernel", "pod", "outside"):
            return self._ask_kernel(state, actor, call)
        if call.on == "ledger":
            return self._ask_ledger(state, actor, call)
        answer: Any = None
        if call.on == "locks":
            environment, answer = self._lock(environment, actor, call)
        elif call.on == "clock":
            found = self._time(state, call)
            if found is None:
                return None
            environment, answer = found
        elif call.on == "daemon":
            environment, answer = _daemon(environment, call)
        elif call.on == "backend":
            entries, away, answer = backends.answer(
                environment.entries, environment.away, call
            )
            if (entries, away) != (environment.entries, environment.away):
                environment = environment._replace(entries=entries, away=away)
        elif call.on == "host":
            environment, answer = _host(environment, call)
        else:
            found = self._vm(environment, actor, call)
            if found is None:
                return None
            environment, answer = found
        return state._replace(environment=environment), answer, ()

    def _ask_kernel(
        self, state: State, actor: int, call: Call
    ) -> tuple[State, Any, tuple[Change, ...]] | None:
        name, environment = self.scripts[actor].name, state.environment
        waits = call.verb == "await_changes"
        if waits:
            retries = bool(call.args) and self._no_lease_is_worked_on(state)
            call = Call("kernel", "changed_links")
        did = self.kernels.do(state.namespace, name, call)
        if waits and did.answer == frozenset() and not retries:
            return None
        if call.verb == "hold_by_name" and any(
            lease.ifindex == did.answer
            and not self.kernels.views[did.state].devices[lease.ifindex].up
            and lease.state is LeaseState.FIN_WAIT
            and lease.manager is None
            for lease in self.ledgers.leases[state.ledger]
        ):
            opened = environment.opened | {did.answer}
            environment = environment._replace(opened=opened)
        if call.verb == "let_go" and call.args[0] in environment.opened:
            opened = environment.opened - {call.args[0]}
            environment = environment._replace(opened=opened)
        after = state._replace(namespace=did.state, environment=environment)
        return after, did.answer, did.changes

    def _no_lease_is_worked_on(self, state: State) -> bool:
        return not any(
            lease.manager is not None or lease.state is LeaseState.RESERVED
            for lease in self.ledgers.leases[state.ledger]
        )

    def _ask_ledger(
        self, state: State, actor: int, call: Call
    ) -> tuple[State, Any, tuple[Change, ...]] | None:
        environment = state.environment
        if call.verb == "rollback":
            return state._replace(environment=environment._replace(writer=-1)), None, ()
        if call.verb in READS:
            read = self.ledgers.do(state.ledger, environment.time * TIME_STEP, call)
            return state, read.answer, ()
        if environment.writer not in (-1, actor):
            return None
        if environment.writer == actor and not call.answers:
            # A signal handler: SQLite refuses the inner transaction, and the handler
            # of that error rolls the outer transaction back.
            nested = Raised(LedgerError, "a transaction within a transaction")
            return (
                state._replace(environment=environment._replace(writer=-1)),
                nested,
                (),
            )
        wrote = self.ledgers.do(state.ledger, environment.time * TIME_STEP, call)
        writer = actor if isinstance(wrote.answer, Question) else -1
        if writer != environment.writer:
            environment = environment._replace(writer=writer)
        return (
            state._replace(ledger=wrote.state, environment=environment),
            wrote.answer,
            (),
        )

    def _lock(
        self, environment: Environment, actor: int, call: Call
    ) -> tuple[Environment, Any]:
        if call.verb == "is_reaper_awake":
            return environment, True  # the reaper is an actor here
        (manager,) = call.args
        if call.verb == "enter":
            return environment._replace(
                locks=environment.locks | {(actor, manager)}
            ), None
        assert call.verb == "alive"
        return environment, any(m == manager for _, m in environment.locks)

    def _time(self, state: State, call: Call) -> tuple[Environment, Any] | None:
        environment = state.environment
        if call.verb == "pass":
            # A late cleanup is not later than FIN WAIT is long.
            stopped = {owner for owner, _ in environment.stopped}
            for actor in self._late:
                waits = self.node(state, actor).call
                if waits and (waits.verb != "stopped" or waits.args[0] in stopped):
                    return None
            return environment._replace(time=environment.time + 1), None
        if call.verb == "until":
            over = state.environment.time * TIME_STEP >= call.args[0]
            return (environment, None) if over else None
        if call.verb == "process":
            (pid,) = call.args
            return environment, Process(pid, pid, pid)
        if call.verb == "hidden":
            return environment, environment.hidden
        if call.verb == "life":
            (process,) = call.args
            if environment.hidden:
                return environment, Life.CANNOT_TELL
            if process.pid >= STARTERS:
                over = self.node(state, process.pid - STARTERS).call is None
                return environment, Life.ENDED if over else Life.LIVES
            owner = self.scripts[process.pid].name
            ended = any(name == owner for name, _ in environment.stopped)
            return environment, Life.ENDED if ended else Life.LIVES
        assert call.verb in ("boottime", "wallclock")
        return (
            environment,
            environment.time * TIME_STEP if call.verb == "boottime" else 0.0,
        )

    def _vm(
        self, environment: Environment, actor: int, call: Call
    ) -> tuple[Environment, Any] | None:
        if call.verb == "pid":
            return environment, actor
        if call.verb == "own_pid":
            return environment, STARTERS + actor
        if call.verb == "started":
            for vm in environment.running:
                if vm.owner == call.args[0]:
                    return environment, vm.device.ifindex
            return None
        if call.verb in ("stop", "halt"):
            (owner,) = call.args
            gone = [vm for vm in environment.running if vm.owner == owner]
            if not gone and call.verb == "stop":
                return None
            names = {(owner, vm.device.name) for vm in gone}
            running = environment.running - set(gone)
            stopped = environment.stopped | names
            return environment._replace(running=running, stopped=stopped), None
        if call.verb == "stopped":
            for owner, name in environment.stopped:
                if owner == call.args[0]:
                    return environment, name
            return None
        assert call.verb == "killed"
        return (environment, None) if environment.kills >= call.args[0] else None

    def _is_invisible(self, state: State, call: Call, answer: Any) -> bool:
        """Return whether a step is invisible to others. It goes with the next step.

        It changed nothing for others, and its answer stays the same. The answer of a
        transaction that begins would be the same before whatever others do between
        this step and the next. A signal that comes later comes before a later call.
        """
        if isinstance(answer, Question) or call.verb in INVISIBLE:
            return True
        if call.verb == "signalled":
            return not answer
        if call.verb == "hidden":
            return not self._hides
        if call.on == "kernel":
            return call.args in CONSTANT_QUERIES
        if call.verb == "life":
            return answer is Life.ENDED and not self._hides
        if call.verb == "alive":
            return not answer or call.args == (0,)
        if call.verb == "boottime":
            return all(self.node(state, clock).call is None for clock in self._clocks)
        return False

    def _end(self, state: State, actor: int, op: str, after: Node) -> tuple[State, Any]:
        """End an operation, and the actor's process if that was its last one."""
        environment = state.environment
        memory = after.memory
        if op == "acquire" and (got := acquired_in(memory)):
            vms = {RunningVM(self.scripts[actor].name, device) for device in got}
            environment = environment._replace(running=environment.running | vms)
        if after.call is None:
            environment = _without(environment, actor)
        return state._replace(environment=environment), (memory,)


def _without(environment: Environment, actor: int) -> Environment:
    """Take from an actor what a process loses when it ends: locks and transaction."""
    locks = frozenset(lock for lock in environment.locks if lock[0] != actor)
    return environment._replace(
        locks=locks, writer=-1 if environment.writer == actor else environment.writer
    )


def _host(environment: Environment, call: Call) -> tuple[Environment, Any]:
    """Hide or show /proc and the namespaces; send a signal, or receive one."""
    if call.verb in ("hide", "show"):
        return environment._replace(hidden=call.verb == "hide"), None
    (name,) = call.args
    if call.verb == "signal":
        return environment._replace(signals=environment.signals | {name}), None
    assert call.verb == "signalled"
    left = environment.signals - {name}
    return environment._replace(signals=left), name in environment.signals


def _daemon(environment: Environment, call: Call) -> tuple[Environment, Any]:
    """Do what a daemon does with its memory, in one step."""
    if call.verb == "next":
        return environment._replace(
            counter=environment.counter + 1
        ), environment.counter
    if call.verb == "lowest":
        number = min(set(range(len(environment.given) + 1)) - environment.given)
        return environment._replace(given=environment.given | {number}), number
    if call.verb == "give_back":
        number = int(call.args[0].removeprefix("vnet"))
        return environment._replace(given=environment.given - {number}), None
    assert call.verb == "restart"
    return environment._replace(counter=0, given=frozenset()), None


def shown(step: Step) -> str:
    """Return a step as a line of text."""
    call = step.call
    args = [_short(value) for value in call.args]
    args += [f"{key}={_short(value)}" for key, value in call.named if value is not None]
    args = [arg for arg in args if arg]
    answer = step.answer
    if isinstance(answer, Raised):
        end = f" ! {answer.kind.__name__}: {answer.text}"
    else:
        end = f" -> {_short(answer)}" if answer is not None else ""
    line = f"{step.actor}: {step.op}: {call.on}.{call.verb}({', '.join(args)}){end}"
    if step.done and step.done[0] is not None:
        line += f" [{step.op} ends: {_short(step.done[0])}]"
    return line


def _short(value: Any) -> str:
    if isinstance(value, Lease):
        text = f"{value.name} #{_index(value.ifindex)} {value.state}"
        by = f" by {value.manager}" if value.manager else ""
        return f"<{text}{by}>"
    if isinstance(value, Acquired):
        return f"{value.name} #{_index(value.ifindex)}"
    if isinstance(value, Reopened):
        return f"#{_index(value.opened)} in place of #{_index(value.ifindex)}"
    if isinstance(value, Failed):
        return f"failed: {value.why}"
    if isinstance(value, int) and not isinstance(value, bool):
        return _index(value)
    if hasattr(value, "_fields"):
        return " ".join(
            f"{key}={_short(field)}"
            for key, field in zip(value._fields, value, strict=True)
            if field not in (None, "")
            and key in ("ifindex", "name", "up", "master", "alias")
        )
    if isinstance(value, tuple):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return str(value)


def _index(number: int) -> str:
    """Return an ifindex as text; those that Tapster chooses as small numbers."""
    return f"+{number - (1 << 30)}" if number >= 1 << 30 else str(number)
