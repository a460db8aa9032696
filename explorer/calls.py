# SPDX-License-Identifier: Apache-2.0
"""Calls as values, and stand-ins that turn method calls into such values.

The code of an actor runs on stand-ins for ledger, kernel, locks and clock. A stand-in
turns each call of its methods into a `Call`, and passes it to the state space, which
answers. Arguments and answers are frozen, so that they can be recorded and compared.
"""

import os
from collections.abc import Callable, Generator, Iterable
from errno import EBADFD
from typing import Any, NamedTuple

from tapster.errors import HostError, KernelError, TapsterError
from tapster.kernel.port import LinkChange
from tapster.model import Netns
from tapster.testing import FakeSystem

NETNS = FakeSystem().netns(None).netns
"""The network namespace in which every scenario makes its devices."""
POD = NETNS._replace(cookie=NETNS.cookie + 1, path="/run/netns/pod")
"""The second network namespace."""
PLACES = {"kernel": NETNS, "pod": POD}
"""The namespaces, by the name that a `Call` has for them."""


class Call(NamedTuple):
    """One call of an actor on a part of the state."""

    on: str
    """"kernel", "pod", "ledger", "locks", "clock", "vm", "host", "backend", "daemon"
    or "outside"."""
    verb: str
    args: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()
    answers: tuple[Any, ...] = ()
    """The answers of its callbacks until now."""


class Callback(NamedTuple):
    """Stands for a function among the arguments of a call."""

    place: int | str


class Question(NamedTuple):
    """An answer that is a question: the transaction needs an answer to go on."""

    callback: Callback
    args: tuple[Any, ...]


class Raised(NamedTuple):
    """An answer that is an error."""

    kind: type[TapsterError]
    text: str
    errno: int = 0
    fields: tuple[tuple[str, Any], ...] = ()

    def error(self) -> TapsterError:
        """Return the error, to be raised."""
        if issubclass(self.kind, KernelError):
            return self.kind(self.errno, self.text)
        return self.kind(self.text, **dict(self.fields))


def raised(error: TapsterError) -> Raised:
    """Return an error as an answer."""
    if isinstance(error, KernelError):
        return Raised(type(error), str(error), error.errno)
    given = vars(error)
    fields = tuple((field, given[field]) for field in error.fields if field in given)
    return Raised(type(error), str(error), 0, fields)


def freeze(value: Any) -> Any:
    """Return `value` with its lists as tuples and its sets as frozen sets."""
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, list) or type(value) is tuple:
        return tuple(freeze(item) for item in value)
    return value


Ask = Callable[[Call], Any]
"""Passes a call to the state space. Returns the answer, or raises it as an error."""


class StandIn:
    """Stands for a part of the state: each method called on it becomes a `Call`."""

    def __init__(self, ask: Ask, on: str, **constants: object) -> None:
        self._ask = ask
        self._on = on
        self.__dict__.update(constants)

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def method(*args: object, **named: object) -> Any:
            return self._put(verb, args, named)

        return method

    def _put(self, verb: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return self._ask(
            Call(self._on, verb, freeze(args), tuple(freeze(list(named.items()))))
        )


def _messages(change: LinkChange) -> list[LinkChange]:
    """Return the parts of a change that the kernel gets one by one."""
    port = LinkChange(
        change.ifindex,
        isolated=change.isolated,
        learning=change.learning,
        root_guard=change.root_guard,
        bpdu_guard=change.bpdu_guard,
    )
    link = change._replace(
        isolated=None,
        learning=None,
        root_guard=None,
        bpdu_guard=None,
        vlans=None,
        neighbour=None,
    )
    parts = (
        link,
        port,
        LinkChange(change.ifindex, vlans=change.vlans),
        LinkChange(change.ifindex, neighbour=change.neighbour),
    )
    return [part for part in parts if part != LinkChange(part.ifindex)]


class NamespaceStandIn(StandIn):
    """Stands for a network namespace."""

    opened = 0
    """The ifindex of the macvtap that was opened last."""

    def close(self) -> None:
        """Do nothing: the namespaces of a scenario do not end."""

    def links_with(self, ifindexes: Iterable[int]) -> dict[int, Any]:
        """Look at one device after the other, as the kernel does: each is a step."""
        found = map(self.link, ifindexes)
        return {link.ifindex: link for link in found if link}

    def ports(self, _: object) -> int:
        """Return 0: no scenario comes near the limit, and the number itself would only
        distinguish states that have the same future."""
        return 0

    def set_links(self, changes: Any) -> None:
        """Send each message as a step, as rtnl.set_messages does."""
        for change in changes:
            for message in _messages(change):
                self._put("set_links", ([message],), {})

    def create_tap(self, *args: object, **named: object) -> tuple[int, ...]:
        """Return no descriptors: none is real here, so none can be closed."""
        self._put("create_tap", args, named)
        return ()

    def create_macvtap(self, device: object, **_: object) -> None:
        """Make a macvtap. Its lower device is in the same namespace."""
        self._put("create_macvtap", (device,), {})

    def open_macvtap(self, ifindex: int, **_: object) -> tuple[int, ...]:
        """Open a macvtap in the steps of LinuxNamespace.open_macvtap: the kernel gives
        the number of a deleted macvtap to the next macvtap."""
        number = self._put("number_of", (ifindex,), {})
        self.opened = self._put("open_number", (number,), {})
        self.check_number(ifindex, number)
        return ()

    def check_number(self, ifindex: int, number: int) -> None:
        """Raise KernelError if a macvtap does not have this number any more."""
        if self._put("number_of", (ifindex,), {}) != number:
            raise KernelError(EBADFD, f"opening macvtap {ifindex}")


class SystemStandIn(StandIn):
    """Stands for the host."""

    def udev_interferes(self) -> bool:
        """Return False: the daemon's upkeep is what repairs MACs here."""
        return False

    def namespaces(self) -> Generator[Any]:
        """Yield no namespace: there is one, and the caller has looked there."""
        yield from ()

    def ended_namespaces(self, _: object) -> set[Netns]:
        """Return none: the namespaces of a scenario do not end."""
        return set()

    def open_process(self, _: object) -> int:
        """Open a file that can be closed: a process that binds itself lives."""
        return os.open(os.devnull, os.O_RDONLY)


class TwoNamespaces(SystemStandIn):
    """A host with a second network namespace. Both may be hidden for a time."""

    def find(self, netns: Netns) -> Any:
        """Return the namespace. Raise HostError while that cannot be determined."""
        if self._put("hidden", (), {}):
            raise HostError("whether the namespace has ended cannot be told")
        (place,) = [on for on, of in PLACES.items() if of.cookie == netns.cookie]
        return NamespaceStandIn(self._ask, place, netns=netns)

    def namespaces(self) -> Generator[Any]:
        """Yield both. Raise HostError in the end if one may be hidden."""
        if self._put("hidden", (), {}):
            raise HostError("other namespaces cannot be seen")
        for place, netns in PLACES.items():
            yield NamespaceStandIn(self._ask, place, netns=netns)


class LedgerStandIn(StandIn):
    """Stands for the ledger. The actor's own code answers what a transaction asks."""

    def named(self, name: str) -> list[Any]:
        """Return the leases with a name, in a list of the caller's own."""
        return [*self._put("named", (name,), {})]

    def at(self, netns: Netns, ifindexes: Iterable[int]) -> Any:
        """Return the leases of a namespace that have one of these ifindexes."""
        return self._put("at", (netns, tuple(ifindexes)), {})

    def record_event(self, _: object) -> None:
        """Record nothing: no operation depends on the history's events."""

    def _put(self, verb: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        places: list[tuple[int | str, Any]] = [*enumerate(args), *named.items()]
        callbacks = {place: value for place, value in places if callable(value)}
        call = Call(
            self._on,
            verb,
            tuple(
                Callback(place) if place in callbacks else freeze(value)
                for place, value in enumerate(args)
            ),
            tuple(
                (key, Callback(key) if key in callbacks else freeze(value))
                for key, value in named.items()
            ),
        )
        while isinstance(answer := self._ask(call), Question):
            try:
                value = callbacks[answer.callback.place](*answer.args)
            except TapsterError:
                self._ask(Call(self._on, "rollback"))
                raise
            call = call._replace(answers=(*call.answers, freeze(value)))
        return answer
