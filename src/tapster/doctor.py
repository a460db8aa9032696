# SPDX-License-Identifier: Apache-2.0
"""What is wrong on a host, and what would mend it. Looks, and changes nothing."""

from collections.abc import Iterator
from contextlib import suppress

from tapster import names
from tapster.backends.bridge import MAX_PORTS
from tapster.errors import ServiceUnavailable, TapsterError
from tapster.kernel import failure
from tapster.kernel.port import Namespace
from tapster.model import Lease, Link, Problem, parse_stamp
from tapster.operations.decision import Action
from tapster.operations.operations import Operations

NEARLY_FULL = MAX_PORTS * 9 // 10
"""Ports of a bridge from which on a word of warning is due."""


def examine(operations: Operations) -> list[Problem]:
    """Everything that is wrong, as seen from the operations' network namespace."""
    ledger, namespace = operations.context.ledger, operations.context.namespace
    with operations.context.gate:
        links = (
            namespace.links()
        )  # before the leases, each of which precedes its device
        own = (namespace.netns.boot, namespace.netns.cookie)
        here = [
            lease
            for lease in ledger.leases()
            if (lease.netns.boot, lease.netns.cookie) == own
        ]
        return [
            *_privileges(),
            *_tun(),
            *(
                Problem(f"the ledger is damaged: {said}", "restore it from a backup")
                for said in ledger.check()
            ),
            *_unmended(operations),
            *_strays(operations),
            *_leftovers(ledger.id, links, here),
            *_squatters(ledger.templates(), links, here),
            *_bridges(namespace, links, here),
        ]


def _privileges() -> Iterator[Problem]:
    needed = {
        "CAP_NET_ADMIN": "nothing works",
        "CAP_SYS_ADMIN": "no --netns, macvtap, filter or outbound rate works",
        "CAP_MKNOD": "macvtap does not work",
    }
    for capability, consequence in needed.items():
        if not failure.has(capability):
            yield Problem(
                f"{capability} is missing: {consequence}", "run tapster as root"
            )


def _tun() -> Iterator[Problem]:
    try:
        with open("/dev/net/tun", "rb"):
            return
    except FileNotFoundError:
        yield Problem("/dev/net/tun is missing: no tap can be made", "modprobe tun")
    except OSError as error:
        yield Problem(
            f"/dev/net/tun cannot be opened: {error.strerror}",
            "let this user open it, and load the module: modprobe tun",
        )


def _unmended(operations: Operations) -> Iterator[Problem]:
    try:
        repairs = operations.recover(dry_run=True)
    except TapsterError as error:
        yield Problem(str(error), "see to that, then: tapster recover")
        return
    for lease, action in repairs:
        which = f"lease {lease.name} ({lease.id}, {lease.state})"
        if action is Action.REWIRE:
            for backend, wrong in operations.look.differences(lease).items():
                problem = f"{which} is not wired as it should be: {backend}: {wrong}"
                yield Problem(problem, "tapster recover")
            continue
        yield Problem(
            f"{which} does not agree with the kernel: {action}", "tapster recover"
        )


def _strays(operations: Operations) -> Iterator[Problem]:
    with suppress(ServiceUnavailable):  # it has been said
        for _, stray in operations.recover.leftovers():
            problem = f"{stray.description} is left of lease {stray.lease}"
            yield Problem(problem, "tapster recover")


def _leftovers(
    ledger: str, links: list[Link], leases: list[Lease]
) -> Iterator[Problem]:
    known = {lease.id for lease in leases}
    for link in links:
        if (stamp := parse_stamp(link.alias)) is None:
            continue
        if stamp.ledger != ledger:
            yield Problem(
                f"device {link.name} belongs to another ledger, {stamp.ledger}",
                f"only if that ledger is lost: tapster doctor --remove {stamp.ledger}",
            )
        elif stamp.lease not in known:
            yield Problem(
                f"device {link.name} carries our stamp, but has no lease of ours",
                f"only if no machine uses it: tapster doctor --remove {ledger}",
            )


def _squatters(
    templates: list[str], links: list[Link], leases: list[Lease]
) -> Iterator[Problem]:
    ours = {lease.ifindex for lease in leases}
    for link in links:
        if link.ifindex in ours or parse_stamp(link.alias):
            continue
        for template in templates:
            if names.parse(template).number(link.name) is not None:
                yield Problem(
                    f"device {link.name} is foreign, and in the way of {template}",
                    f"none is needed; to have the name, end whoever made {link.name}",
                )
                break


def _bridges(
    namespace: Namespace, links: list[Link], leases: list[Lease]
) -> Iterator[Problem]:
    used = {lease.wiring.bridge for lease in leases}
    for link in links:
        if link.name in used and not link.up:
            yield Problem(
                f"bridge {link.name} is down, with machines on it",
                f"ip link set {link.name} up",
            )
        if link.kind == "bridge" and (ports := namespace.ports(link)) >= NEARLY_FULL:
            yield Problem(
                f"bridge {link.name} has {ports} of {MAX_PORTS} possible ports",
                "spread the machines over several bridges",
            )
