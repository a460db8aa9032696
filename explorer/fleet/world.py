# SPDX-License-Identifier: Apache-2.0
"""Hosts of a fleet, their ledgers, a slow store, and every order of their steps."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

from tapster.errors import TapsterError
from tapster.fleet import keys, registration, steps
from tapster.fleet.keys import Keys
from tapster.fleet.registration import RELEASED, PushAction, Record, RecordState
from tapster.fleet.steps import Commit, Me, Outcome, Push, Read, Sending
from tapster.fleet.store import Committed

WHERE = Keys("")
SEGMENT = "default"
MAC = "0a:54:00:00:00:01"
ROUNDS = 8
"""How many pushes of every host may be needed until nothing changes."""

Items = tuple[tuple[str, str | None], ...]


class FleetEvent(NamedTuple):
    """One step of a script."""

    do: str
    host: str
    vm: str = ""
    lease: str = ""
    source: str = ""
    """The lease whose epoch is handed over; "" is none."""
    given_up: bool = False
    given: bool = False
    goes_on: bool = False
    """The VM starts also if the store gives no answer."""


class Operation(NamedTuple):
    """An operation under way, with the answers that it has had."""

    event: FleetEvent
    pushes: tuple[Push, ...]
    running: frozenset[str]
    answers: tuple[Any, ...] = ()


class Item(NamedTuple):
    """A record in a host's ledger."""

    record: Record
    dirty: bool = True


class HostState(NamedTuple):
    """One host: its ledger, its boot, and the operation that it carries out."""

    name: str
    items: tuple[Item, ...] = ()
    boot: int = 1
    dead: bool = False
    operation: Operation | None = None

    @property
    def me(self) -> Me:
        return Me(self.name, f"ledger-{self.name}", f"{self.name}{self.boot}")

    @property
    def running(self) -> frozenset[str]:
        return frozenset(
            item.record.lease
            for item in self.items
            if item.record.state not in RELEASED
        )


class LateCommit(NamedTuple):
    """A commit whose sender has given up."""

    expected: Items
    writes: Items


class RunningVM(NamedTuple):
    """A VM that runs."""

    vm: str
    host: str
    lease: str
    mac: str = MAC
    known: bool = True
    """The store has said that it may have the MAC."""


class FleetState(NamedTuple):
    """A state of the whole fleet."""

    store: frozenset[tuple[str, str]]
    hosts: tuple[HostState, ...]
    scripts: tuple[int, ...]
    runs: frozenset[RunningVM] = frozenset()
    late_commits: tuple[LateCommit, ...] = ()
    losses: int = 0

    def host(self, name: str) -> HostState:
        return next(host for host in self.hosts if host.name == name)

    def with_host(self, changed: HostState) -> "FleetState":
        return self._replace(
            hosts=tuple(changed if h.name == changed.name else h for h in self.hosts)
        )


class FleetScenario(NamedTuple):
    """The scripts whose steps are interleaved, and the losses that may happen."""

    name: str
    hosts: tuple[str, ...]
    scripts: tuple[tuple[FleetEvent, ...], ...]
    losses: int = 1
    """How many answers may be lost, or processes die, in one schedule of the small
    bound."""
    blocks: Mapping[str, str] = {}
    """The host that has each block of MACs."""


class FleetResult(NamedTuple):
    """What a search has found."""

    scenario: str
    states: int
    broken: str = ""
    steps: tuple[str, ...] = ()


class Violation(Exception):
    """Raised for a state that breaks a promise."""


def explore(scenario: FleetScenario, *, more: int = 0) -> FleetResult:
    """Search breadth first. Stop at the first violation: no schedule to one is shorter.

    `more` is how many losses are added to those of the scenario.
    """
    losses = scenario.losses + more
    _next.cache_clear()  # the rules may be others than before
    start = _start(scenario)
    came: dict[FleetState, tuple[FleetState, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        label = "at rest"
        try:
            _check_rest(world)
            for label, following in _successors(scenario, world, losses):
                new = following()
                if new not in came:
                    came[new] = (world, label)
                    queue.append(new)
        except Violation as violation:
            steps = (*_way(came, world), label)
            return FleetResult(scenario.name, len(came), str(violation), steps)
    return FleetResult(scenario.name, len(came))


def _way(
    came: Mapping[FleetState, tuple[FleetState, str] | None], world: FleetState
) -> tuple[str, ...]:
    labels = []
    while before := came[world]:
        world, label = before
        labels.append(label)
    return tuple(reversed(labels))


def _start(scenario: FleetScenario) -> FleetState:
    hosts = tuple(HostState(name) for name in scenario.hosts)
    store = {
        WHERE.permit(host.name): keys.encode(keys.Permit(host.me.ledger, 1))
        for host in hosts
    }
    for block, owner in scenario.blocks.items():
        value = keys.Block(owner, f"ledger-{owner}", 0.0)
        store[WHERE.block(block)] = keys.encode(value)
    return FleetState(frozenset(store.items()), hosts, (0,) * len(scenario.scripts))


def _successors(
    scenario: FleetScenario, world: FleetState, losses: int
) -> Iterator[tuple[str, Callable[[], FleetState]]]:
    for index, script in enumerate(scenario.scripts):
        if world.scripts[index] < len(script):
            event = script[world.scripts[index]]
            if _enabled(world, event):
                scripts = list(world.scripts)
                scripts[index] += 1
                after = world._replace(scripts=tuple(scripts))
                yield _label(event), partial(_begin, after, event)
    for host in world.hosts:
        if host.operation is not None:
            yield from _steps_of(world, host, losses)
        elif not host.dead and any(_pushable(item) for item in host.items):
            yield f"{host.name} pushes", partial(_begin_push, world, host)
    for late in world.late_commits:
        yield (
            f"a late commit arrives: {_writes(late.writes)}",
            partial(_deliver, world, late),
        )


def _label(event: FleetEvent) -> str:
    return " ".join(part for part in (event.host, event.do, event.vm) if part)


def _writes(writes: Items) -> str:
    return ", ".join(f"{key} = {value}" for key, value in writes)


def _pushable(item: Item) -> bool:
    return item.dirty and item.record.state not in (
        RecordState.RESERVED,
        RecordState.STANDBY,
    )


# Scripts


def _enabled(world: FleetState, event: FleetEvent) -> bool:
    host = world.host(event.host)
    item = _item(host, event.lease)
    match event.do:
        case "start" | "restart":
            return host.operation is None and not host.dead
        case "standby":
            return not host.dead and _runs(world, event.vm)
        case "take":
            return item is not None and _runs(world, event.vm) and not host.dead
        case "release":
            return item is not None and host.operation is None and not host.dead
        case "sweep" | "join":
            return host.operation is None and not host.dead
        case "forget":
            found = _registration(world)
            return found is not None and found.state in RELEASED
        case "free MACs":
            found = _registration(world)
            return found is not None and found.host == event.host
        case "die":
            return not host.dead
        case "back":
            return host.dead
        case "fence" | "evict":
            return True
    raise AssertionError(event.do)


def _runs(world: FleetState, vm: str) -> bool:
    return any(run.vm == vm for run in world.runs)


def _item(host: HostState, lease: str) -> Item | None:
    return next((item for item in host.items if item.record.lease == lease), None)


def _begin(world: FleetState, event: FleetEvent) -> FleetState:
    host = world.host(event.host)
    match event.do:
        case "start" | "restart":
            return world.with_host(_starting(host, event))
        case "standby":
            return world.with_host(_on_standby(world, host, event))
        case "take":
            runs = {run for run in world.runs if run.vm != event.vm}
            runs.add(RunningVM(event.vm, event.host, event.lease))
            world = world._replace(runs=frozenset(runs))
            return world.with_host(_changed(host, event.lease, RecordState.ACTIVE))
        case "release":
            runs = {run for run in world.runs if run.lease != event.lease}
            return world._replace(runs=frozenset(runs)).with_host(
                _released(host, event.lease)
            )
        case "die":
            runs = {run for run in world.runs if run.host != event.host}
            gone = host._replace(dead=True, operation=None)
            return _gives_up(world._replace(runs=frozenset(runs)), host, gone)
        case "back":
            host = host._replace(dead=False, boot=host.boot + 1)
            for item in host.items:
                host = _released(host, item.record.lease)
            return world.with_host(host)
        case "sweep" | "join":
            operation = Operation(event, (), frozenset())
            return world.with_host(host._replace(operation=operation))
        case "fence":
            return _with_permit(world, host, fenced=host.me.boot)
        case "evict":
            return _with_permit(world, host, ledger="", fenced="")
        case "forget":
            return _put(world, WHERE.registration(SEGMENT, MAC), None)
        case "free MACs":
            return _freed(world)
    raise AssertionError(event.do)


def _starting(host: HostState, event: FleetEvent) -> HostState:
    """Return a host that has reserved a lease, and asks for its MAC."""
    record = Record(
        event.lease, SEGMENT, MAC, _vm(event), None, RecordState.RESERVED, 0.0
    )
    push = Push(
        record._replace(state=RecordState.ACTIVE),
        given_up=event.given_up,
        given=event.given,
    )
    host = host._replace(items=(*host.items, Item(record)))
    return host._replace(operation=Operation(event, (push,), host.running))


def _on_standby(world: FleetState, host: HostState, event: FleetEvent) -> HostState:
    """Return a host with a device that waits for a VM of another host."""
    epoch = None
    for other in world.hosts:
        source = _item(other, event.source)
        if source and source.record.epoch:
            epoch = registration.handed_over(source.record.epoch)
    record = Record(
        event.lease, SEGMENT, MAC, _vm(event), epoch, RecordState.STANDBY, 0.0
    )
    return host._replace(items=(*host.items, Item(record)))


def _with_permit(world: FleetState, host: HostState, **change: Any) -> FleetState:
    key = WHERE.permit(host.name)
    permit = keys.permit_of(key, dict(world.store)[key])
    assert permit is not None
    permit = permit._replace(number=permit.number + 1, **change)
    return _put(world, key, keys.encode(permit))


def _freed(world: FleetState) -> FleetState:
    """Do what `Overview.evict` does after it has withdrawn the permit."""
    found = _registration(world)
    assert found is not None
    kept = found.vm != registration.own_vm(found.lease)
    parked = keys.encode(found._replace(state=RecordState.PARKED))
    return _put(world, WHERE.registration(SEGMENT, MAC), parked if kept else None)


def _registration(world: FleetState) -> registration.Registration | None:
    key = WHERE.registration(SEGMENT, MAC)
    return keys.registration_of(key, dict(world.store).get(key))


def _put(world: FleetState, key: str, value: str | None) -> FleetState:
    return world._replace(store=_written(world.store, ((key, value),)))


def _vm(event: FleetEvent) -> str:
    return event.vm if event.vm.isupper() else registration.own_vm(event.lease)


def _changed(host: HostState, lease: str, state: RecordState) -> HostState:
    return host._replace(
        items=tuple(
            Item(item.record._replace(state=state))
            if item.record.lease == lease
            else item
            for item in host.items
        )
    )


def _released(host: HostState, lease: str) -> HostState:
    item = _item(host, lease)
    if item is None or item.record.state in RELEASED:
        return host
    if item.record.state is RecordState.STANDBY:  # it was never pushed
        kept = tuple(other for other in host.items if other is not item)
        return host._replace(items=kept)
    state = registration.released_state(item.record.vm, lease)
    return _changed(host, lease, state)


def _begin_push(world: FleetState, host: HostState) -> FleetState:
    pushes = tuple(Push(item.record) for item in host.items if _pushable(item))
    operation = Operation(FleetEvent("push", host.name), pushes, host.running)
    return world.with_host(host._replace(operation=operation))


# Steps


class Answer(NamedTuple):
    """`Committed`, as a value that can be compared."""

    done: bool
    found: tuple[tuple[str, str], ...]


class Done(NamedTuple):
    """The end of an operation."""

    outcomes: tuple[Outcome, ...]


def _generator(me: Me, operation: Operation) -> steps.Steps[list[Outcome]]:
    if operation.event.do == "push":
        yield from steps.enter(WHERE, me)
        outcomes = yield from steps.push_all(
            WHERE, me, operation.pushes, operation.running
        )
        return outcomes
    if operation.event.do == "join":
        yield from steps.enter(WHERE, me, joins=True)
        return []
    if operation.event.do == "sweep":
        yield from steps.sweep(WHERE, me, SEGMENT, MAC)
        return []
    (one,) = operation.pushes
    permit = keys.encode(keys.Permit(me.ledger, 1))  # the first one, or an old one
    outcome = yield from steps.push(
        WHERE, me, one, operation.running, {WHERE.permit(me.host): permit}
    )
    return [outcome]


@lru_cache(1 << 17)
def _next(me: Me, operation: Operation) -> steps.Ask | Done | None:
    """Return what an operation asks for next, its end, or None if it has failed."""
    generator = _generator(me, operation)
    try:
        ask = next(generator)
        for answer in operation.answers:
            ask = generator.send(_unfrozen(answer))
    except StopIteration as end:
        return Done(tuple(end.value))
    except TapsterError:
        return None
    return ask


def _unfrozen(answer: Any) -> Any:
    if isinstance(answer, Answer):
        return Committed(answer.done, dict(answer.found))
    return None if answer is None else dict(answer)


def _steps_of(
    world: FleetState, host: HostState, losses: int
) -> Iterator[tuple[str, Callable[[], FleetState]]]:
    operation = host.operation
    assert operation is not None
    ask = _next(host.me, operation)
    assert isinstance(ask, Read | Commit | Sending), "it would have ended"
    label = f"{host.name} ({operation.event.do} {operation.event.vm})"
    yield f"{label}: {ask}", partial(_answer, world, host, operation, ask)
    if world.losses < losses and not isinstance(ask, Sending):
        lost = world._replace(losses=world.losses + 1)
        if isinstance(ask, Commit):
            late = lost._replace(late_commits=(*world.late_commits, _late_commit(ask)))
            yield f"{label} gives up: {ask}", partial(_end, late, host, operation, None)
        yield f"{label} dies before {ask}", partial(_end, lost, host, operation, None)


def _late_commit(ask: Commit) -> LateCommit:
    return LateCommit(tuple(ask.expected.items()), tuple(ask.writes.items()))


def _gives_up(world: FleetState, host: HostState, after: HostState) -> FleetState:
    """Keep the commit that a dying host has sent: it may still arrive."""
    if host.operation is not None:
        ask = _next(host.me, host.operation)
        if isinstance(ask, Commit):
            world = world._replace(
                late_commits=(*world.late_commits, _late_commit(ask))
            )
    return world.with_host(after)


def _answer(
    world: FleetState, host: HostState, operation: Operation, ask: steps.Ask
) -> FleetState:
    answer: Any = None
    if isinstance(ask, Read):
        store = dict(world.store)
        answer = tuple((key, store[key]) for key in ask.keys if key in store)
    elif isinstance(ask, Sending):
        host = host._replace(
            items=tuple(
                item._replace(record=item.record._replace(sent=True))
                if item.record.lease in ask.leases
                else item
                for item in host.items
            )
        )
    else:
        store = dict(world.store)
        applied = _matches(world.store, tuple(ask.expected.items()))
        found = ((key, store[key]) for key in ask.expected if key in store)
        answer = Answer(applied, () if applied else tuple(found))
        if applied:
            store_after = _written(world.store, tuple(ask.writes.items()))
            world = world._replace(store=store_after)
    operation = operation._replace(answers=(*operation.answers, answer))
    world = world.with_host(host._replace(operation=operation))
    following = _next(host.me, operation)
    if following is None or isinstance(following, Done):
        done = following and following.outcomes
        return _end(world, world.host(host.name), operation, done)
    return world


def _deliver(world: FleetState, late: LateCommit) -> FleetState:
    late_commits = list(world.late_commits)
    late_commits.remove(late)
    world = world._replace(late_commits=tuple(late_commits))
    if _matches(world.store, late.expected):
        return world._replace(store=_written(world.store, late.writes))
    return world


def _matches(store: frozenset[tuple[str, str]], expected: Items) -> bool:
    values = dict(store)
    return all(values.get(key) == value for key, value in expected)


def _written(
    store: frozenset[tuple[str, str]], writes: Items
) -> frozenset[tuple[str, str]]:
    values = dict(store)
    for key, value in writes:
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
    return frozenset(values.items())


def _end(
    world: FleetState,
    host: HostState,
    operation: Operation,
    outcomes: tuple[Outcome, ...] | None,
) -> FleetState:
    host = host._replace(operation=None)
    event = operation.event
    if event.do in ("push", "sweep", "join"):
        for outcome in outcomes or ():
            host = _record_outcome(host, operation, outcome)
        return world.with_host(host)
    if outcomes is not None and outcomes[0].action is not PushAction.REPORT:
        (outcome,) = outcomes
        item = _item(host, event.lease)
        assert item is not None
        _check_granted(world, event)
        record = item.record._replace(state=RecordState.ACTIVE, epoch=outcome.epoch)
        host = host._replace(
            items=tuple(Item(record) if o is item else o for o in host.items)
        )
    elif outcomes is None and event.goes_on:
        host = _changed(host, event.lease, RecordState.ACTIVE)
    else:
        return world.with_host(_released(host, event.lease))
    known = outcomes is not None
    runs = world.runs | {RunningVM(event.vm, event.host, event.lease, known=known)}
    return world._replace(runs=runs).with_host(host)


def _record_outcome(
    host: HostState, operation: Operation, outcome: Outcome
) -> HostState:
    item = _item(host, outcome.lease)
    pushed = next(o.record for o in operation.pushes if o.record.lease == outcome.lease)
    if item is None:
        return host
    unchanged = item.record.state is pushed.state
    kept = [other for other in host.items if other is not item]
    if unchanged and item.record.state in RELEASED:
        return host._replace(items=tuple(kept))
    dirty = not unchanged or outcome.action is PushAction.REPORT
    record = item.record._replace(epoch=item.record.epoch or outcome.epoch)
    items = [Item(record, dirty) if other is item else other for other in host.items]
    return host._replace(items=tuple(items))


# What must hold


def _check_granted(world: FleetState, event: FleetEvent) -> None:
    for run in world.runs:
        if run.vm != event.vm:
            raise Violation(f"{event.vm} is given the MAC while {run.vm} runs")
        fenced = _is_fenced(world, run.host)
        if run.known and not fenced and not event.given_up:
            raise Violation(f"{run.vm} is started while it runs on {run.host}")


def _check_rest(world: FleetState) -> None:
    if world.late_commits or any(host.operation for host in world.hosts):
        return
    world = _all_dirty(world)
    for _ in range(ROUNDS):
        before = world
        for host in world.hosts:
            if not host.dead and any(_pushable(item) for item in host.items):
                world = _begin_push(world, world.host(host.name))
                world = _finish(world, host.name)
        if world == before:
            break
    else:
        raise Violation("pushes never come to an end")
    _check_store(world)


def _all_dirty(world: FleetState) -> FleetState:
    """Return the state in which every host looks at all its records, as it does from
    time to time."""
    return world._replace(
        hosts=tuple(
            host._replace(items=tuple(Item(item.record) for item in host.items))
            for host in world.hosts
        )
    )


def _check_store(world: FleetState) -> None:
    key = WHERE.registration(SEGMENT, MAC)
    found = keys.registration_of(key, dict(world.store).get(key))
    holder = None
    if found is not None and found.state is RecordState.ACTIVE:
        holder = (found.host, found.lease)
    reported = any(item.dirty for host in world.hosts for item in host.items)
    if len(world.runs) > 1:
        if not reported:
            raise Violation(f"two run, and no host reports it: {sorted(world.runs)}")
        return
    if any((run.host, run.lease) == holder for run in world.runs):
        return
    if world.runs and holder is None:
        raise Violation(f"at rest {sorted(world.runs)}, and the store says {found}")
    if holder is None or _is_unreleased(world, *holder):
        if world.runs and not reported:
            raise Violation(f"at rest {sorted(world.runs)}, and the store says {found}")
        return
    raise Violation(f"at rest {sorted(world.runs)}, and the store says {found}")


def _is_unreleased(world: FleetState, name: str, lease: str) -> bool:
    """Return whether only the host itself can release a registration, and has not."""
    host = world.host(name)
    return host.dead or _is_fenced(world, name) or lease in host.running


def _is_fenced(world: FleetState, name: str) -> bool:
    permit = keys.permit_of(WHERE.permit(name), dict(world.store)[WHERE.permit(name)])
    assert permit is not None
    return not permit.ledger or permit.fenced == world.host(name).me.boot


def _finish(world: FleetState, name: str) -> FleetState:
    while (host := world.host(name)).operation is not None:
        ask = _next(host.me, host.operation)
        assert isinstance(ask, Read | Commit | Sending), "it would have ended"
        world = _answer(world, host, host.operation, ask)
    return world
