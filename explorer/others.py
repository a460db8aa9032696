# SPDX-License-Identifier: Apache-2.0
"""Ways to name devices that are known to be broken, as small models.

Each is what some program does, or Tapster with one of its protections taken
away. The explorer has to find what is wrong with every one of them; it would
be no judge of Tapster if it did not.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from explorer.backends import RemoteBackend
from explorer.calls import Call, RemoteKernel, RemoteLedger, RemoteSystem
from explorer.invariants import HARM, STEP, a_running_port_is_protected
from explorer.kernels import BRIDGE
from explorer.ops import (
    AT_ONCE,
    PORT,
    STOP,
    TAP,
    acquire,
    administrator,
    bound,
    ending,
    foreign,
    foreign_port,
    late_cleanup,
    late_remove,
    machine,
    manager,
    outsider,
    recover,
    release,
    setter,
    settle,
    starter,
    switch,
    target,
)
from explorer.script import (
    USUAL,
    WITH_BACKENDS,
    Actor,
    Failed,
    Held,
    Op,
    Parts,
    Script,
)
from explorer.search import Scenario
from tapster.errors import NameTaken, TapsterError
from tapster.kernel.port import Namespace
from tapster.model import Lease, Life, Process
from tapster.operations.acquire import Acquire, Plan
from tapster.operations.devices import Devices, Opened
from tapster.operations.rewire import Rewire

# Programs that name devices in other ways. The machine's process holds the
# device open: when it stops, the kernel deletes the device at once. Its manager
# learns of that later, and then cleans up by name.


def _outside(actor: Actor, verb: str, *args: Any) -> Any:
    return actor.ask(Call("outside", verb, args))


def _daemon(actor: Actor, verb: str, *args: Any) -> Any:
    return actor.ask(Call("daemon", verb, args))


def _by_kernel(actor: Actor) -> Any:
    """The kernel chooses the name."""
    return _outside(actor, "open", "vnet%d")


def _by_bitmap(actor: Actor) -> Any:
    """The lowest number that this daemon has not given out."""
    return _outside(actor, "open", f"vnet{_daemon(actor, 'lowest')}")


def _by_counter(actor: Actor) -> Any:
    """The next number whose name is not in use: asked first, made then."""
    while True:
        name = f"vnet{_daemon(actor, 'next')}"
        if not _outside(actor, "exists", name):
            return _outside(actor, "open", name)


def _by_force(actor: Actor) -> Any:
    """One name for each machine; whatever has it is deleted first."""
    name = "vnet0" if actor.name == "A" else "vnet1"
    if _outside(actor, "exists", name):
        _outside(actor, "delete", name)
    return _outside(actor, "open", name)


def program(name: str, make: Callable[[Actor], Any]) -> Script:
    """A manager's part for one machine: make, wire, and later clean up by name."""

    def start(actor: Actor) -> Held | Failed:
        try:
            handle, ifindex, device = make(actor)
            _outside(actor, "connect", device)
        except TapsterError as error:
            return Failed(str(error))
        return Held(str(handle), device, ifindex, BRIDGE)

    def stop(actor: Actor) -> Any:
        actor.ask(Call("machine", "stop", (actor.name,)))
        _try_outside(actor, "close", int(actor.memory.lease))
        return actor.memory

    def clean(actor: Actor) -> None:
        _daemon(actor, "give_back", actor.memory.name)
        _try_outside(actor, "nomaster", actor.memory.name)

    return Script(name, (Op("acquire", start), Op("stop", stop), Op("clean", clean)))


def restart() -> Script:
    """The daemon is started anew: what it had in memory is lost."""
    return outsider("restart", Op("restart", lambda actor: _daemon(actor, "restart")))


# Tapster, each time with one protection taken away


class Inclusive(RemoteKernel):
    """Taps are made without the flag that refuses to attach to another's."""

    def create_tap(self, *args: object, **_: object) -> tuple[int, ...]:
        self._ask(Call("outside", "attach", args))
        return ()


class RowLast(Acquire):
    """The ledger is written after the device is made, not before."""

    def reserve(self, plans: Sequence[Plan]) -> list[Lease]:
        (plan,) = plans
        ledger: Any = self.context.ledger
        namespace = self.context.namespace
        manager = self.context.claims.take_number()
        named = {"manager": manager, "changed_links": namespace.changed_links}
        wanted = namespace.netns, [plan.reservation]
        (guess,) = ledger.peek(*wanted, holder_of=namespace.ifindex, **named)
        self.devices.make(guess, plan.reservation.spec, plan.lower)
        (lease,) = ledger.reserve(*wanted, holder_of=lambda _: 0, **named)
        if lease.ifindex != guess.ifindex:
            namespace.delete_links([guess.ifindex])
            ledger.end([lease.id])
            raise NameTaken(lease.name)
        return [lease]

    def make(self, _: Plan, lease: Lease) -> Opened:
        return Opened(lease, ())


class DeletesByName(Devices):
    def delete(self, namespace: Namespace, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if ifindex := namespace.ifindex(lease.name):
                namespace.delete_links([ifindex])


class Unclaimed(RemoteLedger):
    """A ledger in which nobody claims what is worked on."""

    def claim_available(self, ids: object, _: int, alive: object) -> Any:
        return self._put("claim_available", (ids, None, alive), {})

    def claim_due(self, _: int, alive: object, **named: Any) -> Any:
        return self._put("claim_due", (None, alive), named)


class UnclaimedReservations(RemoteLedger):
    """A ledger in which a lease that is being acquired looks abandoned."""

    def reserve(self, *args: Any, **named: Any) -> Any:
        return self._put("reserve", args, {**named, "manager": None})


class WithoutPlaceholder(Devices):
    def hold_name(self, _: Namespace, __: Lease) -> None:
        """Let the name go."""


class TakesNoEvidenceForAnEnd(RemoteSystem):
    """A host that takes a process for ended if it knows nothing about the process."""

    def life(self, _: Process) -> Life:
        return Life.ENDED


class JoinsRunning(RemoteKernel):
    """A device that is not taken down before it joins its bridge."""

    def set_links(self, changes: Any) -> None:
        running = [
            change._replace(up=None)
            if change.mtu is not None and change.up is False
            else change
            for change in changes
        ]
        super().set_links(running)


class JoinsAtOnce(Acquire):
    """An acquire that connects a device on standby as well."""

    def _connect(self, plan: Plan, lease: Lease) -> None:
        wiring = lease.wiring._replace(standby=False)
        super()._connect(plan, lease._replace(wiring=wiring))


class DeletesByNameInBackends(RemoteBackend):
    """A backend that takes down whatever has the device's name."""

    def detach(self, _: Namespace | None, lease: Lease) -> None:
        self._put("del_port", (self.name, lease.name), {})


class WithoutWaitingForBackends(Devices):
    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Go on if a backend cannot be reached."""
        with suppress(TapsterError):
            super().detach(namespace, lease)


class WithoutLookingForReleases(Rewire):
    def rest_if_released(self, _: Namespace, __: str) -> bool:
        return False


def known_bugs() -> list[Scenario]:
    """Each has a violation that must be found."""
    late = late_cleanup("A", "delete")
    return [
        _program("kernel chooses the name", _by_kernel),
        _program("lowest free number, in memory", _by_bitmap),
        _program("counter in memory, and a restart", _by_counter, restart()),
        _program("counter: looks, then makes", _by_counter, foreign()),
        _program("exists? delete it, then make", _by_force, foreign("vnet1")),
        Scenario(
            "Tapster without FIN WAIT",
            (manager("A", AT_ONCE), manager("B", AT_ONCE), late_cleanup("A")),
            checks=STEP,
        ),
        _without("the exclusive flag", Parts(namespace=Inclusive), foreign()),
        _without("the row written first", Parts(acquire=RowLast)),
        _without("deleting by identity", Parts(devices=DeletesByName), late, foreign()),
        _without("claims", Parts(ledger=Unclaimed), late),
        _without("claims on reservations", Parts(ledger=UnclaimedReservations)),
        _without("placeholders", Parts(devices=WithoutPlaceholder), late),
        _with_port(
            "the lease's stamp on its port",
            WITH_BACKENDS._replace(backend=DeletesByNameInBackends),
            administrator("delete", "vnet0"),
            foreign_port(),
        ),
        _with_port(
            "waiting for its port",
            WITH_BACKENDS._replace(devices=WithoutWaitingForBackends),
            switch(),
        ),
        Scenario(
            "Tapster without looking for a release when it rewires",
            (
                manager("A"),
                setter("A", parts=USUAL._replace(rewire=WithoutLookingForReleases)),
            ),
            checks=STEP,
        ),
        *_without_evidence(),
    ]


def _without_evidence() -> list[Scenario]:
    """What must be found where an observation, or the order of messages, is wrong."""
    isolated = manager("A", TAP._replace(isolated=True))
    wrong = USUAL._replace(system=TakesNoEvidenceForAnEnd)
    running = USUAL._replace(namespace=JoinsRunning)
    return [
        Scenario(
            "Tapster without evidence that a process has ended",
            (bound("A"), machine("A"), Script("settler", (settle(parts=wrong),))),
            checks=STEP,
        ),
        Scenario(
            "Tapster without an owner for a removal by name",
            (
                manager("A", AT_ONCE),
                starter("B", AT_ONCE, after="A"),
                late_remove("A", by_owner=False),
            ),
            checks=STEP,
        ),
        Scenario(
            "Tapster without taking a port down before it joins",
            (
                isolated,
                administrator("nomaster", "vnet0"),
                Script("recover", (recover(parts=running),)),
            ),
            checks=(a_running_port_is_protected,),
        ),
        Scenario(
            "Tapster without waiting for the take of a standby",
            (target("A", parts=USUAL._replace(acquire=JoinsAtOnce)),),
            checks=STEP,
        ),
    ]


def _program(name: str, make: Callable[[Actor], Any], *more: Script) -> Scenario:
    scripts = (program("A", make), program("B", make), *more)
    return Scenario(name, scripts, checks=HARM, end=None)


def _without(what: str, parts: Parts, *more: Script) -> Scenario:
    """One machine, and a recover at any time. Only harm counts as a violation."""
    manager = Script(
        "A", (acquire(parts=parts), STOP, release(parts=parts)), mortal=True
    )
    mending = Script("recover", (recover(parts=parts),))
    return Scenario(
        f"Tapster without {what}",
        (manager, mending, *more),
        kills=1,
        checks=STEP,
        end=ending(parts),
    )


def _with_port(what: str, parts: Parts, *more: Script) -> Scenario:
    """One machine on a switch that knows ports by name."""
    scripts = (manager("A", PORT._replace(fin_wait=0), parts=parts), *more)
    name = f"Tapster without {what}"
    return Scenario(name, scripts, checks=STEP, end=ending(parts))


def _try_outside(actor: Actor, verb: str, *args: Any) -> None:
    with suppress(TapsterError):
        _outside(actor, verb, *args)
