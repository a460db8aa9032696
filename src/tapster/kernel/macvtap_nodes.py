# SPDX-License-Identifier: Apache-2.0
"""Opens macvtaps, through device nodes that no other process sees.

/dev/tapN is not namespaced: two namespaces with a macvtap of the same ifindex share one
node, which belongs to the first. So the device's number is read from a sysfs of the
namespace, and the device is opened through a node of our own, which no crash leaves
behind.

The kernel gives the number of a deleted macvtap to the next one, in any namespace
(tap_get_minor() in drivers/net/tap.c). A macvtap keeps its number for life. So the
number is read again when the node is open.
"""

import os
from errno import EBADFD, ENODEV, ENOENT, EPERM

from tapster.errors import MissingCapability
from tapster.kernel import netns, tun
from tapster.kernel.descriptors import closing_on_error
from tapster.kernel.failure import failure, has, in_user_namespace
from tapster.kernel.libc import mount_detached
from tapster.light import (
    Callable,
    Collection,
    Iterator,
    cached_property,
    contextmanager,
    suppress,
)


class MacvtapNodes:
    """The nodes of one network namespace's macvtaps. Errors are Tapster's own."""

    def __init__(self, netns: int) -> None:
        """`netns` is a descriptor of the namespace, which the caller keeps open."""
        self._netns = netns

    def open(self, ifindex: int, *, queues: int, vnet_hdr: bool) -> tuple[int, ...]:
        """Open a macvtap. Return a descriptor for each queue."""
        flags = tun.flags(queues=queues, vnet_hdr=vnet_hdr)
        node = f"tap{ifindex}"
        try:
            with self._numbers() as number_of, closing_on_error() as fds:
                device = number_of(node)
                with suppress(FileNotFoundError):  # it could not be removed before
                    os.unlink(node, dir_fd=self._directory)
                os.mknod(node, 0o020600, device, dir_fd=self._directory)
                try:
                    for _ in range(queues):
                        fds.append(
                            os.open(
                                node, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._directory
                            )
                        )
                        tun.set_flags(fds[-1], flags)
                finally:
                    os.unlink(node, dir_fd=self._directory)
                if number_of(node) != device:
                    raise OSError(
                        EBADFD, "the macvtap was replaced while it was opened"
                    )
        except OSError as error:
            action = f"opening macvtap {ifindex}"
            if error.errno == EPERM and in_user_namespace():
                raise MissingCapability(
                    f"{action} needs CAP_MKNOD outside of this user namespace, because "
                    "a macvtap is opened through a device node: run as root of the "
                    "host, or request a tap",
                    capability="CAP_MKNOD",
                ) from error
            # Mounts come first, and need another capability than the node.
            needed = "CAP_MKNOD" if has("CAP_SYS_ADMIN") else "CAP_SYS_ADMIN"
            raise failure(error, action, needed) from error
        return tuple(fds)

    def holders(self, ifindexes: Collection[int]) -> dict[int, int]:
        """Return, by ifindex, the pid of a process that has the macvtap open."""
        from tapster.kernel.open_files import holders  # rarely needed

        devices: dict[int, int] = {}
        try:
            with self._numbers() as number_of:
                for ifindex in ifindexes:
                    try:
                        devices[number_of(f"tap{ifindex}")] = ifindex
                    except OSError as error:
                        # It is gone, or was deleted during the read.
                        if error.errno not in (ENOENT, ENODEV):
                            raise
            found = holders(devices) if devices else {}
        except OSError as error:
            action = "looking for the processes that have macvtaps open"
            raise failure(error, action, "CAP_SYS_ADMIN") from error
        return {devices[device]: pid for device, pid in found.items()}

    def device(self, ifindex: int) -> int:
        """Return the device number of a macvtap. Raises OSError."""
        with self._numbers() as number_of:
            return number_of(f"tap{ifindex}")

    def close(self) -> None:
        """Close what is kept open."""
        if "_directory" in self.__dict__:
            os.close(self._directory)

    @cached_property
    def _directory(self) -> int:
        """A directory for device nodes, on a mount that no other process sees."""
        # Mount it once: to unmount a tmpfs takes the kernel 12 ms.
        return mount_detached("tmpfs")

    @contextmanager
    def _numbers(self) -> Iterator[Callable[[str], int]]:
        """Lend a function that tells the device number of a macvtap's node."""
        with netns.inside(self._netns):
            sysfs = mount_detached("sysfs")

        def number_of(node: str) -> int:
            path = f"class/macvtap/{node}/dev"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=sysfs)
            try:
                major, _, minor = os.read(fd, 32).decode().partition(":")
            finally:
                os.close(fd)
            return os.makedev(int(major), int(minor))

        try:
            yield number_of
        finally:
            os.close(sysfs)
