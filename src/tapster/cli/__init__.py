# SPDX-License-Identifier: Apache-2.0
"""The command: a table of verbs, one file a verb.

Only the module of the verb that was typed is imported, because the command sits in the
start path of VMs. Only this room prints and turns errors into exit codes: 1 for a
failure, 2 for wrong usage, 130 for Ctrl-C. `run` and `open` have their command's exit
codes, so their own failures are 125, as with env(1).
"""

# The module `signal` makes an enumeration of all signals: a fiftieth of a verb's time.
import _signal as signal  # type: ignore[import-not-found] # it has no stub
import gc
import os
import sys
from io import TextIOWrapper

from tapster import __version__
from tapster.cli.options import SUPPRESS, Options, read
from tapster.errors import (
    OF_ONE_LEASE,
    DaemonError,
    MissingCapability,
    NoSuchLease,
    NoSuchLink,
    RequestError,
    TapsterError,
)
from tapster.kernel import failure, signals
from tapster.light import TYPE_CHECKING, Any, NoReturn, Sequence, cast, suppress

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser
    from tapster.host import Host

VERBS = {
    "add": "create a device and print its name",
    "rm": "release devices",
    "ls": "list the leases (what tapster alone does)",
    "set": "change what a device is connected to",
    "take": "connect a device that was on standby",
    "show": "show a lease, its device and every difference",
    "who": "show who has or had a name",
    "events": "show what happened to devices, and refused requests",
    "report": "write a picture of who had which name, as one HTML page",
    "run": "run a command with devices that end with it",
    "open": "run a command with descriptors of a device that runs",
    "reap": "delete the devices whose FIN WAIT is over",
    "recover": "repair what crashes left",
    "doctor": "list the problems of this host, with remedies",
    "fleet": "share MACs and an inventory with other hosts",
    "libvirt": "let libvirt's domains have devices of Tapster",
    "install-service": "put the units of the daemon on this host",
    "watch": "print events as they happen",
    "top": "show leases, events and rates, live",
}
HOST_VERBS = ("fleet", "install-service", "libvirt")
"""Verbs that get no Host and no connection: they open what they need."""
KEEPING = ("add", "rm", "run", "reap")
"""Verbs before which the size of the history is set."""
ENDING = ("rm", "reap")
"""Those of them that use no setting else: a VM's end must not fail for a mistake in
the settings."""
LASTING = ("watch", "top", "run", "open", "fleet", "libvirt")
"""Verbs that may last. The others end before garbage matters: to look for it among
thousands of leases takes a third of a recover."""
EVENT_VERBS = ("watch", "top")
"""Verbs that show events: the daemon, where it runs, knows more than the ledger."""


def module_name(verb: str) -> str:
    """Return the module that a verb lives in."""
    return f"tapster.cli.{verb.replace('-', '_')}"


ALIASES = {
    "acquire": "add",
    "attach": "open",
    "create": "add",
    "del": "rm",
    "delete": "rm",
    "destroy": "rm",
    "exec": "run",
    "get": "show",
    "history": "who",
    "info": "show",
    "inspect": "show",
    "list": "ls",
    "monitor": "watch",
    "new": "add",
    "ps": "ls",
    "release": "rm",
    "remove": "rm",
    "start": "run",
    "status": "show",
    "stop": "rm",
    "update": "set",
}
"""Verbs of other tools, and the verb of this one that comes nearest."""


class _Complaints:
    """Standard error, for messages that no work may depend on.

    Nobody may read it any more: a pipe was closed, a disk is full. A message that
    cannot be written is lost. If it raised, `run` would release the device of a VM
    that goes on.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def command() -> NoReturn:
    """Run one verb and end the process at once."""
    if isinstance(sys.stderr, TextIOWrapper):  # it may be closed
        sys.stderr = cast(Any, _Complaints(sys.stderr))
    try:
        status = main()
        # From here on there is nothing to undo: Ctrl-C ends the process.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        status = 130
    # Python would take a sixth of a verb's time to free memory that ends with the
    # process.
    sys.stderr.flush()
    os._exit(status)


def _hide_interrupt(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hide a Ctrl-C that came where Python cannot raise it.

    An import has such places. The next step raises the interrupt again, or the command
    ends normally.
    """
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    failed, misused = 1, 2
    sys.unraisablehook = _hide_interrupt
    _ready_to_print()
    try:
        options = read(words, declare, top_parser)
        if options.verb in RUNNING:
            failed = misused = RUN_FAILED
        _take_signals()
        status = _run(options, words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # Tapster's own errors have their own types: this one comes from printing, or
        # from a host without /proc.
        return _fail_to_print(error, failed)
    except (NoSuchLease, NoSuchLink) as error:
        return _fail(error, failed)
    except RequestError as error:
        return _fail(error, misused)
    except TapsterError as error:
        return _fail(error, failed)
    except Exception as error:
        if os.environ.get("TAPSTER_DEBUG"):
            raise
        print(
            f"tapster: internal error: {type(error).__name__}: {error}; please report "
            "it, with the traceback that TAPSTER_DEBUG=1 shows",
            file=sys.stderr,
        )
        return failed


RUN_FAILED = 125
"""Tapster failed before the command started: distinct from the command's own codes."""
RUNNING = ("run", "open")
"""Verbs that run a command, and have its exit codes."""


def _take_signals() -> None:
    """Let Ctrl-C undo what is under way, instead of ending the process.

    Verbs may run other programs, such as virsh.
    """
    signals.keep_statuses()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(options: Options, words: Sequence[str]) -> int:
    if options.version:
        print(f"tapster {__version__}")
        return 0
    verb = "ls" if options.verb is None else options.verb
    if verb not in VERBS:
        top = top_parser()
        near = f" (did you mean {ALIASES[verb]!r}?)" if verb in ALIASES else ""
        top.error(f"there is no verb {verb!r}{near or top.hint(verb, VERBS)}")
    module: Any = __import__(module_name(verb), fromlist=["run"])

    def declare_all(parser: Any) -> None:
        _declare_common(parser, options)
        module.declare(parser)

    def make_parser() -> "Parser":
        from tapster.cli.parser import Parser

        parser = Parser(prog=f"tapster {verb}", description=module.__doc__)
        parser.failure = RUN_FAILED if verb in RUNNING else 2
        return parser

    chosen = read(options.arguments, declare_all, make_parser)
    chosen.typed = (words[: len(words) - len(options.arguments)], options.arguments)
    if verb in LASTING:
        gc.freeze()  # everything is imported: no garbage there
        gc.enable()
    if verb in HOST_VERBS:
        return int(module.run(chosen, None))
    with _open(verb, chosen) as host:
        return int(module.run(chosen, host))


def _open(verb: str, options: Options) -> "AnyHost":
    """Open the ledger, or a connection to the daemon."""
    netns = getattr(options, "netns", None)
    socket_given = options.socket is not None or bool(
        os.environ.get("TAPSTER_SOCKET") and options.ledger is None
    )
    if options.socket == "":
        raise RequestError("--socket is empty: give a path, or leave the option out")
    if socket_given and options.ledger is not None:
        top_parser().error("--socket and --ledger do not go together")
    ledger = options.ledger or os.environ.get("TAPSTER_LEDGER")
    if verb in EVENT_VERBS and not socket_given and not ledger:
        from tapster.rpc.client import connect

        try:
            return connect(netns=netns)
        except DaemonError:
            pass  # no daemon runs
    if not socket_given and failure.has("CAP_NET_ADMIN"):
        from tapster.host import Host

        if options.verbose:
            host = _verbose_host(options.ledger, netns)
        else:
            host = Host(options.ledger, netns=netns)
        try:
            if verb not in ("recover", "doctor"):
                settle(host)
            if verb in KEEPING:
                _keep_history(host, verb)
        except BaseException:
            host.close()
            raise
        return host
    if not socket_given and ledger:
        given = "--ledger" if options.ledger else "$TAPSTER_LEDGER"
        raise MissingCapability(
            f"tapster {verb} with {given} needs {failure.lacks('CAP_NET_ADMIN')}; "
            f"without {given} the daemon does it",
            capability="CAP_NET_ADMIN",
        )
    if options.verbose:
        top_parser().error(
            "-v prints what tapster itself changes; here the daemon does"
        )
    from tapster.rpc.client import connect

    try:
        return connect(options.socket, netns=netns)
    except DaemonError as error:
        if socket_given:
            raise
        raise MissingCapability(
            f"tapster {verb} needs root (CAP_NET_ADMIN), or the daemon: {error}",
            capability="CAP_NET_ADMIN",
        ) from error


def _keep_history(host: "Host", verb: str) -> None:
    """Set the size of the ledger's history, if the settings have one."""
    from tapster.cli.defaults import Defaults

    try:
        defaults = Defaults()
    except RequestError as error:
        if verb not in ENDING:
            raise
        from tapster.cli.terminal import complain  # rarely needed

        complain(error, "the history keeps its size: ")
        return
    if (defaults.history, defaults.history_days) != (None, None):
        host.operations.context.ledger.keep_history(
            defaults.history, days=defaults.history_days
        )


def _verbose_host(path: str | None, netns: str | None) -> "Host":
    """Open a Host that prints each change as the equivalent command."""
    from tapster.cli import verbose
    from tapster.host import Host
    from tapster.kernel.linux import LinuxSystem

    system = verbose.system(LinuxSystem())
    return Host(path, netns=netns, system=system, backends=verbose.backends)


_VERBOSE = "print each change as a command of ip, bridge, nft, tc or ovs-vsctl"
_SOCKET_HELP = "use the daemon at this socket; without root the daemon is always used"
_LEDGER_HELP = "the ledger (else $TAPSTER_LEDGER, else /var/lib/tapster/ledger.db)"


def top_parser() -> "Parser":
    """Return the parser of the command itself, without its options."""
    from tapster.cli.parser import Parser

    verbs = "\n".join(f"  {verb:<16} {what}" for verb, what in VERBS.items())
    return Parser(
        prog="tapster",
        usage="tapster [--ledger PATH | --socket PATH] [-v] [VERB ...]",
        description="Network devices for virtual machines, safe from one another.",
        epilog=f"verbs:\n{verbs}\n\ntapster VERB --help explains a verb.",
    )


def declare(parser: Any) -> None:
    """Declare the options of the command itself."""
    _declare_common(parser, Options(ledger=None, socket=None, verbose=False))
    parser.add_argument(
        "--version", action="store_true", help="print the version and exit"
    )
    parser.add_argument("verb", nargs="?", help=SUPPRESS)
    parser.add_argument("arguments", nargs="...", help=SUPPRESS)


def _declare_common(parser: Any, before: Options) -> None:
    """Declare the options that may stand before and after the verb."""
    option = parser.add_argument
    option("--ledger", default=before.ledger, metavar="PATH", help=_LEDGER_HELP)
    option("--socket", default=before.socket, metavar="PATH", help=_SOCKET_HELP)
    option(
        "-v", "--verbose", action="store_true", default=before.verbose, help=_VERBOSE
    )


def settle(host: "Host") -> None:
    """Repair what dead processes left; continue if a lease cannot be repaired."""
    try:
        host.settle()
    except OF_ONE_LEASE as error:
        from tapster.cli.terminal import complain  # rarely needed

        complain(error, "another lease was not repaired: ")


def _ready_to_print() -> None:
    """Make every text printable, whatever the terminal can show."""
    # The caller may have closed them, as by >&- and 2>&-.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if sys.stderr is None:  # else errors would go to the output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as above
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail_to_print(error: OSError, code: int) -> int:
    # Python would try to print the rest once more at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        # An error of a file that cannot be read has its name.
        what = error.filename or "writing the output"
        print(f"tapster: {what}: {error.strerror}", file=sys.stderr)
    return code


def _fail(error: TapsterError, code: int) -> int:
    from tapster.cli.terminal import complain  # rarely needed

    complain(error)
    return code
