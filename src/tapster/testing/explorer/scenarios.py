# SPDX-License-Identifier: Apache-2.0
"""What Tapster is put through, within each bound."""

from tapster.testing.explorer.ops import (
    administrator,
    bound,
    clock,
    foreign,
    late_cleanup,
    machine,
    manager,
    reap,
    recover,
    settle,
)
from tapster.testing.explorer.script import Script
from tapster.testing.explorer.search import Scenario


def _recover(name: str = "recover", after: int = 0) -> Script:
    return Script(name, (recover(after=after),), mortal=True)


def _reaper() -> Script:
    return Script("reaper", (reap(),), mortal=True)


def _settler() -> Script:
    return Script("settler", (settle(),), mortal=True)


def small() -> list[Scenario]:
    """A minute or so."""
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
                manager("A", "web"),
                manager("B", "web"),
                late_cleanup("A", "delete"),
                clock(),
                _reaper(),
            ),
        ),
        Scenario(
            "a machine that stops by itself, settle, a crash, a late delete",
            (bound("A"), machine("A"), _settler(), late_cleanup("A", "delete")),
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
        Scenario(
            "a crash, and one in recover", (a, once, _recover("second", after=2)), 2
        ),
    ]


def full() -> list[Scenario]:
    """Up to an hour or so."""
    a, b, c = manager("A"), manager("B"), manager("C")
    once, ever = _recover(after=1), _recover()
    late, delete = late_cleanup("A"), late_cleanup("A", "delete")
    return [
        *small(),
        Scenario("three managers", (a, b, c)),
        Scenario(
            "two managers, a foreign program, a late cleanup, a crash, recover",
            (a, b, foreign(), late, once),
            1,
        ),
        Scenario(
            "two recovers, a late delete, time",
            (a, ever, _recover("other"), delete, clock()),
        ),
        Scenario(
            "a machine that stops by itself, settle, recover, two crashes",
            (bound("A"), machine("A"), _settler(), ever),
            2,
        ),
        Scenario(
            "a machine that stops by itself, settle, recover, a late delete, time",
            (bound("A"), machine("A"), _settler(), ever, delete, clock()),
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
            "two managers, an administrator deletes, a foreign program, a reaper",
            (a, b, administrator("delete", "vnet0"), foreign(), clock(), _reaper()),
        ),
        Scenario(
            "two managers, a late cleanup, time, a reaper, a crash, recover",
            (a, b, late, clock(), _reaper(), once),
            1,
        ),
    ]
