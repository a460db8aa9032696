# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin and its runtime as actors: ADD, DEL and GC.

The runtime runs one plugin at a time for an attachment, and no GC beside an ADD or a
DEL of a pod that is not valid: the specification requires that. So a GC here follows
the death of an ADD or a DEL. IPAM is not explored.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from explorer.calls import Call
from explorer.kernel_states import BRIDGE
from explorer.ops import FIN_WAIT, STOP
from explorer.script import USUAL, Acquired, Actor, Failed, Op, Script
from tapster.cni import config, protocol, verbs
from tapster.errors import ConflictError, HostError, TapsterError
from tapster.model import Lease, Spec
from tapster.open_device import OpenDevice
from tapster.operations.operations import Operations

IFNAME = "eth0"
"""The name of the interface in every pod."""
NETWORK = {
    "cniVersion": protocol.NEWEST,
    "name": "net",
    "type": "tapster-cni",
    "bridge": BRIDGE,
    "finWait": FIN_WAIT,
    "dataDir": "/nonexistent",
}


class Plugin:
    """What the plugin's verbs use of a Host, on the operations of an actor."""

    settles = True

    def __init__(self, operations: Operations) -> None:
        self.acquired: Lease | None = None
        self._operations = operations
        if self.settles:
            with suppress(HostError, ConflictError):  # as verbs.open_host
                operations.recover.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the process of an actor ends with its last operation."""

    def acquire(self, spec: Spec) -> OpenDevice:
        (opened,) = self._operations.acquire([spec])
        self.acquired = opened.lease
        return OpenDevice(*opened)

    def release(self, lease: Lease) -> None:
        self._operations.release(lease.id)

    def leases(self) -> list[Lease]:
        return [*self._operations.look.leases()]


def add(actor: Actor) -> Acquired | Failed:
    """Run ADD for the pod with the actor's name, and start its VM."""
    plugin = _run("ADD", actor, actor.name, Plugin)
    if isinstance(plugin, Failed):
        return plugin
    assert plugin.acquired is not None
    return Acquired.of(plugin.acquired)


def delete(pod: str, plugin: type[Plugin] = Plugin) -> Op:
    """Run DEL for a pod."""

    def run(actor: Actor) -> Failed | None:
        ended = _run("DEL", actor, pod, plugin)
        return ended if isinstance(ended, Failed) else None

    return Op("release", run)


def pod(name: str) -> Script:
    """A pod's life: ADD, its VM runs and stops, DEL."""
    return Script(name, (Op("acquire", add), STOP, delete(name)), mortal=True)


def late_delete(pod: str, plugin: type[Plugin] = Plugin) -> Script:
    """A runtime that runs DEL once more, after the pod's VM has stopped."""

    def wait(actor: Actor) -> None:
        actor.ask(Call("vm", "stopped", (pod,)))

    ops = (Op("wait for a stop", wait), delete(pod, plugin))
    return Script(f"{pod}'s runtime", ops, owners=(pod,))


def collector(
    stale: str, *, valid: Iterable[str], plugin: type[Plugin] = Plugin
) -> Script:
    """A runtime that runs GC after the plugin was killed for the `stale` pod.

    The runtime first ends the VM of that pod, if it runs.
    """
    attachments = [{"containerID": pod, "ifname": IFNAME} for pod in valid]

    def run(actor: Actor) -> Failed | None:
        actor.ask(Call("vm", "killed", (1,)))
        actor.ask(Call("vm", "halt", (stale,)))
        ended = _run("GC", actor, "", plugin, **{config.VALID: attachments})
        return ended if isinstance(ended, Failed) else None

    return Script("collector", (Op("GC", run),), owners=(stale,))


VERBS: dict[str, Callable[..., object]] = {
    "ADD": verbs.add,
    "DEL": verbs.delete,
    "GC": verbs.collect_garbage,
}


def _run(
    verb: str, actor: Actor, container: str, plugin: type[Plugin], **more: Any
) -> Plugin | Failed:
    """Run a verb of the plugin on the actor's operations."""
    call = protocol.CniCall(verb, container, "/run/netns/pod", IFNAME)
    configuration = {**NETWORK, **more}
    network = config.read_network(call, configuration, protocol.NEWEST)
    opened: list[Plugin] = []

    def open_host(*_: object) -> Plugin:
        opened.append(plugin(actor.operations(USUAL)))
        return opened[0]

    try:
        VERBS[verb](call, network, configuration, open_host)
    except (TapsterError, protocol.CniFailure) as error:
        return Failed(type(error).__name__)
    return opened[0]
