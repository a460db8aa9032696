# SPDX-License-Identifier: Apache-2.0
"""A model of the protocol between processes: claims, locks, reaper, hand-over, client.

The explorer runs Tapster's code. This file models decisions that lie between processes,
and so in no function: which process holds which lock, which process starts a reaper,
which process takes over after a kill, and what a client leaves when it dies. It is
small enough to read beside `operations/claims.py`, `reaper.py`, `operations/context.py`
(wake_reaper) and `rpc/client.py`, which it follows step by step. Each step is what the
kernel or SQLite makes atomic: a transaction, a lock call, the end of a process.

`explore` walks every interleaving of the steps, with a bounded number of kills, and
checks the promises in every state. A stopped manager (SIGSTOP) takes no step for a
while, so every such case is among the interleavings. Two processes notice that a reaper
is stopped or frozen with its cgroup: its standby, and a command, which sees that the
reaper has not been awake for a time. The reaper may go on at any time.

Each `Rules` field is one protection. Without it a promise is broken, and the shortest
way there is found.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Rules(NamedTuple):
    """The protections. Each can be removed, to see which promise depends on it."""

    claims: bool = True
    """An operation of several steps claims its lease first."""
    take_over: bool = True
    """The claim of a dead manager may be taken over."""
    lives_by_lock: bool = True
    """A manager counts as alive while it holds its lock; without this rule, always."""
    record_first: bool = True
    """A release is recorded before its process looks for a reaper."""
    announced_before: bool = True
    """A reaper that ends because another is awake sees that other after its own
    announcement has ended."""
    quit_inside: bool = True
    """A reaper gives up its lock inside the transaction that finds no work."""
    standby: bool = True
    """A reaper has a standby, which forks another reaper if the first is killed."""
    guards: bool = True
    """The standby kills a leader that is stopped."""
    progress: bool = True
    """A reaper that has not been awake for a time is replaced."""
    yields_inside: bool = True
    """A reaper gives up its lock to another inside a transaction."""
    survives: bool = True
    """A lease that cannot be judged does not end the reaper."""
    one_request: bool = True
    """A client acquires and binds in one request."""
    closes: bool = True
    """A client closes its connection if one of its calls is interrupted."""


class ModelLease(NamedTuple):
    """The one lease of the model."""

    state: str = "none"
    """none, active, fin_wait or ended."""
    claim: int = 0
    """The number of the manager that has claimed the lease, or 0."""
    client: bool = False
    """Whether a client asked for a lease that ends with the client."""
    bound: bool = False
    """Whether it is recorded that the lease ends with the client."""


class ModelProcess(NamedTuple):
    """One process: the program that it runs, and its place in the program."""

    kind: str
    at: str
    number: int = 0
    """The number of the manager, of the leader or of the standby."""
    parent: int = 0
    """For a leader: the number of its standby, which has forked it."""
    halted: bool = False
    """The process is stopped, or frozen."""


class Disturbances(NamedTuple):
    """How often processes are killed, stopped and frozen."""

    kills: int = 0
    stops: int = 0
    """How often one leader or standby is stopped."""
    freezes: int = 0
    """How often all leaders and standbys are frozen together."""


class ProtocolState(NamedTuple):
    """A state of the model."""

    lease: ModelLease = ModelLease()
    processes: tuple[ModelProcess, ...] = ()
    locks: frozenset[int] = frozenset()
    """The managers' locks that are held, by number."""
    reaper_locks: tuple[int, int] = (0, 0)
    """The leaders that hold the reaper's lock, and the lock of one that replaces it."""
    done: Disturbances = Disturbances()
    reapers: int = 0
    """How many leaders and standbys have started."""
    killed: frozenset[int] = frozenset()
    """The standbys whose leaders were killed, and that have not noticed that yet."""
    alone: bool = False
    """A process was killed when no other process was going to end the lease. This is
    left open: the next command starts a reaper."""
    overlap: bool = False
    """Two living processes have worked on the lease at the same time."""
    requests: tuple[int, ...] = ()
    """The requests of a client that the daemon has not answered, by number."""
    answers: tuple[int, ...] = ()
    """The answers that the client has not read, by the number of their request."""
    mistaken: bool = False
    """A client has taken the answer to another request for its own."""


class ProtocolResult(NamedTuple):
    """What a search found."""

    states: int
    broken: str
    """The broken promise, or ""."""
    steps: tuple[str, ...]
    """The shortest way to the broken promise."""


class ProtocolScenario(NamedTuple):
    name: str
    start: ProtocolState
    most: Disturbances = Disturbances()


def manager(number: int) -> ModelProcess:
    """A manager that changes the lease in two steps, and may be killed in between."""
    return ModelProcess("manager", "begin", number)


RELEASER = ModelProcess("releaser", "begin")
COMMAND = ModelProcess("releaser", "look")
"""A command that changes no lease. It also looks for a reaper."""
LATE = ModelProcess("late", "begin")
CLIENT = ModelProcess("client", "begin")
CALLER = ModelProcess("caller", "begin", 1)
"""A client whose first call may be interrupted, and which then makes a second call."""
SERVICE = ModelProcess("service", "begin")

ACTIVE = ModelLease("active")
KILL, STOP = Disturbances(kills=1), Disturbances(stops=1)
FREEZE = Disturbances(freezes=1)
SCENARIOS = (
    ProtocolScenario(
        "two managers change one lease, a kill",
        ProtocolState(ACTIVE, (manager(1), manager(2))),
        KILL,
    ),
    ProtocolScenario(
        "a release, a reaper that goes, another release",
        ProtocolState(ACTIVE, (RELEASER, LATE)),
    ),
    ProtocolScenario(
        "a release, a reaper, a kill", ProtocolState(ACTIVE, (RELEASER,)), KILL
    ),
    ProtocolScenario(
        "a release, a reaper that goes, another release, a kill",
        ProtocolState(ACTIVE, (RELEASER, LATE)),
        KILL,
    ),
    ProtocolScenario(
        "a client acquires and dies", ProtocolState(ModelLease(), (CLIENT,)), KILL
    ),
    ProtocolScenario(
        "a client's call is interrupted, and it calls again",
        ProtocolState(processes=(CALLER, SERVICE)),
    ),
    ProtocolScenario(
        "a release, a reaper that is stopped", ProtocolState(ACTIVE, (RELEASER,)), STOP
    ),
    ProtocolScenario(
        "a release, reapers that are frozen, a command, another release",
        ProtocolState(ACTIVE, (RELEASER, COMMAND, LATE)),
        FREEZE,
    ),
    ProtocolScenario(
        "a release, a reaper that is stopped, a command, a kill",
        ProtocolState(ACTIVE, (RELEASER, COMMAND)),
        Disturbances(kills=1, stops=1),
    ),
    ProtocolScenario(
        "a release, reapers that are frozen, a command, a kill",
        ProtocolState(ACTIVE, (RELEASER, COMMAND)),
        Disturbances(kills=1, freezes=1),
    ),
    ProtocolScenario(
        "a release and a command start reapers, another release",
        ProtocolState(ACTIVE, (RELEASER, COMMAND, LATE)),
    ),
)

VARIANTS = (
    ("without claims", Rules(claims=False), 0),
    ("without taking over a dead manager's claim", Rules(take_over=False), 0),
    ("where a manager lives for ever", Rules(lives_by_lock=False), 0),
    ("where the reaper is looked for before the record", Rules(record_first=False), 1),
    (
        "where a reaper is announced until it ends",
        Rules(announced_before=False),
        10,
    ),
    ("where the reaper's lock goes after the transaction", Rules(quit_inside=False), 1),
    ("without a standby", Rules(standby=False), 2),
    ("where the standby takes no notice of a stop", Rules(guards=False), 6),
    ("where a reaper that is stopped counts as one", Rules(progress=False), 7),
    ("where a reaper yields outside of a transaction", Rules(yields_inside=False), 7),
    ("where one lease ends the reaper", Rules(survives=False), 1),
    ("where acquire is two requests", Rules(one_request=False), 4),
    ("where an interrupted client keeps its connection", Rules(closes=False), 5),
)
"""Tapster without one protection, and the scenario that shows what that breaks."""

UNCOVERED = {
    *(("releaser", "look"), ("releaser", "start")),
    *(("standby", "begin"), ("standby", "fork")),
}
"""The places at which a release is recorded, and a standby has forked no leader yet."""
ANNOUNCED = {("standby", "begin"), ("reaper", "start"), ("reaper", "end")}
"""The places at which a process announces that a reaper was started."""
REAPING = ("reaper", "standby")
CLAIM = 100
"""The difference between the number of a leader and the number of its manager."""
ALL = Rules()
Step = tuple[str, ProtocolState]


def steps(
    state: ProtocolState, rules: Rules, most: Disturbances, *, go_on: bool = True
) -> Iterator[Step]:
    """Yield every possible step: its name, and the state after it.

    With `go_on`, stopped processes may go on.
    """
    for place, process in enumerate(state.processes):
        who = f"{process.kind} {process.number or ''}"
        if not process.halted:
            for name, after in MOVES[process.kind](state, place, process, rules):
                yield f"{who}: {name}", after
        elif go_on:
            yield f"{who} goes on", _go(state, place, process._replace(halted=False))
    yield from _disturbances(state, most)


def _disturbances(state: ProtocolState, most: Disturbances) -> Iterator[Step]:
    done = state.done
    for place, process in enumerate(state.processes):
        who = f"{process.kind} {process.number or ''}"
        reaps = process.kind in REAPING and not process.halted
        if done.stops < most.stops and reaps:
            stopped = _go(state, place, process._replace(halted=True))
            yield (
                f"{who} is stopped",
                stopped._replace(done=done._replace(stops=done.stops + 1)),
            )
        if done.kills < most.kills and process.kind != "late":
            dead = _kill(state, place)
            left = any(_will_reap(dead, other) for other in dead.processes)
            alone = not left and (process.kind, process.at) in UNCOVERED
            yield (
                f"{who} is killed",
                dead._replace(
                    done=done._replace(kills=done.kills + 1), alone=state.alone or alone
                ),
            )
    if done.freezes < most.freezes:
        frozen = tuple(
            process._replace(halted=process.halted or process.kind in REAPING)
            for process in state.processes
        )
        if frozen != state.processes:
            yield (
                "the reapers are frozen",
                state._replace(
                    processes=frozen, done=done._replace(freezes=done.freezes + 1)
                ),
            )


def _will_reap(state: ProtocolState, process: ModelProcess) -> bool:
    """Return whether a process is a leader, or a standby that will fork one."""
    if process.kind == "standby":
        return process.at in ("begin", "fork") or process.number in state.killed
    return process.kind == "reaper"


def _go(state: ProtocolState, place: int, process: ModelProcess) -> ProtocolState:
    """Return the state after a step of one process."""
    processes = state.processes
    return state._replace(
        processes=(*processes[:place], process, *processes[place + 1 :])
    )


def _end(state: ProtocolState, place: int) -> ProtocolState:
    """Return the state after the end of a process: the kernel drops its locks."""
    process = state.processes[place]
    processes = state.processes[:place] + state.processes[place + 1 :]
    locks, reaper_locks = state.locks, state.reaper_locks
    if process.kind == "manager":
        locks -= {process.number}
    if process.kind == "reaper":
        first, second = (0 if by == process.number else by for by in reaper_locks)
        reaper_locks = first, second
    return state._replace(processes=processes, locks=locks, reaper_locks=reaper_locks)


def _kill(state: ProtocolState, place: int) -> ProtocolState:
    """Return the state after a process was killed."""
    process = state.processes[place]
    killed = state.killed | ({process.parent} if process.kind == "reaper" else set())
    return _end(state, place)._replace(killed=killed)


def _leader(state: ProtocolState, number: int) -> int | None:
    """Return the place of a leader."""
    for place, process in enumerate(state.processes):
        if process.kind == "reaper" and process.number == number:
            return place
    return None


def _is_awake(state: ProtocolState, number: int, rules: Rules) -> bool:
    """Return whether there is a leader that other processes see awake."""
    place = _leader(state, number)
    return place is not None and not (state.processes[place].halted and rules.progress)


def _is_announced(state: ProtocolState, rules: Rules) -> bool:
    """Return whether a process sees that a reaper was started."""
    return any(
        (process.kind, process.at) in ANNOUNCED
        and not (process.halted and rules.progress)
        for process in state.processes
    )


def _manager(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number, lease = process.number, state.lease
    if process.at == "begin":
        yield (
            "takes its lock",
            _go(
                state._replace(locks=state.locks | {number}),
                place,
                process._replace(at="claim"),
            ),
        )
    elif process.at == "claim":
        alive = not rules.lives_by_lock or lease.claim in state.locks
        free = lease.claim == 0 or (rules.take_over and not alive)
        if free or not rules.claims:
            claim = number if rules.claims else lease.claim
            others = [
                one
                for one in state.processes
                if one.kind == "manager" and one.at == "work" and one != process
            ]
            yield (
                "claims the lease, and begins",
                _go(
                    state._replace(
                        lease=lease._replace(claim=claim),
                        overlap=state.overlap or bool(others),
                    ),
                    place,
                    process._replace(at="work"),
                ),
            )
    elif process.at == "work":
        claim = 0 if lease.claim == number else lease.claim
        done = state._replace(lease=lease._replace(claim=claim))
        yield "ends its claim", _end(done, place)


def _releaser(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    record = state.lease._replace(state="fin_wait")
    looks = "look" if rules.record_first else "begin"
    records = "begin" if rules.record_first else "record"
    if process.at == looks:
        awake = any(_is_awake(state, by, rules) for by in state.reaper_locks)
        if not rules.record_first:
            yield (
                "looks for a reaper",
                _go(state, place, process._replace(at="record", parent=not awake)),
            )
        elif awake:
            yield "sees a reaper", _end(state, place)
        else:
            yield "sees no reaper", _go(state, place, process._replace(at="start"))
    elif process.at == "start":
        yield _start(state, place, rules)
    elif process.at == records:
        recorded = state._replace(lease=record)
        if rules.record_first:
            yield (
                "records the release",
                _go(recorded, place, process._replace(at="look")),
            )
        elif process.parent:
            yield _start(recorded, place, rules)
        else:
            yield "records the release", _end(recorded, place)


def _start(state: ProtocolState, place: int, rules: Rules) -> Step:
    """Announce and start a reaper, unless one is announced."""
    ended = _end(state, place)
    if _is_announced(state, rules):
        return "sees that a reaper was started", ended
    standby = ModelProcess("standby", "begin", state.reapers + 1)
    return (
        "starts a reaper",
        ended._replace(
            processes=(*ended.processes, standby), reapers=state.reapers + 1
        ),
    )


def _late(
    state: ProtocolState, place: int, process: ModelProcess, _: Rules
) -> Iterator[Step]:
    """Another lease takes the place of the first, and is released."""
    if state.lease.state == "ended":
        again = state._replace(lease=ACTIVE)
        yield "acquires again", _go(again, place, RELEASER)


def _standby(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number = process.number
    if process.at in ("begin", "fork"):
        begins = "start" if process.at == "begin" else "enter"
        if not rules.standby:
            alone = ModelProcess("reaper", begins, number)
            yield "leads itself", _go(state, place, alone)
            return
        leader = ModelProcess("reaper", begins, state.reapers + 1, number)
        waits = _go(state, place, process._replace(at="wait"))
        yield (
            "forks a leader",
            waits._replace(
                processes=(*waits.processes, leader), reapers=state.reapers + 1
            ),
        )
        return
    again = process._replace(at="fork")
    for at, other in enumerate(state.processes):
        if other.kind == "reaper" and other.parent == number:
            if other.halted and rules.guards:
                forks = _end(_go(state, place, again), at)
                yield "kills its stopped leader", forks
            return
    if number in state.killed:
        seen = state._replace(killed=state.killed - {number})
        yield "sees that its leader was killed", _go(seen, place, again)
    else:
        yield "ends with its leader", _end(state, place)


def _reaper(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number, lease = process.number, state.lease
    own = CLAIM + number
    if process.at in ("start", "enter"):
        yield from _enter(state, place, process, rules)
    elif process.at == "first":
        yield from _quit_or(state, place, process, rules, "lead")
    elif process.at == "lead":
        if state.reaper_locks[0] == number and _is_awake(
            state, state.reaper_locks[1], rules
        ):
            if rules.yields_inside:
                yield "gives its lock up to another reaper", _end(state, place)
            else:
                yields = _go(state, place, process._replace(at="free"))
                yield "sees another reaper", yields
            return
        owner = _leader(state, lease.claim - CLAIM)
        if lease.state == "fin_wait" and owner in (None, place):
            if not rules.survives:
                yield "ends: a lease cannot be judged", _end(state, place)
                return
            claimed = state._replace(lease=lease._replace(claim=own))
            yield "claims the lease", _go(claimed, place, process._replace(at="work"))
        else:
            yield from _quit_or(state, place, process, rules, None)
    elif process.at == "work":
        overlap = state.overlap or lease.claim != own
        ended = state._replace(lease=ModelLease("ended"), overlap=overlap)
        yield "ends the lease", _go(ended, place, process._replace(at="quit"))
    elif process.at == "quit":
        yield from _quit_or(state, place, process, rules, "lead")
    elif process.at == "free":
        yield "gives its lock up", _end(state, place)
    elif process.at == "end":
        yield "ends", _end(state, place)


def _enter(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    """Take the first lock that no other reaper has, unless a reaper is awake.

    A stopped reaper is killed, unless its process is hidden.
    """
    for which, holder in enumerate(state.reaper_locks):
        at = _leader(state, holder)
        if at is None:
            locks = [*state.reaper_locks]
            locks[which] = process.number
            entered = state._replace(reaper_locks=(locks[0], locks[1]))
            yield "takes a lock", _go(entered, place, process._replace(at="first"))
            return
        if _is_awake(state, holder, rules):
            if process.at == "enter":
                yield "ends: another reaper is awake", _end(state, place)
            else:
                after = "enter" if rules.announced_before else "end"
                seen = _go(state, place, process._replace(at=after))
                yield "sees that another reaper is awake", seen
            return
        yield "kills a stopped reaper", _kill(state, at)
    yield "ends: there is no further lock", _end(state, place)


def _quit_or(
    state: ProtocolState,
    place: int,
    process: ModelProcess,
    rules: Rules,
    otherwise: str | None,
) -> Iterator[Step]:
    """End if there is no work, in one transaction; else go on at `otherwise`."""
    if state.lease.state == "fin_wait":
        if otherwise is not None:
            yield "has work", _go(state, place, process._replace(at=otherwise))
    elif rules.quit_inside:
        yield "has no work, and gives its lock up", _end(state, place)
    else:
        yield "has no work", _go(state, place, process._replace(at="free"))


def _client(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    if process.at == "begin":
        acquired = state._replace(
            lease=ModelLease("active", client=True, bound=rules.one_request)
        )
        if rules.one_request:
            yield "acquires and binds", _go(acquired, place, process._replace(at="run"))
        else:
            yield "acquires", _go(acquired, place, process._replace(at="bind"))
    elif process.at == "bind":
        bound = state._replace(lease=state.lease._replace(bound=True))
        yield "binds", _go(bound, place, process._replace(at="run"))
    elif process.at == "run":
        yield "ends", _end(state, place)


def _caller(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number = process.number
    if process.at == "begin":
        sent = state._replace(requests=(*state.requests, number))
        yield f"sends request {number}", _go(sent, place, process._replace(at="wait"))
        return
    if state.answers:
        mistaken = state.answers[0] != number
        read = state._replace(answers=state.answers[1:], mistaken=mistaken)
        yield f"reads the answer to {state.answers[0]}", _end(read, place)
    if number == 1:
        left = state._replace(requests=(), answers=()) if rules.closes else state
        again = process._replace(at="begin", number=2)
        yield "is interrupted", _go(left, place, again)


def _service(
    state: ProtocolState, place: int, process: ModelProcess, _: Rules
) -> Iterator[Step]:
    """The daemon answers one request after the other."""
    if state.requests:
        number, *left = state.requests
        answered = state._replace(
            requests=tuple(left), answers=(*state.answers, number)
        )
        yield f"answers request {number}", _go(answered, place, process)


Move = Callable[[ProtocolState, int, ModelProcess, Rules], Iterator[Step]]
MOVES: dict[str, Move] = {
    "manager": _manager,
    "releaser": _releaser,
    "late": _late,
    "standby": _standby,
    "reaper": _reaper,
    "client": _client,
    "caller": _caller,
    "service": _service,
}


def broken(state: ProtocolState, rules: Rules) -> str:
    """Return the promise that a state breaks, or ""."""
    if state.overlap:
        return "I3: two living managers work on one lease"
    if state.mistaken:
        return "I3: a client has the answer to another request"
    if any(steps(state, rules, state.done, go_on=False)):
        return ""
    # No process takes another step, so the present leases and claims stay.
    if 0 < state.lease.claim < CLAIM and state.processes:
        return "I5: a dead manager's claim keeps a living manager waiting"
    if state.lease.state == "fin_wait" and state.reapers and not _is_open(state, rules):
        return "I5: a lease waits, and no process will end it"
    if state.lease.state == "active" and state.lease.client and not state.lease.bound:
        return "I5: a client has died, and its lease ends with no process"
    return ""


def _is_open(state: ProtocolState, rules: Rules) -> bool:
    """Return whether a lease may wait in this state.

    Either the next command starts a reaper, or a stopped reaper has claimed the lease.
    """
    if state.alone or _leader(state, state.lease.claim - CLAIM) is not None:
        return True
    halted = any(process.halted for process in state.processes)
    guarded = any(
        process.kind == "standby" and not process.halted for process in state.processes
    )
    awake = any(_is_awake(state, number, rules) for number in state.reaper_locks)
    return halted and not guarded and not awake


def explore(scenario: ProtocolScenario, rules: Rules = ALL) -> ProtocolResult:
    """Walk every interleaving, shortest first, up to the first broken promise."""
    came: dict[ProtocolState, tuple[ProtocolState, str] | None] = {scenario.start: None}
    queue = deque([scenario.start])
    while queue:
        state = queue.popleft()
        if wrong := broken(state, rules):
            return ProtocolResult(len(came), wrong, _way(came, state))
        for name, after in steps(state, rules, scenario.most):
            if after not in came:
                came[after] = state, name
                queue.append(after)
    return ProtocolResult(len(came), "", ())


def _way(
    came: dict[ProtocolState, tuple[ProtocolState, str] | None], state: ProtocolState
) -> tuple[str, ...]:
    way: list[str] = []
    while (before := came[state]) is not None:
        state, name = before
        way.append(name)
    return tuple(reversed(way))
