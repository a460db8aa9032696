# SPDX-License-Identifier: Apache-2.0
"""Switches the host's IPv6 off on a device, through /proc/sys/net/ipv6/conf.

Two settings keep IPv6 off. `addrgenmode none` comes by netlink, with the other
properties, before the device is up. But NetworkManager sets `addrgenmode eui64` on
every device, also on those that it does not manage, when it stops (dispose() in its
nm-device.c). It does not change `disable_ipv6`. No netlink message sets `disable_ipv6`.

A file of /proc/sys belongs to one device for as long as the device has its name: when
the kernel renames or deletes the device, a write to the open file fails with ENOENT
(addrconf_sysctl_unregister() in net/ipv6/addrconf.c). So if the device still has the
name after the file was opened, the open file belongs to that device.
"""

import os
from errno import EACCES, EPERM, EROFS

from tapster.light import Callable, suppress

CONF = "/proc/sys/net/ipv6/conf"
_RENAMES = 3
"""How often the write is tried, if the device is renamed each time."""
_FORBIDDEN = (EACCES, EPERM, EROFS)
"""The errors in a container whose /proc/sys may not be written."""


def set_disabled(name_of: Callable[[], str], *, disabled: bool) -> None:
    """Switch IPv6 off on a device, or restore the setting of a new device.

    `name_of` returns the device's name. The calling thread is in the device's
    namespace. Where /proc/sys may not be written, and where the device has no IPv6,
    nothing changes.
    """
    try:
        value = b"1" if disabled else _default()
        for _ in range(_RENAMES):
            with suppress(FileNotFoundError):  # renamed, or without IPv6
                if _write(name_of, value):
                    return
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise


def _default() -> bytes:
    """Return the setting that a new device gets."""
    try:
        with open(f"{CONF}/default/disable_ipv6", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b"0"  # the kernel has no IPv6


def _write(name_of: Callable[[], str], value: bytes) -> bool:
    name = name_of()
    file = os.open(f"{CONF}/{name}/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC)
    try:
        if name_of() != name:
            return False
        os.write(file, value)
    finally:
        os.close(file)
    return True
