# SPDX-License-Identifier: Apache-2.0
"""tapsterd: hand network devices to virtual machines whose users are not root."""

import argparse
import gc
import os
import resource
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from tapster.daemon import config, policy
from tapster.daemon.log import ERROR, INFO, Log
from tapster.daemon.refusal import refuse
from tapster.daemon.server import Server
from tapster.errors import RequestError, TapsterError
from tapster.kernel import failure, systemd, unix
from tapster.operations.context import ledger_path
from tapster.operations.operations import Operations, open_operations
from tapster.rpc.wire import SOCKET

CANNOT_START = 2
"""The exit status after which systemd does not start the daemon again by itself: the
next caller makes systemd do it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal stops the daemon. Return the exit code."""
    options = parser().parse_args(arguments)
    if options.user is not None and not options.check_config:
        parser().error("--user goes with --check-config")
    for name in ("config", "socket", "ledger"):
        if getattr(options, name) == "":
            parser().error(f"--{name} is empty: give a path, or leave the option out")
    log = Log()
    try:
        if options.check_config:
            return _check(options)
        return _serve(options, log)
    except TapsterError as error:
        log(ERROR, "failed", error=error)
        return 2 if isinstance(error, RequestError) else 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tapsterd", description=__doc__, allow_abbrev=False
    )
    option = parser.add_argument
    usual = "default: %(default)s"
    option("--config", default=config.PATH, metavar="FILE", help=f"the policy; {usual}")
    option(
        "--socket",
        default=SOCKET,
        metavar="PATH",
        help=f"where to listen, unless systemd passes a socket; {usual}",
    )
    option(
        "--ledger",
        metavar="PATH",
        help="the ledger (else $TAPSTER_LEDGER, else /var/lib/tapster/ledger.db)",
    )
    option(
        "--check-config",
        action="store_true",
        help="print every fault of the policy, and exit",
    )
    option(
        "--user",
        metavar="USER",
        help="with --check-config: also print what the policy allows this user",
    )
    return parser


def _check(options: argparse.Namespace) -> int:
    """Print every fault of the configuration; without a fault, what it allows a
    user."""
    loaded, faults = config.check(options.config)
    for fault in faults:
        sys.stderr.write(f"{options.config}: {fault}\n")
    if loaded is None or faults:
        return 2
    rules = "1 rule" if len(loaded.rules) == 1 else f"{len(loaded.rules)} rules"
    lines = [f"{options.config}: {rules}, and nothing is wrong"]
    if options.user is not None:
        caller = config.caller_named(options.user)
        limits = loaded.config.limits
        lines += policy.explain(loaded.rules, caller, limits.devices)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


GARBAGE = 50_000
"""Objects after which Python looks for garbage in cycles. Leases and links are in none,
and with Python's default of 700 the look takes a third of a recover."""
SWITCH = 0.0005
"""Seconds that a thread may keep another waiting for the interpreter. An acquire takes
4.4 ms with this value, 5.1 ms with Python's default of 5 ms, and 5.4 ms with 0.1 ms."""


def _serve(options: argparse.Namespace, log: Log) -> int:
    """Serve until told to stop; the exit code."""
    os.umask(0o077)
    sys.setswitchinterval(SWITCH)
    gc.set_threshold(GARBAGE)
    _raise_limit()
    listeners: list[socket.socket] = []
    with ExitStack() as stack:
        try:
            given = systemd.listeners()
            scrapers = given.pop("metrics", [])
            listeners = [listener for sockets in given.values() for listener in sockets]
            server = _start(options, log, listeners, scrapers, stack)
        except (TapsterError, OSError) as error:  # such as of too many open files
            log(ERROR, "failed", error=error)
            refuse(listeners, _public_reason(error, options.config))
            return CANNOT_START
        systemd.notify("READY=1")
        try:
            server.serve()
        finally:
            systemd.notify("STOPPING=1")
    return 0


def _start(
    options: argparse.Namespace,
    log: Log,
    listeners: list[socket.socket],
    scrapers: list[socket.socket],
    stack: ExitStack,
) -> Server:
    """Make a server that is ready to serve; `stack` ends it.

    If systemd gave no sockets, listen where the options say.
    """
    if not listeners:
        listeners = [_listen(options.socket, stack)]
    # Without the usual file, only root may do anything. A file that is named is there.
    must_exist = options.config != config.PATH
    loaded = config.load(options.config, must_exist=must_exist).config
    where = loaded.metrics.listen
    if where and not scrapers:
        scrapers = [_listen_for_scrapes(where, stack)]
    ledger = ledger_path(options.ledger)
    operations = stack.enter_context(open_operations(ledger, reaper=lambda _: None))
    if loaded.fleet:
        _join_fleet(stack, operations, options.config, log)
    server = Server(operations, ledger, options.config, listeners, scrapers, log)
    log(INFO, "serving", socket=options.socket, ledger=ledger)
    for capability in failure.CAPABILITIES:
        if not failure.has(capability):
            log(INFO, "lacking", capability=capability)
    return server


def _public_reason(error: Exception, config_path: str) -> str:
    """Return why the daemon cannot start, without a word of the configuration."""
    if isinstance(error, RequestError):
        return f"its configuration {config_path} cannot be used"
    return str(error)


def _join_fleet(stack: ExitStack, operations: Operations, file: str, log: Log) -> None:
    """Sync with the fleet for as long as the daemon runs."""
    from tapster.fleet.sync_loop import (
        SyncLoop,  # outside a fleet nothing of it is imported
    )

    os.environ["TAPSTER_CONFIG"] = file  # for acquires
    context = operations.context
    loop = SyncLoop(
        context.ledger.path,
        context.system,
        file,
        lambda event, fields: log(INFO, event, **fields),
        lambda lease: operations.rewire.set(lease, {"up": False}),
    )
    context.fleet_figures = loop.figures
    loop.start()
    stack.callback(loop.stop)


def _raise_limit() -> None:
    """Allow as many descriptors as the limits permit: each client takes some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(path: str, stack: ExitStack) -> socket.socket:
    """Listen at a path until `stack` ends."""
    try:
        listener = unix.listen(path, mode=0o666)
        stack.callback(_remove, path, os.lstat(path))
    except OSError as error:
        raise RequestError(f"socket {path!r}: {error.strerror or error}") from error
    return listener


def _remove(path: str, made: os.stat_result) -> None:
    """Remove a socket that this process has made. Another daemon may have its own there
    by now."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), made):
            os.unlink(path)


def _listen_for_scrapes(where: str, stack: ExitStack) -> socket.socket:
    if where.startswith("/"):
        return _listen(where, stack)
    address, _, port = where.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, int(port)), family=family)
    except (OSError, ValueError) as error:
        raise RequestError(f"metrics.listen {where!r}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
