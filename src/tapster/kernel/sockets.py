# SPDX-License-Identifier: Apache-2.0
"""Python's sockets without the module `socket`, for the start path of VMs.

`socket` turns its constants into enumerations when it is imported, and imports
`selectors`: 20 M instructions, as many as to start Python. The type beneath it does all
that netlink and a client at a Unix socket need. It closes its descriptor when it is no
longer referenced.
"""

from _socket import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_UNIX,
    AF_UNSPEC,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    NETLINK_ROUTE,
    SCM_RIGHTS,
    SHUT_RDWR,
    SO_ERROR,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_STREAM,
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
    "MSG_CMSG_CLOEXEC",
    "MSG_CTRUNC",
    "MSG_DONTWAIT",
    "MSG_NOSIGNAL",
    "MSG_PEEK",
    "NETLINK_ROUTE",
    "SCM_RIGHTS",
    "SHUT_RDWR",
    "SOCK_CLOEXEC",
    "SOCK_DGRAM",
    "SOCK_RAW",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "SO_ERROR",
    "SO_PEERCRED",
    "socket",
]
