# SPDX-License-Identifier: Apache-2.0
"""In the place of qemu-bridge-helper: the same arguments, the same protocol, but it
needs no setuid: it asks the daemon.

QEMU and libvirt start it with one end of a socket pair, and wait for the descriptor
of a tap that has joined the bridge. The lease ends when nobody has that tap open any
more, so with the machine, whatever way it ends.
"""

import socket
import sys
from collections.abc import Sequence

from tapster.errors import NotAllowed, TapsterError
from tapster.integrate import acl
from tapster.kernel import unix
from tapster.model import Tap
from tapster.rpc import client

ACL = "/etc/qemu/bridge.conf"
USAGE = "Usage: qemu-bridge-helper [--use-vnet] --br=bridge --fd=unixfd"


class Usage(Exception):
    """The arguments are not those of qemu-bridge-helper."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand over a tap; the exit code."""
    try:
        given = parse(sys.argv[1:] if arguments is None else arguments)
    except Usage:
        sys.stderr.write(f"{USAGE}\n")
        return 1
    try:
        _check_acl(given["br"])
        _hand_over(given["br"], int(given["fd"]), vnet_hdr="use-vnet" in given)
    except (TapsterError, OSError, ValueError) as error:
        sys.stderr.write(f"qemu-bridge-helper: {error}\n")
        return 1
    return 0


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The options as getopt_long(3) would take them. Raises Usage."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        option = word.removeprefix("--")
        if word == "--use-vnet" and not equals:
            given[option] = ""
        elif word in ("--br", "--fd") and (equals or rest):
            given[option] = value if equals else rest.pop(0)
        else:
            raise Usage
    if not given.get("br") or not given.get("fd", "").isdecimal():
        raise Usage
    return given


def _check_acl(bridge: str) -> None:
    """Heed QEMU's own file, where there is one. Read as the user: what an
    administrator hides from them does not speak for them."""
    try:
        listed = acl.read(ACL)
    except FileNotFoundError:
        return
    if not acl.permits(listed, bridge):
        raise NotAllowed(f"access denied by acl file {ACL}: it does not allow {bridge}")


def _hand_over(bridge: str, to: int, *, vnet_hdr: bool) -> None:
    spec = Tap(bridge=bridge, owner="qemu", vnet_hdr=vnet_hdr)
    with client.connect() as host:
        (lease,) = host.acquire_all([spec], on_close=True)
    try:
        with socket.socket(fileno=to) as waiting:
            unix.send(waiting, b"\0", lease.fds)
    finally:
        # If nobody took it, this is the last close.
        unix.close(lease.fds)


if __name__ == "__main__":
    sys.exit(main())
