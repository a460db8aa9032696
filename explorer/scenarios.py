# SPDX-License-Identifier: Apache-2.0
"""The scenarios of each bound: `full` has all, `small` leaves the large ones out."""

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


def _settler() -> Script:
    return Script("settler", (settle(),), mortal=True)


def small() -> list[Scenario]:
    """Return the scenarios that are not large. They take about a minute."""
    return [scenario for scenario in full() if not scenario.large]


def full() -> list[Scenario]:
    """Return all scenarios. They take most of an hour."""
    return [
        *of_managers(),
        *of_recover(),
        *of_reapers(),
        *of_administrators(),
        *of_ended_vms(),
        *of_given_names(),
        *of_changes(),
        *of_users(),
        *of_hidden_things(),
        *of_pods(),
        *of_upkeep(),
        *of_backends(),
    ]


def of_managers() -> list[Scenario]:
    """Return scenarios of VMs that start and stop beside other programs."""
    a, b, c = manager("A"), manager("B"), manager("C")
    once, late = _recover(after=1), late_cleanup("A")
    two_macvtaps = (manager("A", MACVTAP), manager("B", MACVTAP))
    return [
        Scenario("two managers, a late cleanup", (a, b, late)),
        Scenario("two managers, a foreign program", (a, b, foreign())),
        Scenario("two managers, a crash, recover", (a, b, once), 1),
        Scenario("two VMs with macvtaps", two_macvtaps),
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
            "a signal handler uses the same Host, an administrator deletes",
            (
                Script("A", (acquire(),)),
                administrator("delete", "vnet0"),
                handler("recover", lambda do: do.recover()),
                signal("recover"),
            ),
        ),
        Scenario("three managers", (a, b, c), large=True),
        Scenario(
            "two managers, a foreign program, a late cleanup",
            (a, b, foreign(), late),
            large=True,
        ),
        Scenario(
            "two managers, a foreign program, a crash, recover",
            (a, b, foreign(), once),
            1,
            large=True,
        ),
        Scenario(
            "two managers, a late cleanup, a crash, recover",
            (a, b, late, once),
            1,
            large=True,
        ),
        Scenario(
            "two VMs with macvtaps, a foreign program, a crash, recover",
            (*two_macvtaps, foreign(), once),
            1,
            large=True,
        ),
    ]


def of_recover() -> list[Scenario]:
    """Return scenarios of recover: at any time, twice, and killed."""
    a, once, ever = manager("A"), _recover(after=1), _recover()
    late, delete = late_cleanup("A"), late_cleanup("A", "delete")
    return [
        Scenario(
            "a manager, recover any time, a crash, a late delete", (a, ever, delete), 1
        ),
        Scenario(
            "a manager, two late deletes, recover",
            (a, delete, late_cleanup("A", "delete", by="another"), ever),
        ),
        Scenario("a manager, a late cleanup, recover", (a, late, ever)),
        Scenario(
            "a crash, and one in recover", (a, once, _recover("second", after=2)), 2
        ),
        Scenario(
            "two recovers, a late delete, time",
            (a, ever, _recover("other"), delete, clock()),
            large=True,
        ),
        Scenario(
            "a crash, and one in recover, a late delete, a foreign program",
            (a, ever, _recover("second", after=1), delete, foreign()),
            2,
            large=True,
        ),
    ]


def of_reapers() -> list[Scenario]:
    """Return scenarios of a reaper, and of time that passes."""
    a, b, ever = manager("A"), manager("B"), _recover()
    late, delete = late_cleanup("A"), late_cleanup("A", "delete")
    return [
        Scenario(
            "a manager, a reaper, time, a late delete", (a, _reaper(), clock(), delete)
        ),
        Scenario("a manager, a reaper, recover, time", (a, _reaper(), ever, clock())),
        Scenario(
            "a waiting tap that a program opens, time, a reaper",
            (a, late_open("A"), clock(), _reaper()),
        ),
        Scenario(
            "a recover, a reaper, a late delete, time, a foreign program",
            (a, ever, _reaper(), delete, clock(), foreign()),
            large=True,
        ),
        Scenario(
            "two managers, a late cleanup, time, a reaper",
            (a, b, late, clock(), _reaper()),
            large=True,
        ),
        Scenario(
            "a manager, a late cleanup, time, a reaper, a crash, recover",
            (a, late, clock(), _reaper(), _recover(after=1)),
            1,
            large=True,
        ),
    ]


def of_administrators() -> list[Scenario]:
    """Return scenarios of people who change devices of Tapster."""
    a, b, ever = manager("A"), manager("B"), _recover()
    delete = administrator("delete", "vnet0")
    return [
        Scenario(
            "a manager, an administrator deletes, a foreign program",
            (a, delete, foreign()),
        ),
        Scenario(
            "a manager, an administrator renames, recover",
            (a, administrator("rename", "vnet0", "lan0"), ever),
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
            "an isolated port off its bridge, recover, a crash",
            (
                manager("A", TAP._replace(isolated=True)),
                administrator("nomaster", "vnet0"),
                ever,
            ),
            1,
        ),
        Scenario(
            "a macvtap is opened again, an administrator deletes, another VM",
            (reopener("A", MACVTAP), delete, manager("B", MACVTAP)),
        ),
        Scenario(
            "two managers, an administrator deletes, a foreign program",
            (a, b, delete, foreign()),
            large=True,
        ),
        Scenario(
            "two managers, an administrator deletes, time, a reaper",
            (a, b, delete, clock(), _reaper()),
            large=True,
        ),
    ]


def of_ended_vms() -> list[Scenario]:
    """Return scenarios of VMs that end by themselves, or go on in the background."""
    ended, ever = (bound("A"), vm("A")), _recover()
    delete = late_cleanup("A", "delete")
    return [
        Scenario(
            "a VM that stops by itself, settle, a crash, a late delete",
            (*ended, _settler(), delete),
            1,
        ),
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
            "a VM that stops by itself, settle, recover, two crashes",
            (*ended, _settler(), ever),
            2,
            large=True,
        ),
        Scenario(
            "a VM that stops by itself, settle, recover, a late delete, time",
            (*ended, _settler(), ever, delete, clock()),
            large=True,
        ),
    ]


def of_given_names() -> list[Scenario]:
    """Return scenarios of managers that want one and the same name."""
    web, delete = TAP._replace(name="web"), late_cleanup("A", "delete")
    return [
        Scenario(
            "one name, two managers, a late delete, time, a reaper",
            (manager("A", web), manager("B", web), delete, clock(), _reaper()),
        ),
        Scenario(
            "one name, a manager that waits for it, time, a late delete",
            (manager("A", web), waiter("B"), clock(), delete),
        ),
        Scenario(
            "one name, a manager that reclaims, another that does not",
            (reclaimer("A"), manager("B", web)),
        ),
        Scenario(
            "a name that its owner reclaims, a foreign program, a crash, recover",
            (reclaimer("A"), foreign("web"), _recover(after=1)),
            1,
        ),
    ]


def of_changes() -> list[Scenario]:
    """Return scenarios of `set`, and of devices on standby."""
    once, ever = _recover(after=1), _recover()
    return [
        Scenario(
            "a change while the VM stops, a crash, recover",
            (manager("A"), setter("A"), once),
            1,
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
            "a change while the VM stops, recover any time, a crash",
            (manager("A"), setter("A"), ever),
            1,
            large=True,
        ),
        Scenario(
            "a target on standby that takes over, a crash, settle, recover any time",
            (target("A"), _settler(), ever._replace(mortal=False)),
            1,
            large=True,
        ),
    ]


def of_users() -> list[Scenario]:
    """Return scenarios of a tap that a user without privileges may open."""
    a = manager("A", USERS)
    rename = administrator("rename", "vnet0", "lan0")
    return [
        Scenario(
            "a user's tap, the user opens it, a crash, recover",
            (a, user("A"), _recover(after=1)),
            1,
        ),
        Scenario(
            "a user's tap, the user opens it, an administrator renames",
            (a, user("A"), rename),
        ),
        Scenario(
            "a user's tap, an administrator deletes, a foreign program",
            (a, administrator("delete", "vnet0"), foreign()),
        ),
        Scenario(
            "a user's tap, the user opens it, an administrator renames, recover",
            (a, user("A"), rename, _recover()),
            large=True,
        ),
    ]


def of_hidden_things() -> list[Scenario]:
    """Return scenarios of processes and namespaces that cannot be seen for a time."""
    two = USUAL._replace(system=TwoNamespaces)
    return [
        Scenario(
            "a VM that stops by itself, settle while /proc is hidden for a time",
            (bound("A"), vm("A"), _settler(), hidden()),
            1,
        ),
        Scenario(
            "recover from another namespace, namespaces hidden for a time, a crash",
            (manager("A"), hidden(), _recover(parts=two._replace(place="pod"))),
            1,
        ),
        Scenario(
            "an administrator moves a device, recover, namespaces hidden for a time",
            (manager("A", parts=two), mover("A"), _recover(parts=two), hidden()),
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
    ]


def of_pods() -> list[Scenario]:
    """Return scenarios of the CNI plugin."""
    a, b = pod("A"), pod("B")._replace(mortal=False)
    ever = _recover()._replace(mortal=False)
    return [
        Scenario(
            "two pods, ADD and DEL, a late second DEL",
            (a, b, late_delete("A")),
            large=True,
        ),
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
    nomaster = administrator("nomaster", "vnet0")
    down = administrator("down", "vnet0")
    address = administrator("address", "vnet0", "02:00:00:00:00:99")
    delete = administrator("delete", "vnet0")
    return [
        Scenario(
            "a daemon, an administrator takes a device off its bridge",
            (a, nomaster, daemon()),
        ),
        Scenario(
            "a daemon, an administrator takes a device down",
            (a, down, daemon()),
            large=True,
        ),
        Scenario(
            "a daemon, an administrator changes a MAC",
            (a, address, daemon()),
            large=True,
        ),
        Scenario(
            "a daemon, an administrator deletes a device",
            (a, delete, daemon()),
            large=True,
        ),
        Scenario(
            "a daemon, an administrator takes a device down, reports are lost",
            (a, down, overrun(), daemon()),
            large=True,
        ),
    ]


def of_backends() -> list[Scenario]:
    """Return scenarios of devices with parts in backends."""
    scenarios = [*_of_ports(), *_of_rules()]
    return [scenario._replace(end=ending(WITH_BACKENDS)) for scenario in scenarios]


def _of_ports() -> list[Scenario]:
    a, b = (manager(name, PORT, parts=WITH_BACKENDS) for name in "AB")
    at_once = PORT._replace(fin_wait=0)
    two = [manager(name, at_once, parts=WITH_BACKENDS) for name in "AB"]
    once = _recover(after=1, parts=WITH_BACKENDS)
    return [
        Scenario(
            "two ports of a switch, a late cleanup by name",
            (a, b, late_port_cleanup("A")),
        ),
        Scenario("a port, a crash, recover", (a, once), 1),
        Scenario(
            "a port, its switch goes and comes, a reaper, time",
            (a, switch(), _reaper(WITH_BACKENDS), clock()),
        ),
        Scenario("two ports without FIN WAIT", (*two,)),
        Scenario(
            "two ports without FIN WAIT, a crash, recover", (*two, once), 1, large=True
        ),
        Scenario(
            "two ports without FIN WAIT, the switch goes and comes",
            (*two, switch()),
            large=True,
        ),
        Scenario(
            "a port, its switch goes and comes, a crash, recover",
            (a, switch(), once),
            1,
            large=True,
        ),
        Scenario(
            "a port, an administrator deletes, a foreign port, recover",
            (
                a,
                administrator("delete", "vnet0"),
                foreign_port(),
                _recover(parts=WITH_BACKENDS),
            ),
            large=True,
        ),
    ]


def _of_rules() -> list[Scenario]:
    guarded = manager("A", GUARDED, parts=WITH_BACKENDS)
    once = _recover(after=1, parts=WITH_BACKENDS)
    return [
        Scenario("rules, a crash, recover", (guarded, once), 1),
        Scenario(
            "rules, a change while the VM stops, a crash, recover",
            (guarded, setter("A", parts=WITH_BACKENDS, filter=False), once),
            1,
            large=True,
        ),
    ]
