# SPDX-License-Identifier: Apache-2.0
"""Run a command with further descriptors of a device that a lease has.

In COMMAND, {fd} {fds} {fdlist} {name} {mac} {ifindex} stand for the device's
properties, and its environment has TAPSTER_FD, TAPSTER_NAME and so on, as with tapster
run. COMMAND takes the place of tapster: it keeps the process id, and the lease goes on
when it ends. Use the verb to plug a device into a VM that runs, and to replace a VMM.

A tap of one queue can be open once: the program that has it open has to close it first.
A device of several queues gets as many more. The kernel spreads the frames for the
guest over all queues that are open: a program must read each.

Exit codes: COMMAND's, 127 if it was not found, 126 if it could not be started,
125 if tapster failed before it.
"""

import sys
from errno import ENOENT

from tapster.cli import handover, selection
from tapster.cli.options import Options
from tapster.cli.supervise import become
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    parser.usage = "tapster open [OPTIONS] NAME|ID -- COMMAND ..."
    parser.command_follows = True
    selection.declare_one(parser)
    parser.set_defaults(command=[])


def run(options: Options, host: "AnyHost") -> int:
    command = handover.command_of(options, "open")
    handover.check_places(command, 1)
    with host.reopen(selection.one(options, host)) as opened:
        host.close()
        arguments = handover.fill_in(command, [opened])
        try:
            become(arguments, opened.fds, None, handover.environment([opened], {0}))
        except OSError as error:
            print(
                f"tapster: cannot start {command[0]!r}: {error.strerror}",
                file=sys.stderr,
            )
            return 127 if error.errno == ENOENT else 126
