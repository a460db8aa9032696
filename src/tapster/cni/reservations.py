# SPDX-License-Identifier: Apache-2.0
"""Which attachments may have addresses of the IPAM plugin: an empty file for each.

The file is made before the IPAM plugin is asked for an address, and removed after the
plugin has taken the address back. So GC finds the address of an attachment whatever
was killed, also with IPAM plugins that have no GC.
"""

import os

from tapster.cni.protocol import Attachment, CniFailure, Code

FOLDER = "/var/lib/cni/tapster"


class Reservations:
    """The attachments of one network."""

    def __init__(self, network: str, folder: str | None = None) -> None:
        self._folder = os.path.join(folder or FOLDER, network)

    def add(self, attachment: Attachment) -> None:
        """Record an attachment. Raises CniFailure."""
        path = self._path(attachment)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise CniFailure(Code.IO, f"making {path!r}: {error.strerror}") from error

    def remove(self, attachment: Attachment) -> None:
        """Forget an attachment. May be repeated. Raises CniFailure."""
        path = self._path(attachment)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CniFailure(Code.IO, f"removing {path!r}: {error.strerror}") from error

    def list(self) -> list[Attachment]:
        """Return every attachment. Raises CniFailure."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CniFailure(
                Code.IO, f"reading {self._folder!r}: {error.strerror}"
            ) from error
        split = [name.partition(":") for name in names]
        return [Attachment(container, ifname) for container, _, ifname in split]

    def _path(self, attachment: Attachment) -> str:
        return f"{self._folder}/{attachment.container}:{attachment.ifname}"
