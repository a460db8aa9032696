# SPDX-License-Identifier: Apache-2.0
"""Find the problems of a host, each with its remedy. Changes nothing."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from tapster import hazards, names
from tapster.errors import OF_ONE_LEASE, ServiceUnavailable, TapsterError
from tapster.kernel import failure, tun
from tapster.model import Lease, Link, Problem, State, parse_stamp
from tapster.operations.decision import UNREPAIRED, Action, is_ours
from tapster.operations.operations import Operations

NUMBER = os.makedev(10, 200)
"""The number of /dev/net/tun: Documentation/networking/tuntap.rst of the kernel."""
FEW = 5
"""How many devices of another ledger a problem names."""
LATE = 10.0
"""Seconds after the end of FIN WAIT in which the reaper may not have deleted a device
yet."""


def examine(operations: Operations) -> list[Problem]:
    """Return every problem, as seen from the operations' network namespace."""
    ledger, namespace = operations.context.ledger, operations.context.namespace
    with operations.context.gate:
        # Before the leases: a lease is recorded before its device is made.
        links = namespace.links()
        own = (namespace.netns.boot, namespace.netns.cookie)
        here = [
            lease
            for lease in ledger.leases()
            if (lease.netns.boot, lease.netns.cookie) == own
        ]
        checks = [
            _privileges(),
            _tun(),
            _writable(ledger.path),
            _damages(operations),
            _unrepaired(operations),
            _undetermined(operations, links, here),
            _moved(operations, links, here),
            _opened(ledger.id, links, here),
            _left_in_backends(operations),
            _leftovers(ledger.id, links, here),
            _squatters(ledger.templates(), links, here),
            *hazards.checks(namespace, links, here),
        ]
        problems = [problem for check in checks for problem in _found(check)]
        return [*dict.fromkeys(problems)]


def _found(check: Iterator[Problem]) -> Iterator[Problem]:
    """Yield what a check finds. A check that fails is a problem, and hides no other."""
    try:
        yield from check
    except OF_ONE_LEASE as error:
        remedy = "remove the cause, then: tapster doctor"
        yield Problem(f"not everything could be looked at: {error}", remedy)


def _damages(operations: Operations) -> Iterator[Problem]:
    for damage in operations.context.ledger.check():
        yield Problem(f"the ledger is damaged: {damage}", "restore it from a backup")


def _writable(ledger: str) -> Iterator[Problem]:
    """Report what of a ledger every user may change.

    SQLite gives the files beside a ledger the ledger's mode. In a directory as /tmp
    nobody can replace the files of others.
    """
    for path in (os.path.dirname(ledger), ledger, f"{ledger}.lock"):
        with suppress(OSError):
            mode = os.stat(path).st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                yield Problem(
                    f"{path} can be changed by every user of the host: a user can "
                    "change each lease, and so the devices of all VMs",
                    f"chmod o-w {path}",
                )


def _privileges() -> Iterator[Problem]:
    needed = {
        "CAP_NET_ADMIN": "nothing works",
        "CAP_SYS_ADMIN": "no --netns, macvtap, filter or outbound rate works",
        "CAP_MKNOD": "macvtap does not work",
    }
    for capability, consequence in needed.items():
        # In a user namespace all but device nodes works, on devices of its own.
        nodes = capability == "CAP_MKNOD" and failure.in_user_namespace()
        missing = failure.lacks(capability)
        if missing is not None and (nodes or not failure.has(capability)):
            what, _, remedy = missing.partition(": ")
            yield Problem(f"{what} is missing: {consequence}", remedy)


def _tun() -> Iterator[Problem]:
    try:
        node = os.stat(tun.DEVICE)
        # Not opened before it is known: the end of a pipe would be waited for.
        if stat.S_ISCHR(node.st_mode) and node.st_rdev == NUMBER:
            os.close(os.open(tun.DEVICE, os.O_RDONLY | os.O_CLOEXEC))
        else:
            yield Problem(
                "/dev/net/tun is not the device with the number 10:200: no tap can be "
                "made",
                "rm /dev/net/tun && mknod -m 666 /dev/net/tun c 10 200",
            )
    except FileNotFoundError:
        yield Problem("/dev/net/tun is missing: no tap can be made", tun.REMEDY)
    except OSError as error:
        yield Problem(
            f"/dev/net/tun cannot be opened: {error.strerror}",
            "allow this user to open it, and load the module: modprobe tun",
        )


def _unrepaired(operations: Operations) -> Iterator[Problem]:
    try:
        repairs = operations.recover(dry_run=True)
    except TapsterError as error:
        yield Problem(str(error), "remove the cause, then: tapster recover")
        return
    rewired = [lease for lease, action in repairs if action is Action.REWIRE]
    differences = operations.look.all_differences(rewired)
    for lease, action in repairs:
        which = f"lease {lease.name} ({lease.id}, {lease.state})"
        if action is Action.REWIRE:
            for backend, difference in differences.get(lease.id, {}).items():
                if backend in UNREPAIRED:
                    continue  # `_undetermined` reports it, with its own remedy
                problem = f"{which} is not as requested: {backend}: {difference}"
                yield Problem(problem, "tapster recover")
            continue
        if action is Action.CLOSE and _is_just_due(operations, lease):
            continue
        yield Problem(
            f"{which} does not agree with the kernel: recover would {action} it",
            "tapster recover",
        )


def _is_just_due(operations: Operations, lease: Lease) -> bool:
    if lease.state is not State.FIN_WAIT or lease.deadline is None:
        return False
    return operations.context.system.boottime() < lease.deadline + LATE


def _moved(
    operations: Operations, links: list[Link], leases: list[Lease]
) -> Iterator[Problem]:
    there = {link.ifindex for link in links}
    lost = [
        lease
        for lease in leases
        if lease.state is State.ACTIVE and lease.ifindex not in there
    ]
    for lease in lost:
        if where := operations.look.differences(lease).get("device"):
            yield Problem(
                f"lease {lease.name} ({lease.id}) has lost its device: {where}",
                f"move it back, or: tapster rm {lease.id}",
            )


def _opened(ledger: str, links: list[Link], leases: list[Lease]) -> Iterator[Problem]:
    """Report waiting devices that a process opened after their release."""
    by_index = {link.ifindex: link for link in links}
    for lease in leases:
        link = by_index.get(lease.ifindex)
        if (
            lease.state is State.FIN_WAIT
            and not lease.open_at_release
            and link
            and link.open
            and is_ours(ledger, lease, link)
        ):
            yield Problem(
                f"{lease.name} was released, and then a process opened it: a VM that "
                "has it is not on the network",
                "end that VM; its next start needs a device of its own",
            )


def _undetermined(
    operations: Operations, links: list[Link], leases: list[Lease]
) -> Iterator[Problem]:
    by_index = {link.ifindex: link for link in links}
    for lease in leases:
        link = by_index.get(lease.ifindex)
        if link and (changed := operations.look.beyond_repair(lease, link)):
            yield Problem(
                f"lease {lease.name} ({lease.id}) is not as requested: {changed.what}",
                changed.remedy,
            )
        if unknown := operations.look.undetermined(lease, link):
            yield Problem(
                f"lease {lease.name} ({lease.id}): {unknown}",
                "run tapster outside containers, or if its VM has ended: "
                f"tapster rm {lease.id}",
            )


def _left_in_backends(operations: Operations) -> Iterator[Problem]:
    with suppress(ServiceUnavailable):  # recover has reported it
        for _, leftover in operations.recover.leftovers():
            whose = (
                f"left by lease {leftover.lease}" if leftover.lease else "of no lease"
            )
            yield Problem(f"{leftover.description}, {whose}", "tapster recover")


def _leftovers(
    ledger: str, links: list[Link], leases: list[Lease]
) -> Iterator[Problem]:
    known = {lease.id for lease in leases}
    foreign: dict[str, list[str]] = {}
    for link in links:
        if (stamp := parse_stamp(link.alias)) is None:
            continue
        if stamp.ledger != ledger:
            foreign.setdefault(stamp.ledger, []).append(link.name)
        elif stamp.lease not in known:
            yield Problem(
                f"device {link.name} carries this ledger's stamp, but has no lease",
                f"only if no VM uses it: tapster doctor --remove {ledger} {link.name}",
            )
    for other, devices in foreign.items():
        yield Problem(
            f"{_some(devices)} to another ledger, {other}",
            "none is needed if that ledger is in use; only if it is lost, for all of "
            f"them or for those named after it: tapster doctor --remove {other}",
        )


def _some(devices: list[str]) -> str:
    """Return a phrase for devices that names the first few."""
    if len(devices) == 1:
        return f"device {devices[0]} belongs"
    more = ", ..." if len(devices) > FEW else ""
    return f"{len(devices)} devices ({', '.join(devices[:FEW])}{more}) belong"


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
                    f"device {link.name} is foreign; its name fits {template}",
                    f"none is needed: {template} skips it; to use the name, delete it",
                )
                break
