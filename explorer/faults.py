# SPDX-License-Identifier: Apache-2.0
"""Known faults: other designs as small models, and Tapster without one protection.

The explorer must find a broken promise in each of them. Otherwise its word about
Tapster would be worth nothing.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from explorer.backends import BackendStandIn
from explorer.calls import (
    Call,
    LedgerStandIn,
    NamespaceStandIn,
    SystemStandIn,
    TwoNamespaces,
)
from explorer.daemon import daemon
from explorer.invariants import HARM, STEP, STRICT, a_running_port_is_protected
from explorer.kernel_states import BRIDGE
from explorer.ops import (
    AT_ONCE,
    MACVTAP,
    PORT,
    STOP,
    TAP,
    USERS,
    acquire,
    administrator,
    background_vm,
    bound,
    clock,
    ending,
    foreign,
    foreign_port,
    handler,
    hidden,
    late_cleanup,
    late_open,
    late_remove,
    manager,
    outsider,
    overrun,
    reap,
    reclaimer,
    recover,
    release,
    reopener,
    runner,
    setter,
    settle,
    signal,
    starter,
    switch,
    target,
)
from explorer.plugin import Plugin, collector, late_delete, pod
from explorer.script import (
    USUAL,
    WITH_BACKENDS,
    Acquired,
    Actor,
    Failed,
    Op,
    Parts,
    Script,
)
from explorer.search import Scenario
from tapster.cni.config import CONTAINER
from tapster.daemon.upkeep import Upkeep
from tapster.errors import NameTaken, TapsterError
from tapster.kernel.port import Namespace
from tapster.model import Lease, Life, Link, Netns, Process, State
from tapster.operations.acquire import Acquire, Plan
from tapster.operations.devices import Deletion, Devices, Opened
from tapster.operations.rewire import Rewire

# Programs that name devices in other ways. The VM's process has the device open: when
# the VM stops, the kernel deletes the device at once. The manager learns of that
# later, and then cleans up by name.


def _outside(actor: Actor, verb: str, *args: Any) -> Any:
    return actor.ask(Call("outside", verb, args))


def _daemon(actor: Actor, verb: str, *args: Any) -> Any:
    return actor.ask(Call("daemon", verb, args))


def _by_kernel(actor: Actor) -> Any:
    """Let the kernel choose the name."""
    return _outside(actor, "open", "vnet%d")


def _by_bitmap(actor: Actor) -> Any:
    """Take the lowest number that this daemon has not given out."""
    return _outside(actor, "open", f"vnet{_daemon(actor, 'lowest')}")


def _by_counter(actor: Actor) -> Any:
    """Take the next number whose name is not in use: look first, then make."""
    while True:
        name = f"vnet{_daemon(actor, 'next')}"
        if not _outside(actor, "exists", name):
            return _outside(actor, "open", name)


def _by_force(actor: Actor) -> Any:
    """Give each VM one name; first delete the device that has the name."""
    name = "vnet0" if actor.name == "A" else "vnet1"
    if _outside(actor, "exists", name):
        _outside(actor, "delete", name)
    return _outside(actor, "open", name)


def program(name: str, make: Callable[[Actor], Any]) -> Script:
    """A manager of one VM: make, connect, and later clean up by name."""

    def start(actor: Actor) -> Acquired | Failed:
        try:
            handle, ifindex, device = make(actor)
            _outside(actor, "connect", device)
        except TapsterError as error:
            return Failed(str(error))
        return Acquired(str(handle), device, ifindex, BRIDGE)

    def stop(actor: Actor) -> Any:
        actor.ask(Call("vm", "stop", (actor.name,)))
        _try_outside(actor, "close", int(actor.memory.lease))
        return actor.memory

    def clean(actor: Actor) -> None:
        _daemon(actor, "give_back", actor.memory.name)
        _try_outside(actor, "nomaster", actor.memory.name)

    return Script(name, (Op("acquire", start), Op("stop", stop), Op("clean", clean)))


def restart() -> Script:
    """The daemon restarts, and loses what it had in memory."""
    return outsider("restart", Op("restart", lambda actor: _daemon(actor, "restart")))


# Tapster, each time without one protection


class Inclusive(NamespaceStandIn):
    """Taps are made without the flag that refuses to attach to an existing tap."""

    def create_tap(self, *args: object, **_: object) -> tuple[int, ...]:
        self._ask(Call("outside", "attach", args))
        return ()


class LeaseLast(Acquire):
    """The lease is recorded after the device is made, not before."""

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
    def try_to_delete(
        self, namespace: Namespace, leases: Sequence[Lease], _: object
    ) -> Deletion:
        for lease in leases:
            if ifindex := namespace.ifindex(lease.name):
                namespace.delete_links([ifindex])
        return Deletion([], [])


class Unclaimed(LedgerStandIn):
    """A ledger in which no operation claims a lease."""

    def claim_available(self, ids: object, _: int, alive: object) -> Any:
        return self._put("claim_available", (ids, None, alive), {})

    def claim_due(self, _: int, alive: object, **named: Any) -> Any:
        return self._put("claim_due", (None, alive), named)


class UnclaimedReservations(LedgerStandIn):
    """A ledger in which a lease that is being acquired looks abandoned."""

    def reserve(self, *args: Any, **named: Any) -> Any:
        return self._put("reserve", args, {**named, "manager": None})


class WithoutPlaceholder(Devices):
    def hold_name(self, _: Namespace, __: Lease) -> None:
        """Let the name be free."""


class TakesNoEvidenceForAnEnd(SystemStandIn):
    """A host that takes "cannot tell" for "has ended"."""

    def life(self, process: Process) -> Life:
        life: Life = self._put("life", (process,), {})
        return Life.LIVES if life is Life.LIVES else Life.ENDED


class JoinsRunning(NamespaceStandIn):
    """A device is not taken down before it joins its bridge."""

    def set_links(self, changes: Any) -> None:
        running = [
            change._replace(up=None)
            if change.mtu is not None and change.up is False
            else change
            for change in changes
        ]
        super().set_links(running)


class JoinsAtOnce(Acquire):
    """An acquire connects a device on standby as well."""

    def _connect(self, plan: Plan, lease: Lease) -> None:
        wiring = lease.wiring._replace(standby=False)
        super()._connect(plan, lease._replace(wiring=wiring))


class DeletesByNameInBackends(BackendStandIn):
    """A backend detaches whichever entry has the device's name."""

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


class TakesUnseenForGone(TwoNamespaces):
    """A host that takes a namespace which it cannot see for one that has ended."""

    def find(self, netns: Netns) -> Any:
        return None if self._put("hidden", (), {}) else super().find(netns)


class LeavesUsers(Devices):
    """A released tap keeps its owner."""

    def restrict(self, _: Namespace, __: Lease, ___: Link) -> None:
        """Leave the user its right."""


class LooksHereOnly(Devices):
    """A device that was moved to another namespace is not looked for."""

    def moved(
        self, _: Collection[Lease], *, back: bool = False
    ) -> dict[str, list[tuple[Netns, Link]]]:
        return {}


class ComparesNothing(Devices):
    """What a dead manager has changed is not compared with the lease."""

    def differences(self, *_: object) -> dict[str, dict[str, str]]:
        return {}


class SeesNoOpenTap(NamespaceStandIn):
    """Whether a process has a tap open is not looked at."""

    def link(self, ifindex: int) -> Any:
        link: Link | None = self._put("link", (ifindex,), {})
        return link and link._replace(open=False)

    def links(self) -> Any:
        return [link._replace(open=False) for link in self._put("links", (), {})]

    def is_held(self, *_: object, **__: object) -> bool:
        return False


class OpensWithoutSecondLook(NamespaceStandIn):
    """The number of a macvtap is not read again when its node is open."""

    def check_number(self, _: int, __: int) -> None:
        """Trust that the number is still the macvtap's."""


class ReclaimsEverybodysNames(LedgerStandIn):
    """A reclaim by B takes every waiting lease for one of B's."""

    def lease(self, id: str) -> Any:
        lease: Lease | None = self._put("lease", (id,), {})
        waits = lease is not None and lease.state is State.FIN_WAIT
        return lease._replace(owner="B") if lease and waits else lease


def known_faults() -> list[Scenario]:
    """Return scenarios with a fault. The search must find a broken promise in each."""
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
        _without("the lease recorded first", Parts(acquire=LeaseLast)),
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
        *_without_care_for_what_is_open(),
        *_of_pods(),
        *_of_upkeep(),
    ]


def _without_evidence() -> list[Scenario]:
    """Return faults of what is observed, and of the order of messages."""
    isolated = manager("A", TAP._replace(isolated=True))
    wrong = USUAL._replace(system=TakesNoEvidenceForAnEnd)
    running = USUAL._replace(namespace=JoinsRunning)
    unseen = USUAL._replace(system=TakesUnseenForGone, place="pod")
    here = USUAL._replace(system=TwoNamespaces, devices=LooksHereOnly)
    return [
        Scenario(
            "Tapster without evidence that a process has ended",
            (bound("A"), hidden(), Script("settler", (settle(parts=wrong),))),
            checks=STEP,
        ),
        Scenario(
            "Tapster where a namespace that cannot be seen counts as ended",
            (manager("A"), hidden(), Script("recover", (recover(parts=unseen),))),
            checks=STEP,
        ),
        Scenario(
            "Tapster without a look into other namespaces",
            (
                manager("A"),
                administrator("move", "vnet0"),
                Script("recover", (recover(parts=here),)),
            ),
            checks=STEP,
            end=ending(here),
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
            "Tapster without comparing the owner when a name is reclaimed",
            (
                manager("A", TAP._replace(name="web")),
                reclaimer("B", parts=USUAL._replace(ledger=ReclaimsEverybodysNames)),
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
            "Tapster without comparing what a dead manager has changed",
            (
                target("A"),
                Script(
                    "settler", (settle(parts=USUAL._replace(devices=ComparesNothing)),)
                ),
            ),
            1,
            checks=STEP,
        ),
        Scenario(
            "Tapster without waiting for the take of a standby",
            (target("A", parts=USUAL._replace(acquire=JoinsAtOnce)),),
            checks=STEP,
        ),
    ]


def _without_care_for_what_is_open() -> list[Scenario]:
    """Return faults around descriptors: a tap that is open, and a wrong descriptor."""
    blind = USUAL._replace(namespace=SeesNoOpenTap)
    hasty = USUAL._replace(namespace=OpensWithoutSecondLook)
    return [
        Scenario(
            "Tapster without looking whether a VM has its tap open",
            (runner("A"), background_vm("A"), Script("reaper", (settle(parts=blind),))),
            checks=STEP,
        ),
        Scenario(
            "Tapster without looking whether a program has opened a waiting tap",
            (
                manager("A"),
                late_open("A"),
                clock(),
                Script("reaper", (reap(parts=blind),)),
            ),
            checks=STEP,
        ),
        Scenario(
            "Tapster without taking the right to open a released tap",
            (manager("A", USERS, parts=USUAL._replace(devices=LeavesUsers)),),
            checks=STEP,
        ),
        Scenario(
            "Tapster without a second look at a macvtap that it opens",
            (
                reopener("A", MACVTAP, parts=hasty),
                administrator("delete", "vnet0"),
                manager("B", MACVTAP),
            ),
            checks=STEP,
        ),
        Scenario(
            "Tapster where a signal handler may use the same Host",
            (
                Script("A", (acquire(),)),
                administrator("delete", "vnet0"),
                handler("recover", lambda do: do.recover(), refused=False),
                signal("recover"),
            ),
            checks=STRICT,
        ),
    ]


class FindsByInterface(Plugin):
    """The plugin finds the leases of pod A by the name of the interface alone."""

    def leases(self) -> list[Lease]:
        return [
            lease._replace(labels=tuple({**dict(lease.labels), CONTAINER: "A"}.items()))
            for lease in super().leases()
        ]


class WithoutSettling(Plugin):
    """The plugin does not repair what dead processes have left."""

    settles = False


def _of_pods() -> list[Scenario]:
    """Return faults of a CNI plugin."""
    a, b = pod("A"), pod("B")._replace(mortal=False)
    return [
        Scenario(
            "CNI: DEL finds the lease by the name of the interface",
            (a, b, late_delete("A", FindsByInterface)),
            checks=STEP,
        ),
        Scenario(
            "CNI: GC where no list means that no attachment is valid",
            (a, b, collector("A", valid=[])),
            1,
            checks=STEP,
        ),
        Scenario(
            "CNI: GC without settling what a dead ADD has left",
            (a, collector("A", valid=[], plugin=WithoutSettling)),
            1,
            checks=STEP,
        ),
    ]


class ForgetsWhatWasWorkedOn(Upkeep):
    """A change while another manager works on the lease is not looked at again."""

    @property
    def retries(self) -> int:
        return 0


def _of_upkeep() -> list[Scenario]:
    """Return faults of a daemon's upkeep."""
    a = Script("A", (acquire(),))
    return [
        Scenario(
            "Tapster's daemon without a second look at what others worked on",
            (
                a,
                administrator("nomaster", "vnet0"),
                daemon(upkeep=ForgetsWhatWasWorkedOn),
            ),
            checks=STEP,
        ),
        Scenario(
            "Tapster's daemon without a recover when reports were lost",
            (
                a,
                administrator("nomaster", "vnet0"),
                overrun(),
                daemon(recovers=False),
            ),
            checks=STEP,
        ),
        Scenario(
            "Tapster's daemon without claims",
            (
                a,
                administrator("nomaster", "vnet0"),
                daemon(parts=Parts(ledger=Unclaimed)),
            ),
            checks=STRICT,
        ),
    ]


def _program(name: str, make: Callable[[Actor], Any], *more: Script) -> Scenario:
    scripts = (program("A", make), program("B", make), *more)
    return Scenario(name, scripts, checks=HARM, end=None)


def _without(what: str, parts: Parts, *more: Script) -> Scenario:
    """Return one VM, and a recover at any time. The means of keeping promises do not
    count."""
    manager = Script(
        "A", (acquire(parts=parts), STOP, release(parts=parts)), mortal=True
    )
    repairing = Script("recover", (recover(parts=parts),))
    return Scenario(
        f"Tapster without {what}",
        (manager, repairing, *more),
        kills=1,
        checks=STEP,
        end=ending(parts),
    )


def _with_port(what: str, parts: Parts, *more: Script) -> Scenario:
    """Return one VM on a switch that knows ports by name."""
    scripts = (manager("A", PORT._replace(fin_wait=0), parts=parts), *more)
    name = f"Tapster without {what}"
    return Scenario(name, scripts, checks=STEP, end=ending(parts))


def _try_outside(actor: Actor, verb: str, *args: Any) -> None:
    with suppress(TapsterError):
        _outside(actor, verb, *args)
