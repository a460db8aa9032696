# SPDX-License-Identifier: Apache-2.0
"""Open network devices as Firecracker and Cloud Hypervisor do, call by call.

    microvm.py firecracker --no-api --config-file CONFIG
    microvm.py firecracker --load-snapshot REQUEST
    microvm.py cloud-hypervisor --net tap=NAME,mac=MAC,num_queues=N
    microvm.py cloud-hypervisor --net fd=[3,4],mac=MAC,num_queues=N

The calls, their order and their flags are those of

- Firecracker 81b38b9: `Tap::open_named` in src/vmm/src/devices/virtio/net/tap.rs, then
  `Net::new` and `Net::activate` in device.rs beside it;
- Cloud Hypervisor ae44c29: `open_tap` in net_util/src/open_tap.rs, with
  `Tap::open_named`, `Tap::enable` and `Tap::from_tap_fd` in net_util/src/tap.rs.

The program then sends one frame through each queue, prints a line of JSON, and ends
when its standard input does.
"""

import errno
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

TUNSETIFF, TUNGETIFF = 0x400454CA, 0x800454D2
TUNGETFEATURES, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x800454CF, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x0002, 0x1000, 0x0100, 0x4000
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO = 1, 2, 4, 16
VNET_HDR_LEN = 12
"""struct virtio_net_hdr_v1."""
TUN = "/dev/net/tun"
RTMGRP_LINK = 1
"""Changes of devices and of bridge ports, include/uapi/linux/rtnetlink.h."""
FORWARDING = "3"
"""BR_STATE_FORWARDING, include/uapi/linux/if_bridge.h."""
_IFREQ = struct.Struct("16sH22x")


def _open_tun() -> int:
    return os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _set_iff(fd: int, name: str, flags: int) -> str:
    answer = fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    return bytes(_IFREQ.unpack(answer)[0]).rstrip(b"\0").decode()


def _set_header(fd: int) -> None:
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_LEN))


def _set_offload(fd: int) -> None:
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_UFO | TUN_F_TSO4 | TUN_F_TSO6)


# Firecracker


def firecracker(name: str) -> list[int]:
    """Open one device. Firecracker has one queue and opens devices by name alone."""
    fd = _open_tun()
    _set_iff(fd, name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    _set_header(fd)
    _set_offload(fd)
    return [fd]


def firecracker_devices(arguments: list[str]) -> list[dict[str, Any]]:
    """Return the devices that a configuration, or a restore of a snapshot, names."""
    option, path = arguments[-2:]
    given = json.loads(Path(path).read_text())
    if option == "--load-snapshot":
        devices = given["network_overrides"]
    else:
        devices = given["network-interfaces"]
    return [
        {"name": device["host_dev_name"], "mac": device.get("guest_mac")}
        for device in devices
    ]


# Cloud Hypervisor


def _check_multi_queue(name: str, pairs: int) -> None:
    path = Path(f"/sys/class/net/{name}/tun_flags")
    if path.exists():
        multi_queue = bool(int(path.read_text(), 16) & IFF_MULTI_QUEUE)
        assert multi_queue == (pairs > 1), "the tap and the device differ in queues"


def _ch_open_named(name: str, pairs: int) -> int:
    fd = _open_tun()
    features = struct.unpack("i", fcntl.ioctl(fd, TUNGETFEATURES, bytes(4)))[0]
    assert features & IFF_MULTI_QUEUE or pairs == 1
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    assert _set_iff(fd, name, flags | (IFF_MULTI_QUEUE if pairs > 1 else 0)) == name
    return fd


def _ch_enable(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as any_socket:
        request = _IFREQ.pack(name.encode(), 0)
        flags = _IFREQ.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        if not flags & IFF_UP:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, _IFREQ.pack(name.encode(), IFF_UP))


def cloud_hypervisor(name: str, pairs: int) -> list[int]:
    """Open one device by name."""
    _check_multi_queue(name, pairs)
    fds = []
    for number in range(pairs):
        fds.append(_ch_open_named(name, pairs))
        if number == 0:
            _ch_enable(name)
        _set_header(fds[-1])
    for fd in fds:
        _set_offload(fd)
    return fds


def cloud_hypervisor_fds(fds: list[int]) -> list[int]:
    """Take one device that is open already."""
    for fd in fds:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        name = _IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size)))[0]
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        flags |= IFF_MULTI_QUEUE if len(fds) > 1 else 0
        try:
            fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name, flags))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        _set_header(fd)
    for fd in fds:
        _set_offload(fd)
    return fds


def net_option(text: str) -> dict[str, str]:
    """Parse the value of --net: a list in brackets keeps its commas."""
    words: list[str] = []
    for word in text.split(","):
        if words and words[-1].count("[") > words[-1].count("]"):
            words[-1] += f",{word}"
        else:
            words.append(word)
    return dict(word.split("=", 1) for word in words)


def _send(fd: int, mac: str) -> None:
    """Send a frame of a kind that no other program sends."""
    source = bytes.fromhex(mac.replace(":", ""))
    frame = b"\xff" * 6 + source + b"\x88\xb5" + bytes(46)
    os.write(fd, bytes(VNET_HDR_LEN) + frame)


def _wait_forwarding(name: str) -> None:
    """Wait until the bridge forwards what comes from this device, if it is on one.

    The kernel looks at a port some time after its tap was opened: net/core/link_watch.c
    lets a second pass between two looks. A guest's own start takes longer.
    """
    state = Path(f"/sys/class/net/{name}/brport/state")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as changes:
        changes.bind((0, RTMGRP_LINK))
        changes.settimeout(10)
        while state.exists() and state.read_text().strip() != FORWARDING:
            changes.recv(1 << 16)


def main(vmm: str, *arguments: str) -> None:
    """Open what the arguments say, send a frame through each queue, and wait."""
    devices = []
    if vmm == "firecracker":
        devices = [
            {**device, "fds": firecracker(device["name"])}
            for device in firecracker_devices([*arguments])
        ]
    else:
        nets = [arguments[n + 1] for n, word in enumerate(arguments) if word == "--net"]
        for net in map(net_option, nets):
            pairs = int(net.get("num_queues", "2")) // 2
            if "tap" in net:
                fds = cloud_hypervisor(net["tap"], pairs)
            else:
                fds = cloud_hypervisor_fds(json.loads(net["fd"]))
                assert len(fds) == pairs
            devices.append({"name": net.get("tap"), "mac": net["mac"], "fds": fds})
    for device in devices:
        if device["name"]:
            _wait_forwarding(device["name"])
        for fd in device["fds"]:
            _send(fd, device["mac"] or "02:00:00:00:00:01")
    sys.stdout.write(json.dumps({"uid": os.geteuid(), "devices": devices}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
