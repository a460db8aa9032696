# SPDX-License-Identifier: Apache-2.0
"""OpenDevice: a lease, and the open descriptors of its device."""

import os
import sys

from tapster.errors import RequestError
from tapster.kernel.signals import deferred
from tapster.light import NoReturn, Self
from tapster.model import Lease


class OpenDevice:
    """A lease, and the open descriptors of its device, which this object owns.

    Close it, or use it as a context manager: that closes the descriptors, and ends
    no lease. A VM that runs needs them open. An OpenDevice that is forgotten closes
    them with a ResourceWarning.
    """

    def __init__(
        self, lease: Lease, fds: tuple[int, ...], vhost_fds: tuple[int, ...] = ()
    ) -> None:
        self._lease = lease
        self._fds = fds
        self._vhost_fds = vhost_fds

    @property
    def lease(self) -> Lease:
        """The lease, as it was when the device was opened."""
        return self._lease

    @property
    def id(self) -> str:
        """The id of the lease."""
        return self._lease.id

    @property
    def name(self) -> str:
        """The name of the device."""
        return self._lease.name

    @property
    def ifindex(self) -> int:
        """The interface index of the device."""
        return self._lease.ifindex

    @property
    def mac(self) -> str:
        """The MAC of the guest."""
        return self._lease.mac

    @property
    def fds(self) -> tuple[int, ...]:
        """A descriptor for each queue, close-on-exec; none after `close`."""
        return self._fds

    @property
    def vhost_fds(self) -> tuple[int, ...]:
        """A descriptor of /dev/vhost-net for each queue, if these were requested and
        the host has it; none after `close`."""
        return self._vhost_fds

    def detach_fds(self) -> tuple[int, ...]:
        """Give all descriptors to the caller, who closes them.

        First those of the device, then those of vhost.
        """
        fds = self._fds + self._vhost_fds
        self._fds = self._vhost_fds = ()
        return fds

    def close(self) -> None:
        """Close the descriptors. The lease goes on. May be repeated.

        Raises RequestError if the program has closed one of them by itself; the others
        are closed.
        """
        lost = []
        if self._fds or self._vhost_fds:
            with deferred():  # a descriptor must not be lost on its way
                for fd in self.detach_fds():
                    try:
                        os.close(fd)
                    except OSError:
                        lost.append(fd)
        if lost:
            raise RequestError(
                f"descriptors {lost} of {self.name} were closed already: close the "
                "OpenDevice alone, or take its descriptors with detach_fds()"
            )

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            f"{self!r} cannot be copied or pickled, because it owns its descriptors: "
            "copy its lease, and hand the descriptors over with detach_fds()"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Without descriptors too, if the constructor failed.
        if getattr(self, "_fds", ()) or getattr(self, "_vhost_fds", ()):
            text = f"{self!r} was not closed"
            self.close()  # first: a program may make an error of the warning
            if sys.is_finalizing():
                return  # the program ends, and nothing can be imported any more
            import warnings  # rarely needed

            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<OpenDevice {self.name} lease={self.id} fds={self._fds}>"
