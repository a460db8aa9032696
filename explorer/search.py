# SPDX-License-Identifier: Apache-2.0
"""Walk every schedule of a scenario, or find the shortest that breaks a promise."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from struct import Struct
from typing import NamedTuple, Self

from explorer import invariants
from explorer.backends import Entry
from explorer.invariants import broken
from explorer.ops import AGAIN, ending
from explorer.script import Failed, Script
from explorer.state_space import (
    TIME_STEP,
    Environment,
    State,
    StateSpace,
    Step,
    Transition,
    shown,
)

KILL = "!"
"""Marks a step of a schedule at which the actor is killed."""


class Scenario(NamedTuple):
    """The actors to explore, and how many of them may be killed."""

    name: str
    scripts: tuple[Script, ...]
    kills: int = 0
    checks: tuple[Callable[[Transition], str | None], ...] = invariants.STRICT
    """The checks after each step."""
    end: Script | None = ending()
    """What is done when no actor can continue."""
    large: bool = False
    """It has too many schedules for the small bound."""


class Counterexample(NamedTuple):
    """A schedule that breaks a promise."""

    broken: str
    schedule: tuple[str, ...]
    """The actor of each step; "A!" is A's death."""
    lines: tuple[str, ...]
    """The same, as text for people."""


class SearchResult(NamedTuple):
    """What a search has found."""

    states: int
    steps: int
    schedules: int
    """How many schedules the states stand for; 0 if they were not counted."""
    broken: frozenset[str]
    """Every broken promise, with the reason."""
    counterexample: Counterexample | None


class Successor(NamedTuple):
    """A possible next step."""

    token: str
    state: State
    step: Step | None
    """None for a death."""
    broken: str | None

    @property
    def line(self) -> str:
        return shown(self.step) if self.step else f"{self.token[:-1]}: killed"


class Explorer:
    """Explores one scenario. Use it as a context manager."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._directory = tempfile.TemporaryDirectory(prefix="tapster-explorer-")
        scripts = scenario.scripts
        if scenario.end:
            scripts = (*scripts, scenario.end)
        self.state_space = StateSpace(scripts, self._directory.name, scenario.kills)
        self._actors = range(len(scenario.scripts))
        self._ends: dict[
            tuple[int, int, Environment, bool], tuple[str | None, tuple[str, ...]]
        ] = {}
        self._environments: dict[Environment, int] = {}
        self._ran: set[str] = set()
        self._pack = Struct(f"{len(scripts) + 3}I").pack

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.state_space.ledgers.close()
        self._directory.cleanup()

    def explore(self, *, merge: bool = True, most: int = 0) -> SearchResult:
        """Walk all schedules, depth first. Leave a schedule where it breaks a promise.

        Without `merge`, walk each schedule separately to its end. With `most`, stop
        after about that many states.
        """
        schedules: dict[bytes, int] = {}
        bad: set[str] = set()
        states = steps = total = 0
        start = self.state_space.start()
        stack = [_Frame(self.key(start), self.successors(start))]
        while stack:
            top = stack[-1]
            successor = next(top.successors, None)
            if successor is None:
                stack.pop()
                states += 1
                if merge:
                    schedules[top.key] = top.schedules
                total = top.schedules
                if stack:
                    stack[-1].schedules += total
                continue
            steps += 1
            if successor.broken:
                bad.add(successor.broken)
                top.schedules += 1
                continue
            key = self.key(successor.state)
            if merge and key in schedules:
                top.schedules += schedules[key]
                continue
            frame = _Frame(key, self.successors(successor.state))
            first = next(frame.successors, None)
            if first is None:
                frame.schedules = 1
                if wrong := self.end(successor.state)[0]:
                    bad.add(wrong)
            else:
                frame.successors = chain([first], frame.successors)
            stack.append(frame)
            if most and states >= most:
                return SearchResult(states, steps, 0, frozenset(bad), None)
        return SearchResult(states, steps, total, frozenset(bad), None)

    def shortest(self) -> SearchResult:
        """Search breadth first for the shortest schedule that breaks a promise."""
        start = self.state_space.start()
        came: dict[bytes, tuple[bytes, str] | None] = {self.key(start): None}
        queue = deque([start])
        steps = 0
        while queue:
            state = queue.popleft()
            key = self.key(state)
            successors = list(self.successors(state))
            for successor in successors:
                steps += 1
                new = self.key(successor.state)
                if successor.broken:
                    schedule = (*_way(came, key), successor.token)
                    return SearchResult(
                        len(came), steps, 0, frozenset(), self.explain(schedule)
                    )
                if new not in came:
                    came[new] = key, successor.token
                    queue.append(successor.state)
            if not successors and self.end(state)[0]:
                return SearchResult(
                    len(came), steps, 0, frozenset(), self.explain(_way(came, key))
                )
        return SearchResult(len(came), steps, 0, frozenset(), None)

    def explain(self, schedule: tuple[str, ...]) -> Counterexample:
        """Walk a schedule once more, and describe its steps."""
        state = self.state_space.start()
        lines: list[str] = []
        for token in schedule:
            successor = self.take(state, token)
            if successor is None:
                raise ValueError(f"{token!r} has no successor after {len(lines)} steps")
            lines.append(successor.line)
            if successor.broken:
                return Counterexample(
                    successor.broken, schedule, (*lines, f"=> {successor.broken}")
                )
            state = successor.state
        wrong, ending = None, tuple[str, ...]()
        if not any(True for _ in self.successors(state)):
            wrong, ending = self.end(state)
        lines += ending
        if wrong:
            lines.append(f"=> {wrong}")
        return Counterexample(wrong or "", schedule, tuple(lines))

    def idle(self) -> set[str]:
        """Return the actors that should acquire a device, but did in no schedule."""
        makers = {
            script.name
            for script in self.scenario.scripts
            if any(op.name == "acquire" for op in script.ops)
        }
        return makers - self._ran

    def successors(self, state: State) -> Iterator[Successor]:
        """Yield every step that is possible now."""
        for actor in self._actors:
            if successor := self._step(state, actor):
                yield successor
            if successor := self._kill(state, actor):
                yield successor

    def take(self, state: State, token: str) -> Successor | None:
        """Take one step of a schedule; None if it is impossible."""
        name = token.removesuffix(KILL)
        names = [script.name for script in self.scenario.scripts]
        actor = names.index(name)
        if token.endswith(KILL):
            return self._kill(state, actor)
        return self._step(state, actor)

    def key(self, state: State) -> bytes:
        """Return a state as a few bytes, which are equal for equal states."""
        environment = self._environments.setdefault(
            state.environment, len(self._environments)
        )
        return self._pack(state.namespace, state.ledger, environment, *state.nodes)

    def end(self, state: State) -> tuple[str | None, tuple[str, ...]]:
        """Return what is wrong when no actor can continue, after a last recover and
        reap."""
        if not self.scenario.end:
            return None, ()
        watches = self._daemon_waits(state)
        key = state.namespace, state.ledger, state.environment, watches
        if key not in self._ends:
            self._ends[key] = self._finish(state, watches)
        return self._ends[key]

    def _step(self, state: State, actor: int) -> Successor | None:
        done = self.state_space.step(state, actor)
        if done is None:
            return None
        after, step = done
        wrong = self._judge(actor, state, after, step)
        return Successor(step.actor, after, step, wrong)

    def _kill(self, state: State, actor: int) -> Successor | None:
        after = self.state_space.kill(state, actor)
        if after is None:
            return None
        name = self.scenario.scripts[actor].name
        return Successor(f"{name}{KILL}", after, None, None)

    def _judge(self, actor: int, before: State, after: State, step: Step) -> str | None:
        if (
            before.namespace == after.namespace
            and before.ledger == after.ledger
            and before.environment.running == after.environment.running
            and before.environment.entries == after.environment.entries
            and before.environment.opened == after.environment.opened
            and step.done is None
            and not step.changes
        ):
            return None
        self._ran.update(vm.owner for vm in after.environment.running)
        kernels, ledgers = (
            self.state_space.kernels.views,
            self.state_space.ledgers.leases,
        )
        transition = Transition(
            step=step,
            manager=self.state_space.node(before, actor).manager
            or next((m for a, m in after.environment.locks if a == actor), -1),
            namespace=kernels[after.namespace],
            kernel_before=kernels[before.namespace],
            leases=ledgers[after.ledger],
            leases_before=ledgers[before.ledger],
            now=after.environment.time * TIME_STEP,
            environment=after.environment,
            environment_before=before.environment,
            ours=self.state_space.ours,
            owners=self.state_space.owners[actor],
        )
        return next(broken(self.scenario.checks, transition), None)

    def _not_at_rest(self, state: State) -> str | None:
        namespace = self.state_space.kernels.views[state.namespace]
        leases = self.state_space.ledgers.leases[state.ledger]
        return invariants.released_is_at_rest(namespace, leases)

    def _not_repaired(self, state: State) -> str | None:
        namespace = self.state_space.kernels.views[state.namespace]
        leases = self.state_space.ledgers.leases[state.ledger]
        return invariants.upkeep_repairs(namespace, leases)

    def _daemon_waits(self, state: State) -> bool:
        """Return whether a daemon has seen every change, and waits for the next."""
        calls = [self.state_space.node(state, actor).call for actor in self._actors]
        return any(call and call.verb == "await_changes" for call in calls)

    def _finish(
        self, state: State, daemon_waits: bool
    ) -> tuple[str | None, tuple[str, ...]]:
        state_space = self.state_space
        end = len(self._actors)
        environment = state.environment._replace(
            locks=frozenset(), writer=-1, away=False, hidden=False
        )
        state = state._replace(environment=environment)
        lines: list[str] = []
        if not environment.kills and (wrong := self._not_at_rest(state)):
            return wrong, ()
        if daemon_waits and (wrong := self._not_repaired(state)):
            return f"the daemon waits: {wrong}", ()
        last: State | None = None
        while done := state_space.step(state, end):
            before, (state, step) = state, done
            lines.append(shown(step))
            if wrong := self._judge(end, before, state, step):
                return wrong, tuple(lines)
            if step.done is None:
                continue
            namespace = state_space.kernels.views[state.namespace]
            leases = state_space.ledgers.leases[state.ledger]
            wrong = invariants.i5_leased_or_gone(namespace, leases, state_space.ours)
            wrong = wrong or invariants.i5_backends_agree(leases, state.environment)
            if isinstance(step.done[0], Failed):
                wrong = f"{step.op} failed: {step.done[0].why}"
            if step.op == "reap":
                wrong = wrong or invariants.i5_only_running_ones_stay(
                    namespace, leases, state_space.ours, state.environment
                )
            if (
                step.op == AGAIN
                and last is not None
                and _lasting(last) != _lasting(state)
            ):
                wrong = wrong or "I7: repeated, it changed something"
            if wrong:
                return f"at the end: {wrong}", tuple(lines)
            last = state
        return None, ()


def _lasting(state: State) -> tuple[int, int, frozenset[Entry]]:
    """Return the parts of a state that outlast every process."""
    return state.namespace, state.ledger, state.environment.entries


class _Frame:
    """A state on the path from the start to the present state of the search."""

    __slots__ = ("key", "schedules", "successors")

    def __init__(self, key: bytes, successors: Iterator[Successor]) -> None:
        self.key = key
        self.successors = successors
        self.schedules = 0


def _way(came: dict[bytes, tuple[bytes, str] | None], key: bytes) -> tuple[str, ...]:
    """Return the steps that led to a state."""
    tokens: list[str] = []
    while step := came[key]:
        key, token = step
        tokens.append(token)
    return tuple(reversed(tokens))


def replay(scenario: Scenario, schedule: tuple[str, ...]) -> Counterexample:
    """Run one schedule; `broken` is "" if it breaks no promise."""
    with Explorer(scenario) as explorer:
        return explorer.explain(schedule)
