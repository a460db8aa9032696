# SPDX-License-Identifier: Apache-2.0
"""Delete the devices whose FIN WAIT is over. The reaper also does so by itself.

With a NAME, an ID or a filter, end the FIN WAIT of these leases at this moment:
for an owner who knows that its own cleanup by name is over. A lease that has an
owner is chosen by its id, or with --owner.
"""

from tapster.cli import selection
from tapster.cli.options import Options
from tapster.errors import RequestError, TapsterError
from tapster.light import TYPE_CHECKING
from tapster.model import State

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    selection.declare(parser)
    parser.add_argument(
        "--now", action="store_true", help="end every FIN WAIT at this moment"
    )


def run(options: Options, host: "AnyHost") -> int:
    selection.refuse_empty(options)
    if not selection.is_given(options):
        print(f"reaped {host.reap(now=options.now)}")
        return 0
    if options.now:
        raise RequestError(
            "--now ends the FIN WAIT of every lease: give it alone; without --now, "
            "the FIN WAIT of the chosen leases ends at once, too"
        )
    chosen = selection.choose(options, host)
    # Of filters and patterns those that wait; a plain name or id has to wait.
    leases = [
        lease
        for lease in chosen.leases
        if lease.state is State.FIN_WAIT or {lease.name, lease.id} & {*options.lease}
    ]
    refusals = selection.refusals(options, leases)
    failed = selection.report([*refusals.values(), *chosen.missing])
    reaped = 0
    for lease in leases:
        if lease.id not in refusals:
            try:
                reaped += host.reap([lease])
            except TapsterError as error:
                failed = selection.report([error])
    print(f"reaped {reaped}")
    return int(failed)
