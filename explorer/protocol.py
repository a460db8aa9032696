# SPDX-License-Identifier: Apache-2.0
"""A model of the protocol between processes: claims, locks, reaper, hand-over, client.

The explorer runs Tapster's code. This file models what lies between processes, and so
in no function: which process holds which lock, who starts a reaper, who takes over when
a process is killed, and what a client leaves when it dies. It is small enough to read
beside `operations/claims.py`, `reaper.py`, `operations/context.py` (wake_reaper) and
`rpc/client.py`, which it follows step by step. Each step is what the kernel or SQLite
makes atomic: a transaction, a lock call, the end of a process.

`explore` walks every interleaving of the steps, with a bounded number of kills, and
checks the promises in every state. A process that is stopped (SIGSTOP) is one that
takes no step for a while, so every such case is among the interleavings.

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
    """A manager counts as alive while its lock is held; without this rule, always."""
    record_first: bool = True
    """A release is recorded before its process looks for a reaper."""
    quit_inside: bool = True
    """A reaper gives up its lock inside the transaction that finds no work."""
    own_lock_file: bool = True
    """The standby closes the lock file that it shares with the leader."""
    standby: bool = True
    """A reaper has a standby."""
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
    """The number of the manager that has claimed it, or 0."""
    client: bool = False
    """Whether a client asked for a lease that ends with the client."""
    bound: bool = False
    """Whether it is recorded that the lease ends with the client."""


class ModelProcess(NamedTuple):
    """One process: the program that it runs, and its place in the program."""

    kind: str
    at: str
    number: int = 0
    """A manager's number, or which reaper it is."""
    parent: int = 0
    """Of a standby: the leader whose lock file it shares."""


class ProtocolState(NamedTuple):
    """A state of the model."""

    lease: ModelLease = ModelLease()
    processes: tuple[ModelProcess, ...] = ()
    locks: frozenset[int] = frozenset()
    """The managers' locks that are held, by number."""
    reaper_lock: int = 0
    """The number of the reaper that holds the reaper's lock, or 0."""
    kills: int = 0
    reapers: int = 0
    """How many reapers were started or forked."""
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
    """Which promise is broken, or ""."""
    steps: tuple[str, ...]
    """The shortest way there."""


class ProtocolScenario(NamedTuple):
    name: str
    start: ProtocolState
    kills: int


def manager(number: int) -> ModelProcess:
    """A manager that changes the lease in two steps, and may be killed in between."""
    return ModelProcess("manager", "begin", number)


RELEASER = ModelProcess("releaser", "begin")
CLIENT = ModelProcess("client", "begin")
CALLER = ModelProcess("caller", "begin", 1)
"""A client whose first call may be interrupted, and which then makes a second call."""
SERVICE = ModelProcess("service", "begin")

ACTIVE = ModelLease("active")
SCENARIOS = (
    ProtocolScenario(
        "two managers change one lease, a kill",
        ProtocolState(ACTIVE, (manager(1), manager(2))),
        1,
    ),
    ProtocolScenario(
        "a release, a reaper that goes, another release",
        ProtocolState(ACTIVE, (RELEASER, ModelProcess("late", "begin"))),
        0,
    ),
    ProtocolScenario(
        "a release, a reaper, a kill", ProtocolState(ACTIVE, (RELEASER,)), 1
    ),
    ProtocolScenario(
        "a release, a reaper that goes, another release, a kill",
        ProtocolState(ACTIVE, (RELEASER, ModelProcess("late", "begin"))),
        1,
    ),
    ProtocolScenario(
        "a client acquires and dies", ProtocolState(ModelLease(), (CLIENT,)), 1
    ),
    ProtocolScenario(
        "a client's call is interrupted, and it calls again",
        ProtocolState(processes=(CALLER, SERVICE)),
        0,
    ),
)

VARIANTS = (
    ("without claims", Rules(claims=False), 0),
    ("without taking over a dead manager's claim", Rules(take_over=False), 0),
    ("where a manager lives for ever", Rules(lives_by_lock=False), 0),
    ("where the reaper is looked for before the record", Rules(record_first=False), 1),
    ("where the reaper's lock goes after the transaction", Rules(quit_inside=False), 1),
    ("where the standby keeps the leader's lock", Rules(own_lock_file=False), 2),
    ("without a standby", Rules(standby=False), 2),
    ("where one lease ends the reaper", Rules(survives=False), 1),
    ("where acquire is two requests", Rules(one_request=False), 4),
    ("where an interrupted client keeps its connection", Rules(closes=False), 5),
)
"""Tapster without one protection, and the scenario that shows what that breaks."""

UNCOVERED = {
    ("releaser", "look"),
    ("reaper", "enter"),
    ("reaper", "first"),
    ("reaper", "fork"),
}
"""Where a release is recorded, and where a reaper has no standby yet."""
ALL = Rules()
Step = tuple[str, ProtocolState]


def steps(state: ProtocolState, rules: Rules, kills: int) -> Iterator[Step]:
    """Yield every step that is possible: what it is, and the state after it."""
    for place, process in enumerate(state.processes):
        moves = MOVES[process.kind]
        for name, after in moves(state, place, process, rules):
            yield f"{process.kind} {process.number or ''}: {name}", after
        if state.kills < kills and process.kind != "late":
            dead = _end(state, place)
            left = any(other.kind == "reaper" for other in dead.processes)
            alone = not left and (process.kind, process.at) in UNCOVERED
            yield (
                f"{process.kind} {process.number or ''} is killed",
                dead._replace(kills=state.kills + 1, alone=state.alone or alone),
            )


def _go(state: ProtocolState, place: int, process: ModelProcess) -> ProtocolState:
    """The state in which one process is further."""
    processes = state.processes
    return state._replace(
        processes=(*processes[:place], process, *processes[place + 1 :])
    )


def _end(state: ProtocolState, place: int) -> ProtocolState:
    """The state in which a process has ended: the kernel drops its locks."""
    process = state.processes[place]
    processes = state.processes[:place] + state.processes[place + 1 :]
    locks, reaper_lock = state.locks, state.reaper_lock
    if process.kind == "manager":
        locks -= {process.number}
    if process.kind == "reaper" and reaper_lock in (process.number, process.parent):
        # The lock belongs to the open file: it goes with the last that shares it.
        sharing = [
            other
            for other in processes
            if other.kind == "reaper" and reaper_lock in (other.number, other.parent)
        ]
        if not sharing:
            reaper_lock = 0
    return state._replace(processes=processes, locks=locks, reaper_lock=reaper_lock)


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
        after = "started" if state.reaper_lock else "start"
        if rules.record_first:
            yield from _start(state, place, process, after == "start")
        else:
            yield (
                "looks for a reaper",
                _go(
                    state,
                    place,
                    process._replace(at="record", parent=after == "start"),
                ),
            )
    elif process.at == records:
        recorded = state._replace(lease=record)
        if rules.record_first:
            yield (
                "records the release",
                _go(recorded, place, process._replace(at="look")),
            )
        else:
            yield from _start(recorded, place, process, bool(process.parent))


def _start(
    state: ProtocolState, place: int, process: ModelProcess, needed: bool
) -> Iterator[Step]:
    """Start a reaper if none runs."""
    ended = _end(state, place)
    if not needed:
        yield "sees a reaper", ended
        return
    reaper = ModelProcess("reaper", "enter", state.reapers + 1)
    yield (
        "starts a reaper",
        ended._replace(processes=(*ended.processes, reaper), reapers=state.reapers + 1),
    )


def _late(
    state: ProtocolState, place: int, process: ModelProcess, _: Rules
) -> Iterator[Step]:
    """Another lease takes the place of the first, and is released."""
    if state.lease.state == "ended":
        again = state._replace(lease=ACTIVE)
        yield "acquires again", _go(again, place, RELEASER)


def _reaper(
    state: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number, held = process.number, state.reaper_lock
    if process.at in ("enter", "wait"):
        if held == 0:
            entered = _go(state, place, process._replace(at="first", parent=0))
            yield "takes the reaper's lock", entered._replace(reaper_lock=number)
        elif process.at == "enter":
            yield "ends: another reaper runs", _end(state, place)
    elif process.at == "first":
        yield from _quit_or(state, place, process, rules, "fork")
    elif process.at == "fork":
        leads = _go(state, place, process._replace(at="lead"))
        if not rules.standby or state.reapers >= 4:
            yield "goes on alone", leads
            return
        shared = 0 if rules.own_lock_file else number
        standby = ModelProcess("reaper", "wait", state.reapers + 1, shared)
        yield (
            "forks a standby",
            leads._replace(
                processes=(*leads.processes, standby), reapers=state.reapers + 1
            ),
        )
    elif process.at == "lead":
        if state.lease.state == "fin_wait" and state.lease.claim == 0:
            if not rules.survives:
                yield "ends: a lease cannot be judged", _end_all(state, place)
                return
            ended = state._replace(lease=ModelLease("ended"))
            yield "ends the lease", _go(ended, place, process._replace(at="quit"))
        else:
            yield from _quit_or(state, place, process, rules, None)
    elif process.at == "quit":
        yield from _quit_or(state, place, process, rules, "lead")
    elif process.at == "free":
        yield "gives its lock up", _end_all(state, place)


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
        yield "has no work, and gives its lock up", _end_all(state, place)
    else:
        yield "has no work", _go(state, place, process._replace(at="free"))


def _end_all(state: ProtocolState, place: int) -> ProtocolState:
    """The leader ends in order. Its standby gets the lock, and sees for itself."""
    number = state.processes[place].number
    after = _end(state, place)
    if after.reaper_lock == number:
        after = after._replace(reaper_lock=0)  # an unlock ends it for all sharers
    return after


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
    "reaper": _reaper,
    "client": _client,
    "caller": _caller,
    "service": _service,
}


def broken(state: ProtocolState, rules: Rules) -> str:
    """Return which promise does not hold in a state, or ""."""
    if state.overlap:
        return "I3: two living managers work on one lease"
    if state.mistaken:
        return "I3: a client has the answer to another request"
    if any(True for _ in steps(state, rules, state.kills)):
        return ""
    # No process goes on by itself: what is left now stays.
    if state.lease.claim and state.processes:
        return "I5: a dead manager's claim keeps a living manager waiting"
    if state.lease.state == "fin_wait" and not state.alone and state.reapers:
        return "I5: a lease waits, and no process will end it"
    if state.lease.state == "active" and state.lease.client and not state.lease.bound:
        return "I5: a client has died, and its lease ends with no process"
    return ""


def explore(scenario: ProtocolScenario, rules: Rules = ALL) -> ProtocolResult:
    """Walk every interleaving, shortest first, up to the first broken promise."""
    came: dict[ProtocolState, tuple[ProtocolState, str] | None] = {scenario.start: None}
    queue = deque([scenario.start])
    while queue:
        state = queue.popleft()
        if wrong := broken(state, rules):
            return ProtocolResult(len(came), wrong, _way(came, state))
        for name, after in steps(state, rules, scenario.kills):
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
