# SPDX-License-Identifier: Apache-2.0
"""The command: a table of verbs, one file a verb.

Only the module of the verb that was typed is imported: the command sits in the
start path of virtual machines. It is also the only place that prints, and that
turns errors into exit codes: 1 for failure, 2 for wrong usage, 130 for Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn

from tapster import __version__
from tapster.errors import (
    ConflictError,
    DaemonError,
    HostError,
    MissingCapability,
    NoSuchLease,
    NoSuchLink,
    RequestError,
    TapsterError,
)
from tapster.kernel import failure

if TYPE_CHECKING:
    from tapster.host import Host
    from tapster.rpc.client import Client

VERBS = {
    "add": "make a device and print its name",
    "rm": "release devices",
    "ls": "list the leases (what tapster alone does)",
    "set": "change what a device is connected to",
    "show": "show all of one lease, and its device as it is now",
    "who": "say who holds or held a name",
    "run": "run a command with devices that end with it",
    "reap": "delete the devices whose FIN WAIT is over",
    "recover": "mend what crashes left",
    "doctor": "say what is wrong on this host and what would mend it",
    "install-service": "put the units of the daemon on this host",
    "watch": "print what happens to the leases (by the daemon)",
    "top": "show leases, events and rates, live (by the daemon)",
}
HOST_VERBS = ("install-service",)
"""Work on the host itself; they open neither a ledger nor a connection."""
DAEMON_VERBS = ("watch", "top")
"""What only the daemon can do."""


def module_name(verb: str) -> str:
    """The module that a verb lives in."""
    return f"tapster.cli.{verb.replace('-', '_')}"


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that is as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        # argparse would ask shutil, at the first option that is declared: its
        # imports take a twentieth of a verb's time.
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    with suppress(ValueError):
        return int(os.environ.get("COLUMNS", ""))
    with suppress(OSError):
        return os.get_terminal_size().columns
    return 80


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, and who guesses nothing."""

    def __init__(self, **options: Any) -> None:
        # What is short for one option today may be short for two tomorrow.
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see: {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def command() -> NoReturn:
    """The console script: run one verb, and end at once."""
    status = main()
    # Python would take a sixth of a verb's time to free what ends anyway.
    sys.stderr.flush()
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    try:
        _ready_to_print()
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # Tapster's own are errors of its own: this one is of what was printed.
        return _fail_to_print(error)
    except (NoSuchLease, NoSuchLink) as error:
        return _fail(error, 1)
    except RequestError as error:
        return _fail(error, 2)
    except TapsterError as error:
        return _fail(error, 1)


def _run(arguments: list[str]) -> int:
    top = _top_parser()
    options = top.parse_args(arguments)
    if options.version:
        print(f"tapster {__version__}")
        return 0
    verb = options.verb or "ls"
    if verb not in VERBS:
        top.error(f"there is no verb {verb!r}")
    module = import_module(module_name(verb))
    parser = Parser(prog=f"tapster {verb}", description=module.__doc__)
    parser.add_argument("--ledger", default=options.ledger, help=_LEDGER_HELP)
    parser.add_argument(
        "--socket", default=options.socket, metavar="PATH", help=_SOCKET_HELP
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=options.verbose, help=_VERBOSE
    )
    module.declare(parser)
    chosen = parser.parse_args(options.arguments)
    if verb in HOST_VERBS:
        return int(module.run(chosen, None))
    with _open(verb, chosen, top) as host:
        return int(module.run(chosen, host))


def _open(verb: str, options: argparse.Namespace, parser: Parser) -> "Host | Client":
    """The devices to work on: by ourselves, or through the daemon."""
    netns = getattr(options, "netns", None)
    told = options.socket is not None or verb in DAEMON_VERBS
    if told and options.ledger is not None:
        parser.error("--socket and --ledger do not go together")
    if not told and failure.has("CAP_NET_ADMIN"):
        from tapster.host import Host

        if options.verbose:
            host = _verbose_host(options.ledger, netns)
        else:
            host = Host(options.ledger, netns=netns)
        try:
            if verb not in ("recover", "doctor"):
                _settle(host)
        except BaseException:
            host.close()
            raise
        return host
    own = options.ledger or os.environ.get("TAPSTER_LEDGER")
    if not told and own:
        raise MissingCapability(
            f"tapster {verb} needs CAP_NET_ADMIN for a ledger of its own; "
            f"run it as root: sudo tapster {verb}"
        )
    if options.verbose:
        parser.error("-v prints what tapster itself changes; here the daemon does")
    from tapster.rpc.client import connect

    try:
        return connect(options.socket, netns=netns)
    except DaemonError as error:
        if told:
            raise
        raise MissingCapability(
            f"tapster {verb} needs CAP_NET_ADMIN, or the daemon: {error}"
        ) from error


def _verbose_host(path: str | None, netns: str | None) -> "Host":
    """Open a Host that prints each change as the equivalent command."""
    from tapster import backends
    from tapster.cli import verbose
    from tapster.host import Host
    from tapster.kernel.linux import LinuxSystem
    from tapster.ledger import Ledger
    from tapster.operations.context import ledger_path

    system = verbose.system(LinuxSystem())
    ledger = Ledger(ledger_path(path), system)
    ledger.close()  # opened for its id
    wrapped = verbose.backends(backends.make(ledger.id), ledger.id)
    return Host(path, netns=netns, system=system, backends=wrapped)


_VERBOSE = "print each change as a command of ip, bridge, nft, tc or ovs-vsctl"
_SOCKET_HELP = "go through the daemon at this socket; who is not root always does"
_LEDGER_HELP = "the ledger (else $TAPSTER_LEDGER, else /var/lib/tapster/ledger.db)"


def _top_parser() -> Parser:
    verbs = "\n".join(f"  {verb:<16} {what}" for verb, what in VERBS.items())
    parser = Parser(
        prog="tapster",
        usage="tapster [--ledger PATH | --socket PATH] [-v] [VERB ...]",
        description="Network devices for virtual machines, safe from one another.",
        epilog=f"verbs:\n{verbs}\n\ntapster VERB --help says more.",
    )
    parser.add_argument("--ledger", help=_LEDGER_HELP)
    parser.add_argument("--socket", metavar="PATH", help=_SOCKET_HELP)
    parser.add_argument("-v", "--verbose", action="store_true", help=_VERBOSE)
    parser.add_argument("--version", action="store_true", help="print it and exit")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="...", help=argparse.SUPPRESS)
    return parser


def _settle(host: "Host") -> None:
    """Mend what dead processes left; what cannot be mended hinders nobody else."""
    try:
        host.settle()
    except (HostError, ConflictError) as error:
        print(f"tapster: {error}; going on", file=sys.stderr)


def _ready_to_print() -> None:
    """Whatever a device is called and the terminal can show: no traceback."""
    if sys.stdout is None:  # closed by the caller, as by >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail_to_print(error: OSError) -> int:
    # Python would try to print the rest once more at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        print(f"tapster: {error.strerror}", file=sys.stderr)
    return 1


def _fail(error: TapsterError, code: int) -> int:
    for line in (str(error), *getattr(error, "__notes__", ())):
        print(f"tapster: {line}", file=sys.stderr)
    return code
