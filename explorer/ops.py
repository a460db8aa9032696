# SPDX-License-Identifier: Apache-2.0
"""What actors do: the operations that scenarios are made of."""

from typing import Any, Unpack

from explorer.backends import PORTS
from explorer.calls import Call
from explorer.kernels import BRIDGE, LOWER
from explorer.script import (
    USUAL,
    Actor,
    Failed,
    Held,
    Op,
    Parts,
    Script,
    held_in,
)
from tapster.errors import TapsterError
from tapster.model import Changes, Macvtap, Spec, Tap
from tapster.operations.operations import Operations

FIN_WAIT = 5.0
ADMINISTRATOR = "administrator"
SCRIPT = "'s script"

# Tapster


TAP = Tap(bridge=BRIDGE, fin_wait=FIN_WAIT)
"""The usual request."""
AT_ONCE = TAP._replace(fin_wait=0)
GUARDED = TAP._replace(filter=True)
PORT = Tap(ovs="ovs0", fin_wait=FIN_WAIT)
MACVTAP = Macvtap(lower=LOWER, fin_wait=FIN_WAIT)


def acquire(*specs: Spec, bound: bool = False, parts: Parts = USUAL) -> Op:
    """Acquire devices, by default one TAP, and start a machine with them.

    If `bound`, the leases end with the machine's process.
    """

    def run(actor: Actor) -> Held | tuple[Held, ...] | Failed:
        wanted = [spec._replace(owner=actor.name) for spec in specs or (TAP,)]
        pid = actor.ask(Call("machine", "pid")) if bound else None
        try:
            acquired = actor.operations(parts).acquire(wanted, pid=pid)
            got = tuple(Held.of(opened.lease) for opened in acquired)
            return got if len(got) > 1 else got[0]
        except TapsterError as error:
            return Failed(type(error).__name__)

    return Op("acquire", run)


def _stop(actor: Actor) -> Any:
    actor.ask(Call("machine", "stop", (actor.name,)))
    return actor.memory


STOP = Op("stop", _stop)
"""The machine stops. Nobody has noticed yet."""


def release(*, parts: Parts = USUAL) -> Op:
    """Release what was acquired."""

    def do(operations: Operations, memory: Any) -> None:
        for held in held_in(memory):
            operations.release(held.lease)

    return _op("release", do, parts)


def change(owner: str, *, parts: Parts = USUAL, **changes: Unpack[Changes]) -> Op:
    """Change what somebody's device is connected to, if there is one."""

    def do(operations: Operations, _: Any) -> None:
        for lease in operations.look.leases():
            if lease.owner == owner:
                operations.rewire.set(lease.id, changes)

    return _op("change", do, parts)


def recover(*, after: int = 0, parts: Parts = USUAL) -> Op:
    """Recover; not before so many actors were killed."""
    return _op("recover", lambda operations, _: operations.recover(), parts, after)


def settle(*, parts: Parts = USUAL) -> Op:
    """Mend what the dead have left, as every command does first."""
    return _op("settle", lambda operations, _: operations.recover.settle(), parts)


def reap(*, parts: Parts = USUAL) -> Op:
    """Delete what has waited long enough."""
    return _op("reap", lambda operations, _: operations.reap(), parts)


def _op(name: str, do: Any, parts: Parts, after: int = 0) -> Op:
    def run(actor: Actor) -> Any:
        if after:
            actor.ask(Call("machine", "killed", (after,)))
        try:
            do(actor.operations(parts), actor.memory)
        except TapsterError as error:
            return Failed(type(error).__name__)
        return actor.memory

    return Op(name, run)


def manager(name: str, *specs: Spec, parts: Parts = USUAL) -> Script:
    """Whoever runs one machine: it acquires, the machine stops, it releases."""
    return Script(
        name, (acquire(*specs, parts=parts), STOP, release(parts=parts)), mortal=True
    )


def target(name: str, *, parts: Parts = USUAL) -> Script:
    """The target host of a migration: it acquires on standby, then takes over."""

    def prepare(actor: Actor) -> Any:
        spec = TAP._replace(owner=name, standby=True)
        try:
            (opened,) = actor.operations(parts).acquire([spec])
        except TapsterError as error:
            return Failed(type(error).__name__)
        return opened.lease.id

    def take(actor: Actor) -> Any:
        rewire = actor.operations(parts).rewire
        try:
            return Held.of(rewire.set(actor.memory, {"standby": False}))
        except TapsterError as error:
            return Failed(type(error).__name__)

    return Script(
        name,
        (Op("prepare", prepare), Op("acquire", take), STOP, release(parts=parts)),
        mortal=True,
    )


def late_remove(owner: str, *, by_owner: bool = True) -> Script:
    """A script of an owner's that removes its device by name once more, and late."""

    def run(actor: Actor) -> Any:
        name = actor.ask(Call("machine", "stopped", (owner,)))
        operations = actor.operations(USUAL)
        try:
            lease = operations.look.find(name, owner if by_owner else None)
            operations.release(lease.id)
        except TapsterError:
            return None  # there is nothing of the owner's any more
        return None

    return Script(f"{owner}{SCRIPT}", (Op("release", run),))


def starter(name: str, *specs: Spec, after: str) -> Script:
    """A manager that starts a machine once another's has stopped, and keeps it."""

    def wait(actor: Actor) -> None:
        actor.ask(Call("machine", "stopped", (after,)))

    return Script(name, (Op("wait for a stop", wait), acquire(*specs)))


def reclaimer(name: str) -> Script:
    """A manager that starts its machine again at once, with the same name."""
    again = TAP._replace(name="web", reclaim=True)
    life = (acquire(again), STOP, release())
    return Script(name, (*life, *life), mortal=True)


def setter(owner: str, *, parts: Parts = USUAL, **changes: Unpack[Changes]) -> Script:
    """Somebody who changes what another's device is connected to."""
    changes = changes or {"isolated": True}
    return Script("setter", (change(owner, parts=parts, **changes),), mortal=True)


def bound(name: str) -> Script:
    """A manager of a machine that stops by itself: see `machine`."""

    def notice(actor: Actor) -> Any:
        actor.ask(Call("machine", "stopped", (name,)))
        return actor.memory

    return Script(
        name, (acquire(bound=True), Op("notice", notice), release()), mortal=True
    )


def machine(owner: str) -> Script:
    """The machine of a `bound` manager; it outlives that, and stops some time."""

    def run(actor: Actor) -> Any:
        actor.ask(Call("machine", "stop", (owner,)))

    return outsider(f"{owner}'s machine", Op("run", run))


# Others


def outsider(name: str, *ops: Op) -> Script:
    return Script(name, ops, ours=False)


def outside(name: str, *calls: tuple[str, *tuple[Any, ...]]) -> Op:
    """Some calls one after the other; what fails is left."""

    def run(actor: Actor) -> Any:
        for verb, *args in calls:
            _try(actor, verb, *args)
        return actor.memory

    return Op(name, run)


def _try(actor: Actor, verb: str, *args: Any) -> Any:
    try:
        return actor.ask(Call("outside", verb, args))
    except TapsterError:
        return None


def foreign(name: str = "vnet0") -> Script:
    """A program that takes a name for a device of its own, then frees it."""

    def take(actor: Actor) -> Any:
        made = _try(actor, "take", name)
        return Failed("taken") if made is None else made

    def free(actor: Actor) -> Any:
        _try(actor, "free", actor.memory)

    return outsider("foreign", Op("take", take), Op("free", free))


def late_cleanup(owner: str, *verbs: str, by: str = "stranger") -> Script:
    """Somebody who cleans up by name after a machine has stopped, and is late."""

    def run(actor: Actor) -> Any:
        name = actor.ask(Call("machine", "stopped", (owner,)))
        for verb in verbs or ("nomaster", "down", "delete"):
            _try(actor, verb, name)

    return outsider(by, Op("late", run))


def switch() -> Script:
    """The switch's service goes away, and comes back."""

    def run(verb: str) -> Op:
        return Op(verb, lambda actor: actor.ask(Call("backend", verb)))

    return outsider("switch", run("stop"), run("start"))


def late_port_cleanup(owner: str) -> Script:
    """Somebody who deletes a stopped machine's port by name, and is late."""

    def run(actor: Actor) -> Any:
        name = actor.ask(Call("machine", "stopped", (owner,)))
        actor.ask(Call("backend", "del_port", (PORTS, name)))

    return outsider("stranger", Op("late", run))


def foreign_port(name: str = "vnet0") -> Script:
    """A program that makes a device of its own with this name, and a port for it."""

    def run(actor: Actor) -> Any:
        if _try(actor, "take", name) is not None:
            actor.ask(Call("backend", "add_port", (PORTS, name)))

    return outsider("foreign", Op("take", run))


def administrator(verb: str, *args: str) -> Script:
    """A person who does one thing to one device, by name."""
    return outsider(ADMINISTRATOR, outside("meddle", (verb, *args)))


def clock() -> Script:
    """FIN WAIT passes, once."""

    def run(actor: Actor) -> Any:
        actor.ask(Call("clock", "pass"))

    return outsider("time", Op("pass", run))


def _wait(actor: Actor) -> Any:
    actor.ask(Call("clock", "pass"))


AGAIN = "again"


def ending(parts: Parts = USUAL) -> Script:
    """What is done when nobody can go on: a last recover, then a last reap."""
    return Script(
        "end",
        (
            recover(parts=parts),
            recover(parts=parts)._replace(name=AGAIN),
            Op("wait", _wait),
            reap(parts=parts),
            reap(parts=parts)._replace(name=AGAIN),
        ),
    )
