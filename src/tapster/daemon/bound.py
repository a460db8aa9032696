# SPDX-License-Identifier: Apache-2.0
"""The leases that end with a process, and which processes to watch for them."""

from collections.abc import Callable, Collection

from tapster.model import Lease, Process


class BoundLeases:
    """Watches each process that a lease is bound to, once."""

    def __init__(
        self, watch: Callable[[Process], None], forget: Callable[[Process], None]
    ) -> None:
        """`watch` begins to watch a process, and `forget` ends that."""
        self._watch = watch
        self._forget = forget
        self._leases: dict[Process, set[str]] = {}
        """The leases that end with each watched process."""
        self._process_of: dict[str, Process] = {}

    def watches(self, process: Process) -> bool:
        """Return whether a process is watched."""
        return process in self._leases

    def bind(self, lease: Lease) -> None:
        """Watch the process that a lease is bound to, and no other process for this
        lease."""
        if self._process_of.get(lease.id) == lease.process:
            return
        self.unbind(lease.id)
        if lease.process is None:
            return
        self._process_of[lease.id] = lease.process
        self._leases.setdefault(lease.process, set()).add(lease.id)
        self._watch(lease.process)

    def unbind(self, id: str) -> None:
        """Watch no process for this lease any more."""
        process = self._process_of.pop(id, None)
        if process is not None and process in self._leases:
            self._leases[process].discard(id)
            if not self._leases[process]:
                del self._leases[process]
                self._forget(process)

    def forget_others(self, ids: Collection[str]) -> None:
        """Watch no process any more for leases other than these."""
        for id in self._process_of.keys() - set(ids):
            self.unbind(id)

    def take(self, process: Process) -> list[str]:
        """Return the leases that were bound to a process, which has ended."""
        return sorted(self._leases.pop(process, ()))
