# SPDX-License-Identifier: Apache-2.0
"""The operations of the actors. Scenarios are made of these."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Unpack

from explorer.backends import PORTS
from explorer.calls import Call
from explorer.kernel_states import ADMINISTRATOR, BRIDGE, LOWER, USER
from explorer.script import (
    USUAL,
    Acquired,
    Actor,
    Failed,
    Op,
    Parts,
    Reopened,
    Script,
    acquired_in,
)
from tapster.errors import NameTaken, TapsterError
from tapster.model import Changes, Macvtap, Spec, Tap
from tapster.operations.operations import Operations

FIN_WAIT = 5.0

# Tapster


TAP = Tap(bridge=BRIDGE, fin_wait=FIN_WAIT)
"""The usual request."""
USERS = TAP._replace(uid=USER)
"""A tap that its user may open by name."""
AT_ONCE = TAP._replace(fin_wait=0)
GUARDED = TAP._replace(filter=True)
PORT = Tap(ovs="ovs0", fin_wait=FIN_WAIT)
MACVTAP = Macvtap(lower=LOWER, fin_wait=FIN_WAIT)


def acquire(*specs: Spec, pid: str = "", parts: Parts = USUAL) -> Op:
    """Acquire devices, by default one TAP, and start a VM with them.

    The leases end with the VM's process if `pid` is "pid", and with the actor's own
    process if it is "own_pid".
    """

    def run(actor: Actor) -> Acquired | tuple[Acquired, ...] | Failed:
        wanted = [spec._replace(owner=actor.name) for spec in specs or (TAP,)]
        process = actor.ask(Call("vm", pid)) if pid else None
        try:
            pids = [process] * len(wanted)
            acquired = actor.operations(parts).acquire(wanted, pids=pids)
        except TapsterError as error:
            return Failed(type(error).__name__)
        got = tuple(Acquired.of(opened.lease) for opened in acquired)
        return got if len(got) > 1 else got[0]

    return Op("acquire", run)


def _stop(actor: Actor) -> Any:
    actor.ask(Call("vm", "stop", (actor.name,)))
    return actor.memory


STOP = Op("stop", _stop)
"""The VM stops. No other actor has noticed yet."""


def release(*, parts: Parts = USUAL) -> Op:
    """Release what was acquired."""

    def do(operations: Operations, memory: Any) -> None:
        for device in acquired_in(memory):
            operations.release(device.lease)

    return _op("release", do, parts)


def reopen(*, parts: Parts = USUAL) -> Op:
    """Open the device of the lease again, for a VMM that replaces itself."""

    def run(actor: Actor) -> Reopened | Failed:
        (device,) = acquired_in(actor.memory)
        operations = actor.operations(parts)
        try:
            operations.reopen(device.lease)
        except TapsterError as error:
            return Failed(type(error).__name__)
        namespace: Any = operations.context.namespace
        return Reopened(device.ifindex, namespace.opened)

    return Op("reopen", run)


def change(owner: str, *, parts: Parts = USUAL, **changes: Unpack[Changes]) -> Op:
    """Change what the device of an owner is connected to, if there is one."""

    def do(operations: Operations, _: Any) -> None:
        for lease in operations.look.leases():
            if lease.owner == owner:
                operations.rewire.set(lease.id, changes)

    return _op("change", do, parts)


def recover(*, after: int = 0, parts: Parts = USUAL) -> Op:
    """Recover, but not before so many actors were killed."""
    return _op("recover", lambda operations, _: operations.recover(), parts, after)


def settle(*, parts: Parts = USUAL) -> Op:
    """Repair what dead processes have left, as every command does first."""
    return _op("settle", lambda operations, _: operations.recover.settle(), parts)


def reap(*, parts: Parts = USUAL) -> Op:
    """Delete the devices whose FIN WAIT is over."""
    return _op("reap", lambda operations, _: operations.reap(), parts)


def _op(
    name: str,
    do: Callable[[Operations, Any], object],
    parts: Parts = USUAL,
    after: int = 0,
) -> Op:
    def run(actor: Actor) -> Any:
        if after:
            actor.ask(Call("vm", "killed", (after,)))
        try:
            do(actor.operations(parts), actor.memory)
        except TapsterError as error:
            return Failed(type(error).__name__)
        return actor.memory

    return Op(name, run)


def manager(name: str, *specs: Spec, parts: Parts = USUAL) -> Script:
    """A manager of one VM: it acquires, the VM stops, it releases."""
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
            return Acquired.of(rewire.set(actor.memory, {"standby": False}))
        except TapsterError as error:
            return Failed(type(error).__name__)

    return Script(
        name,
        (Op("prepare", prepare), Op("acquire", take), STOP, release(parts=parts)),
        mortal=True,
    )


def late_remove(owner: str, *, by_owner: bool = True) -> Script:
    """An owner's script that removes the owner's device by name, a second time."""

    def run(actor: Actor) -> Any:
        name = actor.ask(Call("vm", "stopped", (owner,)))
        operations = actor.operations(USUAL)
        with suppress(TapsterError):  # the owner may have no lease any more
            lease = operations.look.find(name, owner if by_owner else None)
            operations.release(lease.id)

    return Script(f"{owner}'s script", (Op("release", run),), owners=(owner,))


def starter(name: str, *specs: Spec, after: str) -> Script:
    """A manager that starts a VM after another's has stopped, and keeps it running."""

    def wait(actor: Actor) -> None:
        actor.ask(Call("vm", "stopped", (after,)))

    return Script(name, (Op("wait for a stop", wait), acquire(*specs)))


def reclaimer(name: str, *, parts: Parts = USUAL) -> Script:
    """A manager that starts its VM again at once, with the same name."""
    again = TAP._replace(name="web", reclaim=True)
    life = (acquire(again, parts=parts), STOP, release(parts=parts))
    return Script(name, (*life, *life), mortal=True)


def waiter(name: str) -> Script:
    """A manager that waits until the name is free: see `AnyHost.acquire_waiting`.

    It tries three times.
    """

    def run(actor: Actor) -> Any:
        spec = TAP._replace(name="web", owner=name)
        operations = actor.operations(USUAL)
        for _ in range(3):
            try:
                (opened,) = operations.acquire([spec])
            except NameTaken as error:
                if error.until is None:
                    return Failed("NameTaken")
                actor.ask(Call("clock", "until", (error.until,)))
                with suppress(TapsterError):
                    operations.reap()
            except TapsterError as error:
                return Failed(type(error).__name__)
            else:
                return Acquired.of(opened.lease)
        return Failed("NameTaken")

    return Script(name, (Op("acquire", run), STOP, release()), mortal=True)


def reopener(name: str, *specs: Spec, parts: Parts = USUAL) -> Script:
    """A manager whose VMM replaces itself, and so needs its device opened again."""
    return Script(name, (acquire(*specs), reopen(parts=parts)))


def setter(owner: str, *, parts: Parts = USUAL, **changes: Unpack[Changes]) -> Script:
    """A user who changes what another's device is connected to."""
    changes = changes or {"isolated": True}
    return Script("setter", (change(owner, parts=parts, **changes),), mortal=True)


def bound(name: str) -> Script:
    """A manager whose VM stops by itself: see `vm`."""

    def notice(actor: Actor) -> Any:
        actor.ask(Call("vm", "stopped", (name,)))
        return actor.memory

    return Script(
        name, (acquire(pid="pid"), Op("notice", notice), release()), mortal=True
    )


def vm(owner: str) -> Script:
    """The VM of a `bound` manager. It outlives the manager, and stops at some time."""

    def run(actor: Actor) -> Any:
        actor.ask(Call("vm", "stop", (owner,)))

    return outsider(f"{owner}'s VM", Op("run", run))


def runner(name: str) -> Script:
    """`tapster run` with a VM that goes to the background. The run ends at once."""
    keeps = USUAL._replace(namespace=keeping_open(USUAL.namespace))
    return Script(name, (acquire(pid="own_pid", parts=keeps),), mortal=True)


def keeping_open(namespace: type[Any]) -> type[Any]:
    """Return a stand-in whose taps stay open: the VM has their descriptors."""

    class Keeping(namespace):  # type: ignore[misc]
        def create_tap(self, *args: object, **named: object) -> tuple[int, ...]:
            self._put("create_tap", args, {**named, "keeps_open": True})
            return ()

    return Keeping


def background_vm(owner: str) -> Script:
    """The VM of a `runner`: it stops, then the kernel closes its tap."""

    def run(actor: Actor) -> Any:
        ifindex = actor.ask(Call("vm", "started", (owner,)))
        actor.ask(Call("vm", "stop", (owner,)))
        return ifindex

    def close(actor: Actor) -> Any:
        actor.ask(Call("outside", "let_go", (actor.memory,)))

    return outsider(f"{owner}'s VM", Op("run", run), Op("close", close))


def handler(
    name: str, handle: Callable[[Operations], object], *, refused: bool = True
) -> Script:
    """A recover during which a signal may come, whose handler uses the same Host.

    Unless `refused`, the handler gets past the check that refuses it.
    """

    def run(actor: Actor) -> Any:
        operations = actor.operations(USUAL)
        enter = operations.context.run if refused else _call

        def on_signal() -> None:
            with suppress(TapsterError):
                enter(lambda: handle(operations))

        actor.on_signal = on_signal
        try:
            enter(operations.recover)
        except TapsterError as error:
            return Failed(type(error).__name__)
        return None

    return Script(name, (Op("recover", run),))


def _call(work: Callable[[], Any]) -> Any:
    return work()


# Others


def outsider(name: str, *ops: Op) -> Script:
    """An actor that is not Tapster."""
    return Script(name, ops, ours=False)


def outside(name: str, *calls: tuple[str, *tuple[Any, ...]]) -> Op:
    """Some calls of another program, one after the other; failures are ignored."""

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
    """A program that cleans up by name after a VM has stopped, and is late."""

    def run(actor: Actor) -> Any:
        name = actor.ask(Call("vm", "stopped", (owner,)))
        for verb in verbs or ("nomaster", "down", "delete"):
            _try(actor, verb, name)

    return outsider(by, Op("late", run))


def late_open(owner: str) -> Script:
    """A program that opens the tap of a VM that has stopped, by name, and closes it."""

    def take(actor: Actor) -> Any:
        name = actor.ask(Call("vm", "stopped", (owner,)))
        return _try(actor, "hold_by_name", name) or Failed("refused")

    def close(actor: Actor) -> Any:
        _try(actor, "let_go", actor.memory)

    return outsider("program", Op("open", take), Op("close", close))


def user(owner: str) -> Script:
    """A program of the user of a stopped VM's tap, which opens it by name if it may."""

    def take(actor: Actor) -> Any:
        name = actor.ask(Call("vm", "stopped", (owner,)))
        return _try(actor, "hold_as_user", name, USER) or Failed("refused")

    def close(actor: Actor) -> Any:
        _try(actor, "let_go", actor.memory)

    return outsider("user", Op("open", take), Op("close", close))


def hidden() -> Script:
    """/proc and the other namespaces are hidden for a time, as by a container."""

    def run(verb: str) -> Op:
        return Op(verb, lambda actor: actor.ask(Call("host", verb)))

    return outsider("container", run("hide"), run("show"))


def signal(to: str) -> Script:
    """A signal that comes to an actor at some time: see `handler`."""

    def run(actor: Actor) -> Any:
        actor.ask(Call("host", "signal", (to,)))

    return outsider("signal", Op("send", run))


def switch() -> Script:
    """The switch's service stops, and restarts."""

    def run(verb: str) -> Op:
        return Op(verb, lambda actor: actor.ask(Call("backend", verb)))

    return outsider("switch", run("stop"), run("start"))


def late_port_cleanup(owner: str) -> Script:
    """A program that deletes a stopped VM's port by name, and is late."""

    def run(actor: Actor) -> Any:
        name = actor.ask(Call("vm", "stopped", (owner,)))
        actor.ask(Call("backend", "del_port", (PORTS, name)))

    return outsider("stranger", Op("late", run))


def foreign_port() -> Script:
    """A program that makes a device vnet0, and a port for it."""

    def run(actor: Actor) -> Any:
        if _try(actor, "take", "vnet0") is not None:
            actor.ask(Call("backend", "add_port", (PORTS, "vnet0")))

    return outsider("foreign", Op("take", run))


def overrun() -> Script:
    """Programs that change so many devices that reports of the kernel are lost."""
    return outsider("programs", outside("change", ("overrun",)))


def administrator(verb: str, *args: str) -> Script:
    """A person who does one thing to one device, by name."""
    return outsider(ADMINISTRATOR, outside("change", (verb, *args)))


def mover(owner: str) -> Script:
    """A person who moves the device of a running VM to another namespace."""

    def run(actor: Actor) -> Any:
        actor.ask(Call("vm", "started", (owner,)))
        _try(actor, "move", "vnet0")

    return outsider(ADMINISTRATOR, Op("change", run))


def clock() -> Script:
    """FIN WAIT passes, once."""

    def run(actor: Actor) -> Any:
        actor.ask(Call("clock", "pass"))

    return outsider("time", Op("pass", run))


def _wait(actor: Actor) -> Any:
    actor.ask(Call("clock", "pass"))


AGAIN = "again"


def ending(parts: Parts = USUAL) -> Script:
    """What is done when no actor can continue: a last recover, then a last reap."""
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
