# SPDX-License-Identifier: Apache-2.0
"""A client's call of a method, and the answer."""

from collections.abc import Callable, Sequence

from tapster.daemon.policy import Caller
from tapster.errors import RequestError
from tapster.light import Any, NamedTuple
from tapster.operations.devices import Opened
from tapster.rpc.description import Nothing
from tapster.rpc.wire import LISTED, Device


class Call(NamedTuple):
    """One call of a client, with the descriptors that came with it."""

    caller: Caller
    pidfd: int
    """Of the calling process; -1 if there is none."""
    parameters: Any
    fds: Sequence[int]


class Answer(NamedTuple):
    """An answer or a part of an answer, with descriptors to send and then close."""

    parameters: Any = Nothing()
    fds: tuple[int, ...] = ()
    undo: Callable[[], None] | None = None
    """Undoes the request, in case the client does not receive the answer."""
    next_page: "Callable[[], Answer] | None" = None
    """Fetches the next part."""


class Unfinished(NamedTuple):
    """In place of an answer: the call is to go on after the calls that wait."""

    go_on: "Callable[[], Answer | Unfinished]"


Method = Callable[[Call], Answer | Unfinished]


def distinct(ids: Sequence[str]) -> list[str]:
    """Return the ids of leases that a call names, each once. Raises RequestError."""
    each = [*dict.fromkeys(ids)]
    if len(each) > LISTED:
        raise RequestError(
            f"a call names at most {LISTED} leases, not {len(each)}: call again "
            "for the others"
        )
    return each


def placed(opened: Sequence[Opened]) -> tuple[Device, ...]:
    """Return the devices, with the places of their descriptors in the answer."""
    devices: list[Device] = []
    at = 0
    for lease, fds, vhost_fds in opened:
        after = at + len(fds)
        end = after + len(vhost_fds)
        devices.append(Device(lease, tuple(range(at, after)), tuple(range(after, end))))
        at = end
    return tuple(devices)
