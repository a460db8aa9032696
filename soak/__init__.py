# SPDX-License-Identifier: Apache-2.0
"""Storms on the real kernel, and an exact account of every change of a device.

Managers start and stop VMs through the library and the command, in several network
namespaces, on two ledgers. Beside them work squatters, administrators, strangers who
clean up late and by name, and a process that kills the others.

The order of events decides what is harm; clocks hardly matter. Each namespace has a
bridge called `mark`. Each actor writes into the alias of that bridge, before and after
it acts. The kernel reports such a write to every listener, in one sequence with all
other changes. So the watcher reads, for example: "VM X begins", "administrator takes Y
down: from here", "Y is down", "to here". A change of a running VM's device, or of a
foreign object, without such marks around it is harm.

The marks are numbered, so the watcher notices a mark that it missed, and fails the run.

`events` and `marks` are the two kinds of entries; `messages` are what marks say.
`account` records what happened, `judge` says what of it is harm (both are pure), and
`watcher` feeds them. `books` reads the ledgers as any program may. `storm` starts the
actors: `manager`, `commander` and the VMs of both (`vm`), `squatter`, `outsiders`.
"""
