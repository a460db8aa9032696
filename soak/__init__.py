# SPDX-License-Identifier: Apache-2.0
"""Storms on the real kernel, and an exact account of who did what to which device.

Managers start and stop machines by the library and by the command, in several network
namespaces, on two ledgers; among them are squatters, administrators, strangers who
clean up late and by name, and kills.

What is harm is decided by the order of things, hardly by clocks. Each namespace has a
bridge called `mark`, and whoever does something writes so into its alias, before and
after. The kernel reports that change to everybody who listens, in one row with all
others. So the watcher reads one sequence: "machine X begins", "administrator takes Y
down: from here", "Y is down", "to here". Whatever changes a running machine's device,
or a foreign object, without such a mark around it, was done by somebody who should not
have.

The marks are numbered: a watcher that missed something knows it, and fails the run.

`marks` and `events` are the two kinds of entries, `judge` is the account (pure), and
`watcher` keeps it; `books` reads the ledgers as any program may. `storm` casts the
parts: `manager`, `commander` and their `machine`s, `squatter`, `outsiders`.
"""
