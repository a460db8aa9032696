# SPDX-License-Identifier: Apache-2.0
"""A receiver behind a veth that is a port of a bridge, with or without offload."""

import array
import fcntl
import select
import socket
import struct
import time
from typing import Self

from lab import shell

ETH_P_ALL, SOL_PACKET = 3, 263
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 1 << 26
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17
CARRIER_SECONDS = 20.0


class Receiver:
    """What a host on the other side of the wire receives."""

    def __init__(self, name: str, *, offload: bool, bridge: str = "br0") -> None:
        port, far = f"{name}p", f"{name}r"
        shell.sh(f"ip link add {port} type veth peer name {far}")
        for device in (port, far):
            shell.sh(f"ip link set {device} addrgenmode none")
        _set_checksum_offload(port, offload)
        shell.sh(f"ip link set {far} up")
        shell.sh(f"ip link set {port} master {bridge} up")
        wait_forwarding(port)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.settimeout(10)
        self._socket.bind((far, ETH_P_ALL))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def until(self, last: bytes) -> list[bytes]:
        """Return the frames that arrive before the last one."""
        arrived = []
        while (frame := self._socket.recv(1 << 17)) != last:
            arrived.append(frame)
        return arrived


def wait_forwarding(port: str) -> None:
    """Wait until the bridge has heard that the port has carrier."""
    deadline = time.monotonic() + CARRIER_SECONDS
    while "forwarding" not in shell.sh(f"bridge link show dev {port}"):
        assert time.monotonic() < deadline, f"port {port} does not forward"
        select.select([], [], [], 0.01)


def _set_checksum_offload(device: str, on: bool) -> None:
    """As `ethtool -K DEVICE tx on` or `off`."""
    value = array.array("I", [ETHTOOL_STXCSUM, on])
    request = struct.pack("16sQ16x", device.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)
