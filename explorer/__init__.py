# SPDX-License-Identifier: Apache-2.0
"""Runs the real operations, ledger and allocator through every schedule of a scenario.

A scenario has a few actors: managers, reapers, recovers, daemons, CNI plugins, and
people and programs that are not Tapster. Each call that Tapster's code makes on the
kernel port, on a public method of the ledger, on the locks and on the clock is a step.
At each step any other actor may act, and a mortal actor may be killed. The questions
that an open transaction asks are steps too; other writers wait until it ends. After
each step the invariants are checked. When no actor can continue, a last recover, a
second one and a last reap must leave everything as it should be.

    with Explorer(Scenario("two", (manager("A"), manager("B")))) as explorer:
        result = explorer.explore()

**Why equal states may be merged.** A state consists of the ledger's content, the
devices of the kernel in memory with the reports of its watches and their authors, the
locks, the time, the VMs that run, what is hidden, and for each actor the answers that
it has had in its operation. The actor's code sees nothing but these answers, and starts
each operation with nothing but its memory. The result of a call depends on its part of
the state and its arguments: nothing is random, and time passes only at a step. So two
equal states have the same future, whichever path led to them, and everything that an
invariant looks at is in the state. For the same reason each call is run once in each
state of its part, and each piece of an actor's code once for the same answers; after
that they are looked up. `explore(merge=False)` walks every schedule separately, for
comparison.

**Invisible steps** go with the next step: a query whose answer never changes, such as
the bridge's index or a process that has ended; the clock, when no time can pass any
more; the beginning of a transaction up to its first question, which has changed
nothing yet.

**One step** that the real host does in several: `create_tap` (a tap becomes persistent
last, so dying inside leaves no tap), `delete_links` of several devices, `links`, the
opening of a tap by name. `set_links` is a step for each message that the kernel gets.
A macvtap is opened in three steps. A backend is a set of entries: see backends.py.
Not explored: a second ledger, a full or damaged disk. The locks, the reaper's life and
the client's connection are modelled in protocol.py.

A late cleanup by name is late by less than FIN WAIT: time does not pass while such a
cleanup is due. Nothing that is keyed by a name could do better.
"""

from explorer.search import (
    Counterexample,
    Explorer,
    Scenario,
    SearchResult,
    replay,
)

__all__ = ["Counterexample", "Explorer", "Scenario", "SearchResult", "replay"]
