# SPDX-License-Identifier: Apache-2.0
"""Calls as values, and stand-ins that turn method calls into them.

The code of an actor runs on stand-ins for ledger, kernel, locks and clock. Each
call on one of these becomes a `Call`, which is put to whoever plays the world.
Arguments and answers are frozen, so that they can be remembered and compared.
"""

import os
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from tapster.errors import KernelError, TapsterError
from tapster.kernel.port import LinkChange


class Call(NamedTuple):
    """One call of an actor on a part of the world."""

    on: str
    """"kernel", "ledger", "locks", "clock", "machine" or "outside"."""
    verb: str
    args: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()
    told: tuple[Any, ...] = ()
    """What its callbacks answered so far."""


class Callback(NamedTuple):
    """Stands for a function among the arguments of a call."""

    place: int | str


class Question(NamedTuple):
    """An answer that asks back: a transaction needs to know this to go on."""

    callback: Callback
    args: tuple[Any, ...]


class Raised(NamedTuple):
    """An answer that is an error."""

    kind: type[TapsterError]
    text: str
    errno: int

    def error(self) -> TapsterError:
        if issubclass(self.kind, KernelError):
            return self.kind(self.errno, self.text)
        return self.kind(self.text)


def raised(error: TapsterError) -> Raised:
    errno = error.errno if isinstance(error, KernelError) else 0
    return Raised(type(error), str(error), errno)


def freeze(value: Any) -> Any:
    """`value` with its lists as tuples and its sets as frozen ones."""
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, list) or type(value) is tuple:
        return tuple(freeze(one) for one in value)
    return value


Ask = Callable[[Call], Any]
"""Puts a call to the world; returns the answer, or raises the error it is."""


class Client:
    """Stands for a part of the world: each method called on it is a `Call`."""

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


class RemoteSystem(Client):
    """Stands for the host."""

    def namespaces(self) -> Generator[Any]:
        """Yield no namespace: there is one, and it has been looked at."""
        yield from ()

    def open_process(self, _: object) -> int:
        """Open something that can be closed: a process that binds itself lives."""
        return os.open(os.devnull, os.O_RDONLY)


class RemoteKernel(Client):
    """Stands for a namespace of the kernel."""

    def ports(self, _: object) -> int:
        # Never near the limit in a scenario; the number itself would only keep
        # states apart that have the same future.
        return 0

    def set_links(self, changes: Any) -> None:
        # Each message is a step, as in rtnl.set_messages: others come in between.
        for change in changes:
            for message in _messages(change):
                self._put("set_links", ([message],), {})

    def create_tap(self, *args: object, **named: object) -> tuple[int, ...]:
        # No descriptor is real here, so none is handed out to be closed.
        self._put("create_tap", args, named)
        return ()

    def open_macvtap(self, *args: object, **named: object) -> tuple[int, ...]:
        self._put("open_macvtap", args, named)
        return ()


class RemoteLedger(Client):
    """Stands for the ledger. What a transaction asks back is asked by the actor."""

    def named(self, name: str) -> list[Any]:
        """Return the leases with a name, in a list of the caller's own."""
        return [*self._put("named", (name,), {})]

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
            call = call._replace(told=(*call.told, freeze(value)))
        return answer
