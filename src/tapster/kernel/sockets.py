# SPDX-License-Identifier: Apache-2.0
"""Python's sockets without the module `socket`, for the start path of VMs.

`socket` turns its constants into enumerations when it is imported, and imports
`selectors`: 20 M instructions, as many as to start Python. The type beneath it does all
that netlink needs. It closes its descriptor when it is no longer referenced.
"""

from _socket import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_UNIX,
    AF_UNSPEC,
    CMSG_SPACE,
    MSG_DONTWAIT,
    NETLINK_ROUTE,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_RAW,
    SOL_SOCKET,
    socket,
)

__all__ = [
    "AF_BRIDGE",
    "AF_INET",
    "AF_INET6",
    "AF_NETLINK",
    "AF_UNIX",
    "AF_UNSPEC",
    "CMSG_SPACE",
    "MSG_DONTWAIT",
    "NETLINK_ROUTE",
    "SOCK_CLOEXEC",
    "SOCK_DGRAM",
    "SOCK_RAW",
    "SOL_SOCKET",
    "socket",
]
