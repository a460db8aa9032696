# SPDX-License-Identifier: Apache-2.0
"""Runs the real code of Host and Ledger through every schedule of a scenario.

A scenario is a few actors: managers, a reaper, recovers, and people and programs
that are not Tapster. Each call that one of ours makes on the kernel port, on a
public method of the ledger, on the locks and on the clock is a step, at which
any other actor may come in and at which a mortal one may be killed. So are the
questions that a transaction asks while it is open; meanwhile other writers wait.
After each step the invariants are looked at, and when nobody can go on, a last
recover, a second one, and a last reap must leave all as it should be.

    with Explorer(Scenario("two", (manager("A"), manager("B")))) as explorer:
        result = explorer.explore()

Why equal states are merged: a state is the content of the ledger, the devices
of the fake kernel with what its watches have seen and who made what, the locks,
the time, what runs, and for each actor the answers it has had in its operation.
An actor's code sees the world by these answers alone, and begins each operation
with nothing but what it remembers. What a call does depends on its part of the
world and its arguments alone: nothing is random, and no clock goes by itself.
So two equal states have the same future, whatever led to them, and what an
invariant looks at is in the state too. For the same reason each call is run
once in each state of its part, and each piece of an actor's code once for the
same answers; after that they are looked up. `explore(merge=False)` walks every
schedule on its own, to compare.

Which steps go with the next one, because nobody could tell the difference: a
look at the bridge, which nobody touches; that a manager is dead, for it stays
so; the clock, when no time will pass any more; and the beginning of a
transaction up to its first question, since it has changed nothing yet.

What is one step, and could be more: `create_tap` (persistence comes last, so
dying inside it undoes all of it), `delete_links` of several devices, `links`.
`set_links` is a step for each message that the kernel gets. A backend is a set of
entries. One kind of entry is keyed by name and may be out of reach; see backends.py.
Not tried here: a second namespace or ledger, a full or damaged disk, a tap that a
machine holds open. The locks, the reaper's life and the client are in protocol.py.

A late cleanup by name is late by less than FIN WAIT: time does not pass while
one is due. Nothing that is keyed by a name could do better.
"""

from explorer.search import (
    Explorer,
    Found,
    Result,
    Scenario,
    replay,
)

__all__ = ["Explorer", "Found", "Result", "Scenario", "replay"]
