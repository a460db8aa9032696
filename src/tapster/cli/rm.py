# SPDX-License-Identifier: Apache-2.0
"""Release devices. Each goes down immediately, and holds its name during FIN WAIT.

A lease that has an owner is released by its id, or with --owner. Its name
alone is refused: the name of a VM that has ended may be another VM's by now.
"""

import sys

from tapster.cli import selection
from tapster.cli.options import Options
from tapster.errors import RequestError, TapsterError
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    selection.declare(parser)
    parser.add_argument("--all", action="store_true", help="release every lease")
    parser.add_argument(
        "--ignore-missing",
        action="store_true",
        help="succeed although a NAME or ID has no lease",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print the names it would release"
    )


def run(options: Options, host: "AnyHost") -> int:
    selection.refuse_empty(options)
    if options.all and selection.is_given(options):
        raise RequestError("--all releases every lease: give it alone")
    if not options.all and not selection.is_given(options):
        raise RequestError(
            "nothing was chosen: give a NAME or ID, --owner or another filter, or --all"
        )
    chosen = selection.choose(options, host, all=False)
    refusals = selection.refusals(options, chosen.leases)
    failed = selection.report(refusals.values())
    for lease in chosen.leases:
        if lease.id in refusals:
            continue
        if options.dry_run:
            print(lease.name)
            continue
        try:
            host.release(lease.id)
        except TapsterError as error:
            failed = selection.report([error])
    if not options.ignore_missing and selection.report(chosen.missing):
        failed = True
    elif not (chosen.leases or chosen.missing or options.all or options.ignore_missing):
        # No error: the second of two cleanups finds nothing, and has nothing to do.
        print("tapster: no lease fits, so none was released", file=sys.stderr)
    return int(failed)
