# SPDX-License-Identifier: Apache-2.0
"""List the problems of this host, each with its remedy.

The exit code is 1 if there is a problem. Only --remove changes anything: it
deletes the devices that a lost ledger has left behind, or of these the named ones.
"""

import os
import sys

from tapster.cli import output
from tapster.cli.options import Options
from tapster.cli.values import given_text
from tapster.errors import OF_ONE_LEASE, RequestError
from tapster.light import TYPE_CHECKING
from tapster.model import Problem

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    parser.add_argument(
        "device",
        nargs="*",
        metavar="DEVICE",
        help="with --remove: delete these devices alone",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--remove",
        metavar="LEDGER-ID",
        type=given_text,
        help="delete the devices that carry the stamp of this lost ledger",
    )
    parser.add_argument(
        "--user", metavar="USER", help="only print what the daemon's policy allows USER"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=given_text,
        help="with --user: the policy to explain; default: the daemon's",
    )


def run(options: Options, host: "AnyHost") -> int:
    if options.device and not options.remove:
        raise RequestError(
            f"a device ({options.device[0]!r}) is only named with --remove LEDGER-ID; "
            f"to look at one: tapster show {options.device[0]}"
        )
    if options.config is not None and options.user is None:
        raise RequestError(
            "--config goes with --user; to look for faults: "
            f"tapsterd --check-config --config {options.config}"
        )
    if options.remove:
        removed = host.remove_leftovers(options.remove, options.device or None)
        for name in removed:
            print(f"deleted {name}")
        if not removed:
            print(
                f"ledger {options.remove} has left no device here that can be deleted; "
                "a device stays while a process has it open",
                file=sys.stderr,
            )
        return 0
    if options.user is not None:
        _explain(options)
        return 0
    from tapster.libvirt import doctor as libvirt

    problems = host.examine() + _faulty_settings()
    try:
        problems += libvirt.examine(host)
    except OF_ONE_LEASE as error:
        remedy = "remove the cause, then: tapster doctor"
        problems.append(
            Problem(f"libvirt's domains were not looked at: {error}", remedy)
        )
    return output.print_problems(problems, json=options.json)


def _faulty_settings() -> list[Problem]:
    """Return the faults of the policy and the defaults, if the caller can read them."""
    from tapster.daemon import config

    if not os.access(config.PATH, os.R_OK):
        return []
    remedy = "correct it, then: systemctl try-reload-or-restart tapsterd"
    _, faults = config.check(config.PATH)
    return [Problem(f"{config.PATH}: {fault}", remedy) for fault in faults]


def _explain(options: Options) -> None:
    """Print what the running daemon's policy allows a user, else what the file does."""
    from tapster.errors import DaemonError
    from tapster.rpc.client import connect

    if options.config is None:
        try:
            with connect(options.socket) as client:
                lines = client.explain(options.user)
        except DaemonError:
            pass
        else:
            print("\n".join(lines))
            return
    from tapster.daemon import config, policy

    loaded = config.load(
        options.config or config.PATH, must_exist=options.config is not None
    )
    caller = config.caller_named(options.user)
    limits = loaded.config.limits
    print("\n".join(policy.explain(loaded.rules, caller, limits.devices)))
