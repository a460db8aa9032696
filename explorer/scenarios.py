# SPDX-License-Identifier: Apache-2.0
"""The scenarios of each bound."""

from explorer.calls import TwoNamespaces
from explorer.daemon import daemon
from explorer.ops import (
    AT_ONCE,
    GUARDED,
    MACVTAP,
    PORT,
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
    late_port_cleanup,
    late_remove,
    manager,
    mover,
    overrun,
    reap,
    reclaimer,
    recover,
    reopener,
    runner,
    setter,
    settle,
    signal,
    starter,
    switch,
    target,
    user,
    vm,
    waiter,
)
from explorer.plugin import collector, late_delete, pod
from explorer.script import USUAL, WITH_BACKENDS, Parts, Script
from explorer.search import Scenario


def _recover(name: str = "recover", after: int = 0, parts: Parts = USUAL) -> Script:
    return Script(name, (recover(after=after, parts=parts),), mortal=True)


def _reaper(parts: Parts = USUAL) -> Script:
    return Script("reaper", (reap(parts=parts),), mortal=True)


def _settler(parts: Parts = USUAL) -> Script:
    return Script("settler", (settle(parts=parts),), mortal=True)


def small() -> list[Scenario]:
    """Return the scenarios that take about a minute."""
    a, b = manager("A"), manager("B")
    once, ever = _recover(after=1), _recover()
    return [
        Scenario("two managers, a late cleanup", (a, b, late_cleanup("A"))),
        Scenario("two managers, a foreign program", (a, b, foreign())),
        Scenario("two managers, a crash, recover", (a, b, once), 1),
        Scenario(
            "a manager, recover any time, a crash, a late delete",
            (a, ever, late_cleanup("A", "delete")),
            1,
        ),
        Scenario(
            "a manager, a reaper, time, a late delete",
            (a, _reaper(), clock(), late_cleanup("A", "delete")),
        ),
        Scenario("a manager, a reaper, recover, time", (a, _reaper(), ever, clock())),
        Scenario(
            "a manager, an administrator deletes, a foreign program",
            (a, administrator("delete", "vnet0"), foreign()),
        ),
        Scenario(
            "a manager, an administrator renames, recover",
            (a, administrator("rename", "vnet0", "lan0"), ever),
        ),
        Scenario(
            "one name, two managers, a late delete, time, a reaper",
            (
                manager("A", TAP._replace(name="web")),
                manager("B", TAP._replace(name="web")),
                late_cleanup("A", "delete"),
                clock(),
                _reaper(),
            ),
        ),
        Scenario(
            "a VM that stops by itself, settle, a crash, a late delete",
            (bound("A"), vm("A"), _settler(), late_cleanup("A", "delete")),
            1,
        ),
        Scenario(
            "a manager, two late deletes, recover",
            (
                a,
                late_cleanup("A", "delete"),
                late_cleanup("A", "delete", by="another"),
                ever,
            ),
        ),
        Scenario("a manager, a late cleanup, recover", (a, late_cleanup("A"), ever)),
        Scenario(
            "a crash, and one in recover", (a, once, _recover("second", after=2)), 2
        ),
        Scenario(
            "an administrator takes a device off its bridge, recover",
            (a, administrator("nomaster", "vnet0"), ever),
        ),
        Scenario(
            "an administrator takes a device down, recover, a crash",
            (a, administrator("down", "vnet0"), ever),
            1,
        ),
        Scenario(
            "a change while the VM stops, a crash, recover",
            (a, setter("A"), once),
            1,
        ),
        Scenario(
            "two VMs with macvtaps", (manager("A", MACVTAP), manager("B", MACVTAP))
        ),
        Scenario(
            "a VM with a tap and a macvtap, a foreign program, a crash, recover",
            (manager("A", TAP, MACVTAP), foreign(), once),
            1,
        ),
        Scenario(
            "two VMs without FIN WAIT, a late rm of one by name and owner",
            (manager("A", AT_ONCE), starter("B", AT_ONCE, after="A"), late_remove("A")),
        ),
        Scenario(
            "a target on standby that takes over, a crash, recover",
            (target("A"), once),
            1,
        ),
        Scenario(
            "a target on standby that takes over, a crash, settle",
            (target("A"), _settler()),
            1,
        ),
        Scenario(
            "a name that its owner reclaims, a foreign program, a crash, recover",
            (reclaimer("A"), foreign("web"), once),
            1,
        ),
        Scenario(
            "an isolated port off its bridge, recover, a crash",
            (
                manager("A", TAP._replace(isolated=True)),
                administrator("nomaster", "vnet0"),
                ever,
            ),
            1,
        ),
        *of_observations(),
        *of_pods()[1:],
        of_upkeep()[0],
        *(
            scenario
            for scenario in with_backends()
            if scenario.name in SMALL_WITH_BACKENDS
        ),
    ]


def of_pods() -> list[Scenario]:
    """Return scenarios of the CNI plugin."""
    a, b = pod("A"), pod("B")._replace(mortal=False)
    ever = _recover()._replace(mortal=False)
    return [
        Scenario("two pods, ADD and DEL, a late second DEL", (a, b, late_delete("A"))),
        Scenario(
            "two pods, the plugin is killed, GC",
            (a, b, collector("A", valid=["B"])),
            1,
        ),
        Scenario(
            "a pod, the plugin is killed, GC beside recover, a late cleanup",
            (a, collector("A", valid=[]), ever, late_cleanup("A", "delete")),
            1,
        ),
    ]


def of_upkeep() -> list[Scenario]:
    """Return scenarios of the daemon's repairs."""
    a = Script("A", (acquire(),), mortal=True)
    return [
        Scenario(
            f"a daemon, an administrator {does}",
            (a, administrator(verb, "vnet0", *more), daemon()),
        )
        for does, verb, more in (
            ("takes a device off its bridge", "nomaster", ()),
            ("takes a device down", "down", ()),
            ("changes a MAC", "address", ("02:00:00:00:00:99",)),
            ("deletes a device", "delete", ()),
        )
    ] + [
        Scenario(
            "a daemon, an administrator takes a device down, reports are lost",
            (a, administrator("down", "vnet0"), overrun(), daemon()),
        )
    ]


def of_observations() -> list[Scenario]:
    """Return scenarios of what is open, hidden, elsewhere or interrupted."""
    a, ever = manager("A"), _recover()
    two = USUAL._replace(system=TwoNamespaces)
    return [
        Scenario(
            "a VM in the background, its run ends, settle, recover",
            (runner("A"), background_vm("A"), _settler(), ever),
        ),
        Scenario(
            "a VM in the background, its run is killed, settle",
            (runner("A"), background_vm("A"), _settler()),
            1,
        ),
        Scenario(
            "a waiting tap that a program opens, time, a reaper",
            (a, late_open("A"), clock(), _reaper()),
        ),
        Scenario(
            "a user's tap, the user opens it, a crash, recover",
            (manager("A", USERS), user("A"), _recover(after=1)),
            1,
        ),
        Scenario(
            "a user's tap, the user opens it, an administrator renames",
            (manager("A", USERS), user("A"), administrator("rename", "vnet0", "lan0")),
        ),
        Scenario(
            "a user's tap, an administrator deletes, a foreign program",
            (manager("A", USERS), administrator("delete", "vnet0"), foreign()),
        ),
        Scenario(
            "a VM that stops by itself, settle while /proc is hidden for a time",
            (bound("A"), vm("A"), _settler(), hidden()),
            1,
        ),
        Scenario(
            "recover from another namespace, namespaces hidden for a time, a crash",
            (a, hidden(), _recover(parts=two._replace(place="pod"))),
            1,
        ),
        Scenario(
            "an administrator moves a device, recover, namespaces hidden for a time",
            (
                manager("A", parts=two),
                mover("A"),
                _recover(parts=two),
                hidden(),
            ),
            end=ending(two),
        ),
        Scenario(
            "an administrator moves a device, a reaper, time",
            (
                manager("A", parts=two),
                administrator("move", "vnet0"),
                _reaper(two),
                clock(),
            ),
            end=ending(two),
        ),
        Scenario(
            "a macvtap is opened again, an administrator deletes, another VM",
            (
                reopener("A", MACVTAP),
                administrator("delete", "vnet0"),
                manager("B", MACVTAP),
            ),
        ),
        Scenario(
            "one name, a manager that waits for it, time, a late delete",
            (
                manager("A", TAP._replace(name="web")),
                waiter("B"),
                clock(),
                late_cleanup("A", "delete"),
            ),
        ),
        Scenario(
            "one name, a manager that reclaims, another that does not",
            (reclaimer("A"), manager("B", TAP._replace(name="web"))),
        ),
        Scenario(
            "a signal handler uses the same Host, an administrator deletes",
            (
                Script("A", (acquire(),)),
                administrator("delete", "vnet0"),
                handler("recover", lambda do: do.recover()),
                signal("recover"),
            ),
        ),
    ]


SMALL_WITH_BACKENDS = (
    "two ports of a switch, a late cleanup by name",
    "a port, a crash, recover",
    "rules, a crash, recover",
    "a port, its switch goes and comes, a reaper, time",
    "two ports without FIN WAIT",
)


def with_backends() -> list[Scenario]:
    """Return scenarios of devices with parts in backends."""
    a, b = (
        manager("A", PORT, parts=WITH_BACKENDS),
        manager("B", PORT, parts=WITH_BACKENDS),
    )
    at_once = PORT._replace(fin_wait=0)
    a0, b0 = (
        manager("A", at_once, parts=WITH_BACKENDS),
        manager("B", at_once, parts=WITH_BACKENDS),
    )
    guarded = manager("A", GUARDED, parts=WITH_BACKENDS)
    once = _recover(after=1, parts=WITH_BACKENDS)
    reaper, end = _reaper(WITH_BACKENDS), ending(WITH_BACKENDS)
    scenarios = [
        Scenario(
            "two ports of a switch, a late cleanup by name",
            (a, b, late_port_cleanup("A")),
        ),
        Scenario("a port, a crash, recover", (a, once), 1),
        Scenario("rules, a crash, recover", (guarded, once), 1),
        Scenario(
            "a port, its switch goes and comes, a reaper, time",
            (a, switch(), reaper, clock()),
        ),
        Scenario("two ports without FIN WAIT", (a0, b0)),
        Scenario("two ports without FIN WAIT, a crash, recover", (a0, b0, once), 1),
        Scenario(
            "two ports without FIN WAIT, the switch goes and comes",
            (a0, b0, switch()),
        ),
        Scenario(
            "a port, its switch goes and comes, a crash, recover",
            (a, switch(), once),
            1,
        ),
        Scenario(
            "a port, an administrator deletes, a foreign port, recover",
            (
                a,
                administrator("delete", "vnet0"),
                foreign_port(),
                _recover(parts=WITH_BACKENDS),
            ),
        ),
        Scenario(
            "rules, a change while the VM stops, a crash, recover",
            (guarded, setter("A", parts=WITH_BACKENDS, filter=False), once),
            1,
        ),
    ]
    return [scenario._replace(end=end) for scenario in scenarios]


def full() -> list[Scenario]:
    """Return all scenarios. They take most of an hour."""
    a, b, c = manager("A"), manager("B"), manager("C")
    once, ever = _recover(after=1), _recover()
    late, delete = late_cleanup("A"), late_cleanup("A", "delete")
    return [
        *small(),
        Scenario("three managers", (a, b, c)),
        Scenario(
            "two managers, a foreign program, a late cleanup",
            (a, b, foreign(), late),
        ),
        Scenario(
            "two managers, a foreign program, a crash, recover",
            (a, b, foreign(), once),
            1,
        ),
        Scenario(
            "two managers, a late cleanup, a crash, recover",
            (a, b, late, once),
            1,
        ),
        Scenario(
            "two recovers, a late delete, time",
            (a, ever, _recover("other"), delete, clock()),
        ),
        Scenario(
            "a VM that stops by itself, settle, recover, two crashes",
            (bound("A"), vm("A"), _settler(), ever),
            2,
        ),
        Scenario(
            "a VM that stops by itself, settle, recover, a late delete, time",
            (bound("A"), vm("A"), _settler(), ever, delete, clock()),
        ),
        Scenario(
            "a recover, a reaper, a late delete, time, a foreign program",
            (a, ever, _reaper(), delete, clock(), foreign()),
        ),
        Scenario(
            "a crash, and one in recover, a late delete, a foreign program",
            (a, ever, _recover("second", after=1), delete, foreign()),
            2,
        ),
        Scenario(
            "two managers, an administrator deletes, a foreign program",
            (a, b, administrator("delete", "vnet0"), foreign()),
        ),
        Scenario(
            "two managers, an administrator deletes, time, a reaper",
            (a, b, administrator("delete", "vnet0"), clock(), _reaper()),
        ),
        Scenario(
            "two managers, a late cleanup, time, a reaper",
            (a, b, late, clock(), _reaper()),
        ),
        Scenario(
            "a manager, a late cleanup, time, a reaper, a crash, recover",
            (a, late, clock(), _reaper(), once),
            1,
        ),
        Scenario(
            "a change while the VM stops, recover any time, a crash",
            (a, setter("A"), ever),
            1,
        ),
        Scenario(
            "two VMs with macvtaps, a foreign program, a crash, recover",
            (manager("A", MACVTAP), manager("B", MACVTAP), foreign(), once),
            1,
        ),
        of_pods()[0],
        *of_upkeep()[1:],
        Scenario(
            "a target on standby that takes over, a crash, settle, recover any time",
            (target("A"), _settler(), ever._replace(mortal=False)),
            1,
        ),
        Scenario(
            "a user's tap, the user opens it, an administrator renames, recover",
            (
                manager("A", USERS),
                user("A"),
                administrator("rename", "vnet0", "lan0"),
                ever,
            ),
        ),
        *(
            scenario
            for scenario in with_backends()
            if scenario.name not in SMALL_WITH_BACKENDS
        ),
    ]
