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
    """The protections. Each can be taken away, to see what it is needed for."""

    claims: bool = True
    """An operation of several steps claims its lease first."""
    take_over: bool = True
    """The claim of a dead manager may be taken over."""
    lives_by_lock: bool = True
    """A manager lives while its lock is held; without: for ever."""
    record_first: bool = True
    """A release is recorded before the reaper is looked for."""
    quit_inside: bool = True
    """A reaper gives its lock up inside the transaction that finds no work."""
    own_lock_file: bool = True
    """The standby closes the lock file that it shares with the leader."""
    standby: bool = True
    """A reaper has a standby."""
    survives: bool = True
    """A lease that cannot be judged does not end the reaper."""
    one_request: bool = True
    """A client acquires and binds in one request."""


class ModelLease(NamedTuple):
    state: str = "none"
    """none, active, fin_wait or ended."""
    claim: int = 0
    """The number of the manager that has claimed it, or 0."""
    client: bool = False
    """Whether a client asked for a lease that ends with the client."""
    bound: bool = False
    """Whether it is recorded that the lease ends with the client."""


class ModelProcess(NamedTuple):
    """One process: what it runs, and how far it is."""

    kind: str
    at: str
    number: int = 0
    """A manager's number, or which reaper it is."""
    parent: int = 0
    """Of a standby: the leader whose lock file it shares."""


class ProtocolState(NamedTuple):
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
    """A process was killed while no other one was to end the lease. That is left open:
    the next command starts a reaper."""
    overlap: bool = False
    """Two living processes have worked on the lease at the same time."""


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


def steps(world: ProtocolState, rules: Rules, kills: int) -> Iterator[Step]:
    """Yield every step that is possible: what it is, and the world after it."""
    for place, process in enumerate(world.processes):
        moves = MOVES[process.kind]
        for name, after in moves(world, place, process, rules):
            yield f"{process.kind} {process.number or ''}: {name}", after
        if world.kills < kills and process.kind != "late":
            dead = _end(world, place)
            left = any(other.kind == "reaper" for other in dead.processes)
            alone = not left and (process.kind, process.at) in UNCOVERED
            yield (
                f"{process.kind} {process.number or ''} is killed",
                dead._replace(kills=world.kills + 1, alone=world.alone or alone),
            )


def _go(world: ProtocolState, place: int, process: ModelProcess) -> ProtocolState:
    """The world in which one process is further."""
    processes = world.processes
    return world._replace(
        processes=(*processes[:place], process, *processes[place + 1 :])
    )


def _end(world: ProtocolState, place: int) -> ProtocolState:
    """The world in which a process has ended: the kernel drops its locks."""
    process = world.processes[place]
    processes = world.processes[:place] + world.processes[place + 1 :]
    locks, reaper_lock = world.locks, world.reaper_lock
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
    return world._replace(processes=processes, locks=locks, reaper_lock=reaper_lock)


def _manager(
    world: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number, lease = process.number, world.lease
    if process.at == "begin":
        yield (
            "takes its lock",
            _go(
                world._replace(locks=world.locks | {number}),
                place,
                process._replace(at="claim"),
            ),
        )
    elif process.at == "claim":
        alive = not rules.lives_by_lock or lease.claim in world.locks
        free = lease.claim == 0 or (rules.take_over and not alive)
        if free or not rules.claims:
            claim = number if rules.claims else lease.claim
            others = [
                one
                for one in world.processes
                if one.kind == "manager" and one.at == "work" and one != process
            ]
            yield (
                "claims the lease, and begins",
                _go(
                    world._replace(
                        lease=lease._replace(claim=claim),
                        overlap=world.overlap or bool(others),
                    ),
                    place,
                    process._replace(at="work"),
                ),
            )
    elif process.at == "work":
        claim = 0 if lease.claim == number else lease.claim
        done = world._replace(lease=lease._replace(claim=claim))
        yield "ends its claim", _end(done, place)


def _releaser(
    world: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    record = world.lease._replace(state="fin_wait")
    looks = "look" if rules.record_first else "begin"
    records = "begin" if rules.record_first else "record"
    if process.at == looks:
        after = "started" if world.reaper_lock else "start"
        if rules.record_first:
            yield from _start(world, place, process, after == "start")
        else:
            yield (
                "looks for a reaper",
                _go(
                    world,
                    place,
                    process._replace(at="record", parent=after == "start"),
                ),
            )
    elif process.at == records:
        recorded = world._replace(lease=record)
        if rules.record_first:
            yield (
                "records the release",
                _go(recorded, place, process._replace(at="look")),
            )
        else:
            yield from _start(recorded, place, process, bool(process.parent))


def _start(
    world: ProtocolState, place: int, process: ModelProcess, needed: bool
) -> Iterator[Step]:
    """Start a reaper if none runs."""
    ended = _end(world, place)
    if not needed:
        yield "sees a reaper", ended
        return
    reaper = ModelProcess("reaper", "enter", world.reapers + 1)
    yield (
        "starts a reaper",
        ended._replace(processes=(*ended.processes, reaper), reapers=world.reapers + 1),
    )


def _late(
    world: ProtocolState, place: int, process: ModelProcess, _: Rules
) -> Iterator[Step]:
    """Another lease takes the place of the first, and is released."""
    if world.lease.state == "ended":
        again = world._replace(lease=ACTIVE)
        yield "acquires again", _go(again, place, RELEASER)


def _reaper(
    world: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    number, held = process.number, world.reaper_lock
    if process.at in ("enter", "wait"):
        if held == 0:
            entered = _go(world, place, process._replace(at="first", parent=0))
            yield "takes the reaper's lock", entered._replace(reaper_lock=number)
        elif process.at == "enter":
            yield "ends: another reaper runs", _end(world, place)
    elif process.at == "first":
        yield from _quit_or(world, place, process, rules, "fork")
    elif process.at == "fork":
        leads = _go(world, place, process._replace(at="lead"))
        if not rules.standby or world.reapers >= 4:
            yield "goes on alone", leads
            return
        shared = 0 if rules.own_lock_file else number
        standby = ModelProcess("reaper", "wait", world.reapers + 1, shared)
        yield (
            "forks a standby",
            leads._replace(
                processes=(*leads.processes, standby), reapers=world.reapers + 1
            ),
        )
    elif process.at == "lead":
        if world.lease.state == "fin_wait" and world.lease.claim == 0:
            if not rules.survives:
                yield "ends: a lease cannot be judged", _end_all(world, place)
                return
            ended = world._replace(lease=ModelLease("ended"))
            yield "ends the lease", _go(ended, place, process._replace(at="quit"))
        else:
            yield from _quit_or(world, place, process, rules, None)
    elif process.at == "quit":
        yield from _quit_or(world, place, process, rules, "lead")
    elif process.at == "free":
        yield "gives its lock up", _end_all(world, place)


def _quit_or(
    world: ProtocolState,
    place: int,
    process: ModelProcess,
    rules: Rules,
    otherwise: str | None,
) -> Iterator[Step]:
    """End if there is no work, in one transaction; else go on at `otherwise`."""
    if world.lease.state == "fin_wait":
        if otherwise is not None:
            yield "has work", _go(world, place, process._replace(at=otherwise))
    elif rules.quit_inside:
        yield "has no work, and gives its lock up", _end_all(world, place)
    else:
        yield "has no work", _go(world, place, process._replace(at="free"))


def _end_all(world: ProtocolState, place: int) -> ProtocolState:
    """The leader ends in order. Its standby gets the lock, and sees for itself."""
    number = world.processes[place].number
    after = _end(world, place)
    if after.reaper_lock == number:
        after = after._replace(reaper_lock=0)  # an unlock ends it for all sharers
    return after


def _client(
    world: ProtocolState, place: int, process: ModelProcess, rules: Rules
) -> Iterator[Step]:
    if process.at == "begin":
        acquired = world._replace(
            lease=ModelLease("active", client=True, bound=rules.one_request)
        )
        if rules.one_request:
            yield "acquires and binds", _go(acquired, place, process._replace(at="run"))
        else:
            yield "acquires", _go(acquired, place, process._replace(at="bind"))
    elif process.at == "bind":
        bound = world._replace(lease=world.lease._replace(bound=True))
        yield "binds", _go(bound, place, process._replace(at="run"))
    elif process.at == "run":
        yield "ends", _end(world, place)


Move = Callable[[ProtocolState, int, ModelProcess, Rules], Iterator[Step]]
MOVES: dict[str, Move] = {
    "manager": _manager,
    "releaser": _releaser,
    "late": _late,
    "reaper": _reaper,
    "client": _client,
}


def broken(world: ProtocolState, rules: Rules) -> str:
    """Return which promise does not hold in a world, or ""."""
    if world.overlap:
        return "I3: two living managers work on one lease"
    if any(True for _ in steps(world, rules, world.kills)):
        return ""
    # No process goes on by itself: what is left now stays.
    if world.lease.claim and world.processes:
        return "I5: a dead manager's claim keeps a living manager waiting"
    if world.lease.state == "fin_wait" and not world.alone and world.reapers:
        return "I5: a lease waits, and no process will end it"
    if world.lease.state == "active" and world.lease.client and not world.lease.bound:
        return "I5: a client has died, and its lease ends with no process"
    return ""


def explore(scenario: ProtocolScenario, rules: Rules = ALL) -> ProtocolResult:
    """Walk every interleaving, shortest first, up to the first broken promise."""
    came: dict[ProtocolState, tuple[ProtocolState, str] | None] = {scenario.start: None}
    queue = deque([scenario.start])
    while queue:
        world = queue.popleft()
        if wrong := broken(world, rules):
            return ProtocolResult(len(came), wrong, _way(came, world))
        for name, after in steps(world, rules, scenario.kills):
            if after not in came:
                came[after] = world, name
                queue.append(after)
    return ProtocolResult(len(came), "", ())


def _way(
    came: dict[ProtocolState, tuple[ProtocolState, str] | None], world: ProtocolState
) -> tuple[str, ...]:
    way: list[str] = []
    while (before := came[world]) is not None:
        world, name = before
        way.append(name)
    return tuple(reversed(way))
