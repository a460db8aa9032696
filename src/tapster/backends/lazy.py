# SPDX-License-Identifier: Apache-2.0
"""A backend whose module is imported when a lease first needs it."""

from tapster.kernel.port import Namespace
from tapster.light import TYPE_CHECKING, Callable, Sequence
from tapster.model import Lease, Wiring

if TYPE_CHECKING:
    from tapster.backends.backend import Backend, Leftover, Observation


class LazyBackend:
    """Stands for a backend. `concerns` is known without it.

    Most leases need no backend, and the modules of all backends take as long to import
    as the rest of Tapster.
    """

    def __init__(
        self,
        name: str,
        concerns: Callable[[Wiring], bool],
        load: "Callable[[], Backend]",
    ) -> None:
        self.name = name
        self.concerns = concerns
        self._load = load
        self._loaded: Backend | None = None

    @property
    def _backend(self) -> "Backend":
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        self._backend.check(namespace, wiring)

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        self._backend.attach(namespace, lease)

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        return self._backend.restore(namespace, leases)

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        self._backend.detach(namespace, lease)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> "Observation":
        return self._backend.observe(namespace, leases)

    def remove(self, namespace: Namespace, leftover: "Leftover") -> None:
        self._backend.remove(namespace, leftover)
