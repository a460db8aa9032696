# SPDX-License-Identifier: Apache-2.0
"""Goes through every schedule of a scenario, or looks for the shortest bad one."""

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
from explorer.world import (
    NIGH,
    Event,
    Moment,
    Rest,
    State,
    Universe,
    shown,
)

KILL = "!"
"""Marks a step of a schedule at which the actor dies instead."""


class Scenario(NamedTuple):
    """What is explored: the actors, and how many of them may be killed."""

    name: str
    scripts: tuple[Script, ...]
    kills: int = 0
    checks: tuple[Callable[[Moment], str | None], ...] = invariants.STRICT
    """What is looked at after each step."""
    end: Script | None = ending()
    """What is done when nobody can go on."""


class Found(NamedTuple):
    """A schedule that breaks a promise."""

    broken: str
    schedule: tuple[str, ...]
    """Whose turn it is, step by step; "A!" is A's death."""
    lines: tuple[str, ...]
    """The same for people."""


class Result(NamedTuple):
    """What a search saw."""

    states: int
    steps: int
    schedules: int
    """How many the states stand for; 0 if they were not counted."""
    broken: frozenset[str]
    """Every promise that was broken, and how."""
    found: Found | None


class Turn(NamedTuple):
    """A possible next step."""

    token: str
    state: State
    event: Event | None
    """None for a death."""
    broken: str | None

    @property
    def line(self) -> str:
        return shown(self.event) if self.event else f"{self.token[:-1]}: killed"


class Explorer:
    """One scenario being explored. Use as a context manager."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._directory = tempfile.TemporaryDirectory(prefix="tapster-explorer-")
        scripts = scenario.scripts
        if scenario.end:
            scripts = (*scripts, scenario.end)
        self.universe = Universe(scripts, self._directory.name, scenario.kills)
        self._actors = range(len(scenario.scripts))
        self._ends: dict[tuple[int, int, Rest], tuple[str | None, tuple[str, ...]]] = {}
        self._rests: dict[Rest, int] = {}
        self._ran: set[str] = set()
        self._pack = Struct(f"{len(scripts) + 3}I").pack

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.universe.ledgers.close()
        self._directory.cleanup()

    def explore(self, *, merge: bool = True, most: int = 0) -> Result:
        """Depth first through all schedules; a bad one is not walked further.

        Without `merge` each schedule is walked to its end on its own. With
        `most`, stop after about so many states.
        """
        schedules: dict[bytes, int] = {}
        bad: set[str] = set()
        states = steps = total = 0
        start = self.universe.start()
        stack = [_Frame(self.key(start), self.turns(start))]
        while stack:
            top = stack[-1]
            turn = next(top.turns, None)
            if turn is None:
                stack.pop()
                states += 1
                if merge:
                    schedules[top.key] = top.schedules
                total = top.schedules
                if stack:
                    stack[-1].schedules += total
                continue
            steps += 1
            if turn.broken:
                bad.add(turn.broken)
                top.schedules += 1
                continue
            key = self.key(turn.state)
            if merge and key in schedules:
                top.schedules += schedules[key]
                continue
            frame = _Frame(key, self.turns(turn.state))
            first = next(frame.turns, None)
            if first is None:
                frame.schedules = 1
                if wrong := self.end(turn.state)[0]:
                    bad.add(wrong)
            else:
                frame.turns = chain([first], frame.turns)
            stack.append(frame)
            if most and states >= most:
                return Result(states, steps, 0, frozenset(bad), None)
        return Result(states, steps, total, frozenset(bad), None)

    def shortest(self) -> Result:
        """Breadth first: the shortest bad schedule, if there is one."""
        start = self.universe.start()
        came: dict[bytes, tuple[bytes, str] | None] = {self.key(start): None}
        queue = deque([start])
        steps = 0
        while queue:
            state = queue.popleft()
            key = self.key(state)
            turns = list(self.turns(state))
            for turn in turns:
                steps += 1
                new = self.key(turn.state)
                if turn.broken:
                    schedule = (*_way(came, key), turn.token)
                    return Result(
                        len(came), steps, 0, frozenset(), self.found(schedule)
                    )
                if new not in came:
                    came[new] = key, turn.token
                    queue.append(turn.state)
            if not turns and self.end(state)[0]:
                return Result(
                    len(came), steps, 0, frozenset(), self.found(_way(came, key))
                )
        return Result(len(came), steps, 0, frozenset(), None)

    def found(self, schedule: tuple[str, ...]) -> Found:
        """Walk along a schedule once more, and tell."""
        state = self.universe.start()
        lines: list[str] = []
        for token in schedule:
            turn = self.take(state, token)
            if turn is None:
                raise ValueError(f"{token!r} has no turn after {len(lines)} steps")
            lines.append(turn.line)
            if turn.broken:
                return Found(turn.broken, schedule, (*lines, f"=> {turn.broken}"))
            state = turn.state
        wrong, ending = None, tuple[str, ...]()
        if not any(True for _ in self.turns(state)):
            wrong, ending = self.end(state)
        lines += ending
        if wrong:
            lines.append(f"=> {wrong}")
        return Found(wrong or "", schedule, tuple(lines))

    def idle(self) -> set[str]:
        """Those who should acquire a device, but never did in any schedule."""
        makers = {
            script.name
            for script in self.scenario.scripts
            if any(op.name == "acquire" for op in script.ops)
        }
        return makers - self._ran

    def turns(self, state: State) -> Iterator[Turn]:
        """Every step that is possible now."""
        for actor in self._actors:
            if turn := self._step(state, actor):
                yield turn
            if turn := self._kill(state, actor):
                yield turn

    def take(self, state: State, token: str) -> Turn | None:
        """One step of a schedule."""
        name = token.removesuffix(KILL)
        names = [script.name for script in self.scenario.scripts]
        actor = names.index(name)
        if token.endswith(KILL):
            return self._kill(state, actor)
        return self._step(state, actor)

    def key(self, state: State) -> bytes:
        """A state, small: equal for equal states."""
        rest = self._rests.setdefault(state.rest, len(self._rests))
        return self._pack(state.namespace, state.ledger, rest, *state.nodes)

    def end(self, state: State) -> tuple[str | None, tuple[str, ...]]:
        """What is wrong when nobody can go on, after a last recover and reap."""
        if not self.scenario.end:
            return None, ()
        key = state.namespace, state.ledger, state.rest
        if key not in self._ends:
            self._ends[key] = self._finish(state)
        return self._ends[key]

    def _step(self, state: State, actor: int) -> Turn | None:
        done = self.universe.step(state, actor)
        if done is None:
            return None
        after, event = done
        wrong = self._judge(actor, state, after, event)
        return Turn(event.actor, after, event, wrong)

    def _kill(self, state: State, actor: int) -> Turn | None:
        after = self.universe.kill(state, actor)
        if after is None:
            return None
        name = self.scenario.scripts[actor].name
        return Turn(f"{name}{KILL}", after, None, None)

    def _judge(
        self, actor: int, before: State, after: State, event: Event
    ) -> str | None:
        if (
            before.namespace == after.namespace
            and before.ledger == after.ledger
            and before.rest.running == after.rest.running
            and before.rest.entries == after.rest.entries
            and event.done is None
            and not event.changes
        ):
            return None
        self._ran.update(machine.owner for machine in after.rest.running)
        kernels, ledgers = self.universe.kernels.views, self.universe.ledgers.leases
        moment = Moment(
            event=event,
            manager=self.universe.node(before, actor).manager
            or next((m for a, m in after.rest.locks if a == actor), -1),
            namespace=kernels[after.namespace],
            kernel_before=kernels[before.namespace],
            leases=ledgers[after.ledger],
            leases_before=ledgers[before.ledger],
            now=after.rest.time * NIGH,
            rest=after.rest,
            rest_before=before.rest,
            ours=self.universe.ours,
        )
        return next(broken(self.scenario.checks, moment), None)

    def _not_at_rest(self, state: State) -> str | None:
        namespace = self.universe.kernels.views[state.namespace]
        leases = self.universe.ledgers.leases[state.ledger]
        return invariants.released_is_at_rest(namespace, leases)

    def _finish(self, state: State) -> tuple[str | None, tuple[str, ...]]:
        universe = self.universe
        end = len(self._actors)
        rest = state.rest._replace(locks=frozenset(), writer=-1, away=False)
        state = state._replace(rest=rest)
        lines: list[str] = []
        if not rest.kills and (wrong := self._not_at_rest(state)):
            return wrong, ()
        last: State | None = None
        while done := universe.step(state, end):
            before, (state, event) = state, done
            lines.append(shown(event))
            if wrong := self._judge(end, before, state, event):
                return wrong, tuple(lines)
            if event.done is None:
                continue
            namespace = universe.kernels.views[state.namespace]
            leases = universe.ledgers.leases[state.ledger]
            wrong = invariants.i5_leased_or_gone(namespace, leases, universe.ours)
            wrong = wrong or invariants.i5_planes_agree(leases, state.rest)
            if isinstance(event.done[0], Failed):
                wrong = f"{event.op} failed: {event.done[0].why}"
            if event.op == "reap":
                wrong = wrong or invariants.i5_only_running_ones_stay(
                    namespace, leases, universe.ours, state.rest
                )
            if event.op == AGAIN and last is not None and _world(last) != _world(state):
                wrong = wrong or "I7: done once more, it changed something"
            if wrong:
                return f"at the end: {wrong}", tuple(lines)
            last = state
        return None, ()


def _world(state: State) -> tuple[int, int, frozenset[Entry]]:
    return state.namespace, state.ledger, state.rest.entries


class _Frame:
    """A state on the way from the start to where the search is."""

    __slots__ = ("key", "schedules", "turns")

    def __init__(self, key: bytes, turns: Iterator[Turn]) -> None:
        self.key = key
        self.turns = turns
        self.schedules = 0


def _way(came: dict[bytes, tuple[bytes, str] | None], key: bytes) -> tuple[str, ...]:
    """The steps that led to a state."""
    tokens: list[str] = []
    while step := came[key]:
        key, token = step
        tokens.append(token)
    return tuple(reversed(tokens))


def replay(scenario: Scenario, schedule: tuple[str, ...]) -> Found:
    """Run one schedule; `broken` is "" if it breaks nothing."""
    with Explorer(scenario) as explorer:
        return explorer.found(schedule)
