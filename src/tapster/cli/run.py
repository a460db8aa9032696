# SPDX-License-Identifier: Apache-2.0
"""Run a command with network devices that end with it.

In COMMAND, {fd} {fds} {fdlist} {name} {mac} {ifindex} stand for the device's
properties. {fds} has one descriptor for each queue, as 3:4:5, and {fdlist} has them as
[3,4,5]. With several --nic, a number selects the device: {fd0} {mac1}; without a number
it is the first. {{fd} stands for {fd} itself. A device whose descriptors COMMAND does
not name stays closed, so that COMMAND can open it by name. The environment of COMMAND
has TAPSTER_NAME, TAPSTER_MAC, TAPSTER_IFINDEX, TAPSTER_LEASE and TAPSTER_FD, with a
number for each of several devices: TAPSTER_NAME0.

--template IN=OUT fills in the file IN in the same way, and writes the result to OUT,
which only the user of --user, or else the caller, can read. OUT is removed when COMMAND
has ended.

The devices are released when COMMAND has ended and no process has them open. If COMMAND
continues in the background, as QEMU does with -daemonize, the leases continue too.

Exit codes: COMMAND's, 128+N if signal N ended it, 127 if it was not found,
126 if it could not be started, 125 if tapster failed before it.
"""

import os
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from errno import ENOENT
from math import inf

from tapster.api import wait_for_name
from tapster.cli import handover, nic, template, terminal, values
from tapster.cli.options import Options, read
from tapster.cli.supervise import Child, living_children, signals_blocked
from tapster.cli.template import ConfigTemplate
from tapster.errors import NoSuchLease, RequestError, TapsterError
from tapster.kernel import libc
from tapster.light import TYPE_CHECKING, Any
from tapster.model import Spec
from tapster.open_device import OpenDevice

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

FORWARDING_SECONDS = 60.0
"""How long `--wait-forwarding` waits: the spanning tree takes 30 s by default."""


def declare(parser: "Parser") -> None:
    parser.usage = "tapster run [OPTIONS] [--nic KEY=VALUE,...]... -- COMMAND ..."
    parser.add_argument(
        "--nic",
        action="append",
        metavar="KEY=VALUE,...",
        help="a device, by the options below without dashes: bridge=br0,queues=2",
    )
    parser.add_argument(
        "--netns",
        metavar="NS",
        type=values.given_text,
        help="create the devices in this network namespace",
    )
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="IN=OUT",
        help="fill in the file IN as OUT, for as long as COMMAND runs",
    )
    nic.declare(parser)
    nic.declare_wait(parser, default=inf)
    parser.add_argument(
        "--wait-forwarding",
        type=values.duration,
        nargs="?",
        const=FORWARDING_SECONDS,
        metavar="TIME",
        help="start COMMAND only when the bridges forward frames of its devices, which "
        "takes a while with a spanning tree; wait for at most TIME; default: 60s",
    )
    parser.add_argument(
        "command", nargs="...", metavar="COMMAND", help="the command to run"
    )


def run(options: Options, host: "AnyHost") -> int:
    command = handover.command_of(options, "run")
    outer = options if options.nic else None
    specs = [nic.spec(nic_options, outer) for nic_options in _nics(options)]
    handover.check_places(command, len(specs))
    templates = template.read(options.template)
    if options.wait_forwarding is not None:
        from tapster.cli import forwarding  # rarely needed

        forwarding.check(specs, command, [text for text, _ in templates])
    for text, destination in templates:
        handover.check_places([text], len(specs), f"the template of {destination!r}")

    def attempt() -> int:
        return _run(command, templates, specs, host, options.wait_forwarding)

    # Signals are not blocked while this waits for a name.
    return wait_for_name(host, attempt, options.wait)


def _run(
    command: Sequence[str],
    templates: Sequence[ConfigTemplate],
    specs: Sequence[Spec],
    host: "AnyHost",
    wait_forwarding: float | None,
) -> int:
    with signals_blocked() as mask, ExitStack() as ending:
        # Bound to this process until there is a child to bind them to.
        devices = host.acquire_all(specs, pid=os.getpid())
        for opened in devices:
            ending.callback(_release, host, opened)
            ending.callback(opened.close)
        texts = [text for text, _ in templates]
        used = handover.descriptors_used([*command, *texts])
        fds = [fd for n, opened in enumerate(devices) if n in used for fd in opened.fds]
        arguments = handover.fill_in(command, devices)
        owner = getattr(specs[0], "uid", None)
        filled_in = handover.fill_in(texts, devices)
        for text, (_, destination) in zip(filled_in, templates, strict=True):
            ending.callback(template.write(destination, text, owner))
        environment = handover.environment(devices, used)
        with Child(arguments, fds, mask, environment) as child:
            for opened in devices:
                opened.close()
            host.bind(devices, child.pid)
            # After the last operation that may start a reaper: it is no child of ours.
            libc.adopt_orphans()
            if wait_forwarding is not None:
                from tapster.cli import forwarding

                forwarding.wait(host, devices, wait_forwarding)
            try:
                child.go()
            except OSError as error:
                print(
                    f"tapster: cannot start {command[0]!r}: {error.strerror}",
                    file=sys.stderr,
                )
                return 127 if error.errno == ENOENT else 126
            status = child.wait()
            if goes_on(host, devices, child.siblings):
                ending.pop_all()
            return status


def _release(host: "AnyHost", opened: OpenDevice) -> None:
    """Release; report a failure, but keep the command's status."""
    try:
        host.release(opened)
    except TapsterError as error:
        terminal.complain(error)


def goes_on(
    host: "AnyHost", devices: Sequence[OpenDevice], siblings: Collection[int] = ()
) -> bool:
    """Return whether the command continues in the background; then its leases last too.

    The children `siblings` are not the command's.

    They end with the process in the background, or when no process has the tap open.
    """
    try:
        for pid in living_children(siblings):
            bound = []
            for opened in devices:
                # One lease may be over, because an administrator deleted its device.
                with suppress(NoSuchLease):
                    host.bind([opened], pid)
                    bound.append(opened.name)
            print(
                f"tapster: the command goes on as process {pid}: {', '.join(bound)} is "
                "released when that process has ended and the device is closed",
                file=sys.stderr,
            )
            return True
        held = [opened.name for opened in devices if _is_held(host, opened)]
    except (TapsterError, OSError) as error:
        # As when another command works on a lease, or the daemon restarts. A VM may go
        # on. The leases are bound to the command, which has ended: so each ends when no
        # process has its device open.
        terminal.complain(error)
        print(
            "tapster: the leases end when the devices are closed",
            file=sys.stderr,
        )
        return True
    if not held:
        return False
    print(
        f"tapster: a process still has {', '.join(held)} open: the lease ends when the "
        "device is closed",
        file=sys.stderr,
    )
    return True


def _is_held(host: "AnyHost", opened: OpenDevice) -> bool:
    """Return whether a process has the tap of a command that has ended open.

    A reaper that finds out the same has the tap open for a moment. So if it is open,
    the lease is bound to this process, which keeps reapers from it, and a second look
    decides.
    """
    with suppress(NoSuchLease):
        if _is_open(host, opened):
            host.bind([opened], os.getpid())
            return _is_open(host, opened)
    return False


def _is_open(host: "AnyHost", opened: OpenDevice) -> bool:
    link = host.device(opened)
    return link is not None and link.open


def _nics(options: Options) -> list[Options]:
    """Return the options of each device; those outside --nic are the defaults."""
    if not options.nic:
        return [options]

    for text in options.nic:
        if "" in text.split(","):
            raise RequestError(
                f"--nic {text!r} has an empty part: give it as in bridge=br0,queues=2"
            )

    def declare(parser: Any) -> None:
        nic.declare(parser)
        parser.set_defaults(**vars(options))

    return [
        read([f"--{pair}" for pair in text.split(",")], declare, _nic_parser)
        for text in options.nic
    ]


def _nic_parser() -> "Parser":
    from tapster.cli.parser import NicParser

    return NicParser(prog="--nic", add_help=False)
