# SPDX-License-Identifier: Apache-2.0
"""Replace qemu-bridge-helper: ask the daemon, so that no setuid is needed.

The arguments and the protocol are those of QEMU's program. QEMU and libvirt start it
with one end of a socket pair, and wait for the descriptor of a tap that has joined the
bridge. The lease ends at the last close of that tap, and so with the VM.
"""

import os
import socket
import sys
from collections.abc import Sequence

from tapster.errors import NotAllowed, RequestError, TapsterError
from tapster.integrate import acl
from tapster.kernel import unix
from tapster.model import Tap
from tapster.rpc import client

ACL = "/etc/qemu/bridge.conf"
USAGE = "Usage: qemu-bridge-helper [--use-vnet] --br=bridge --fd=unixfd"


class Usage(Exception):
    """Report arguments that qemu-bridge-helper does not take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand a tap over and return the exit code."""
    try:
        given = parse(sys.argv[1:] if arguments is None else arguments)
    except Usage:
        sys.stderr.write(f"{USAGE}\n")
        return 1
    try:
        _check_acl(given["br"])
        _hand_over(given["br"], int(given["fd"]), vnet_hdr=_wants_header(given))
    except (TapsterError, OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"qemu-bridge-helper: {error}\n")
        return 1
    return 0


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """Parse the options as getopt_long(3) does. Raises Usage."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        option = word.removeprefix("--")
        if word in ("--use-vnet", "--no-vnet-hdr") and not equals:
            given[option] = ""
        elif word in ("--br", "--fd") and (equals or rest):
            given[option] = value if equals else rest.pop(0)
        else:
            raise Usage
    if not given.get("br") or not given.get("fd", "").isdecimal():
        raise Usage
    return given


def _wants_header(given: dict[str, str]) -> bool:
    """Say whether a virtio_net_hdr precedes each frame.

    QEMU always asks for it, and does without if the tap has none. Who starts QEMU can
    give `--no-vnet-hdr`, as in helper="tapster-qemu-bridge-helper --no-vnet-hdr".
    """
    return "use-vnet" in given and "no-vnet-hdr" not in given


def _check_acl(bridge: str) -> None:
    """Apply QEMU's own file, if there is one.

    The file is read as the calling user: an included file that the user may not read
    allows that user nothing.
    """
    try:
        listed = acl.read(ACL)
    except FileNotFoundError:
        return
    if not acl.permits(listed, bridge):
        raise NotAllowed(f"access denied by acl file {ACL}: it does not allow {bridge}")


def _hand_over(bridge: str, to: int, *, vnet_hdr: bool) -> None:
    spec = Tap(bridge=bridge, owner="qemu", vnet_hdr=vnet_hdr)
    try:
        # libvirt reads what the helper prints when `to` is closed. So this process
        # keeps `to` until it ends, after the error that it prints.
        waiting = socket.socket(fileno=os.dup(to))
    except (OSError, OverflowError) as error:
        raise RequestError(f"--fd={to} is no socket: {error}") from error
    with waiting:
        with client.connect() as host:
            opened = host.acquire(spec, on_close=True)
        # If QEMU does not take the descriptor, the end of this block is the last close.
        with opened:
            unix.send(waiting, b"\0", opened.fds)


if __name__ == "__main__":
    sys.exit(main())
