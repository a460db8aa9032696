# SPDX-License-Identifier: Apache-2.0
"""The daemon's upkeep as an actor: it repairs what other programs change.

The actor runs the real `Upkeep`. It waits for reports of the kernel, as the daemon's
loop does, and reads the reported devices when it is woken. Several changes that come
before that are one report, as on netlink. If the daemon has something to retry, it is
also woken when no lease is worked on. If reports were lost, it recovers.
"""

from functools import partial
from typing import Any

from explorer.calls import Call
from explorer.script import USUAL, Actor, Failed, Op, Parts, Script
from tapster.daemon.metrics import Metrics
from tapster.daemon.repairs import LAST_RETRY
from tapster.daemon.upkeep import Upkeep
from tapster.errors import TapsterError
from tapster.kernel.port import HERE, WatchReport
from tapster.ledger import FIRST_IFINDEX
from tapster.model import Link


def daemon(
    *,
    parts: Parts = USUAL,
    reports: int = 2,
    upkeep: type[Upkeep] = Upkeep,
    recovers: bool = True,
) -> Script:
    """A daemon that repairs devices until it has seen so many reports.

    Unless it `recovers`, it does nothing when reports were lost.
    """

    def run(actor: Actor) -> Failed | None:
        try:
            _keep_up(upkeep, actor, parts, reports, recovers)
        except TapsterError as error:
            return Failed(type(error).__name__)
        return None

    return Script("daemon", (Op("upkeep", run),))


def _keep_up(
    kind: type[Upkeep], actor: Actor, parts: Parts, reports: int, recovers: bool
) -> None:
    operations = actor.operations(parts)
    namespace: Any = operations.context.namespace
    log: Any = _ignore
    seen = 0
    upkeep = kind(
        operations,
        Metrics(),
        log,
        on_event=_ignore,
        watch_process=_ignore,
        forget_process=_ignore,
        submit=_ignore,
        clock=lambda: seen * LAST_RETRY,
    )
    upkeep.reconnect = True
    namespace.changed_links()  # the kernel reports changes from here on
    upkeep.recover()
    for seen in range(1, reports + 1):  # noqa: B007 - the clock reads it
        retries = (True,) if upkeep.retries else ()
        reported = actor.ask(Call("kernel", "await_changes", retries))
        if reported is None:
            if recovers:
                upkeep.recover()
            continue
        changed = sorted(index for index in reported if index >= FIRST_IFINDEX)
        links = {index: namespace.link(index) for index in changed}
        decode: dict[int, Any] = {
            index: link and partial(_same, link) for index, link in links.items()
        }
        upkeep.look_at(WatchReport({HERE: decode}, set(), {}, {}))
        upkeep.retry()


def _ignore(*_: object, **__: object) -> None:
    """Do nothing."""


def _same(link: Link) -> Link:
    return link
