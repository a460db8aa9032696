# SPDX-License-Identifier: Apache-2.0
"""Find the problems of a fleet, as this host sees them, each with its remedy.

Looks, and changes nothing. No clock of another host is believed.
"""

from collections.abc import Iterator

from tapster.errors import TapsterError
from tapster.fleet import keys, registration, steps
from tapster.fleet.etcd import Etcd, EtcdRefusal
from tapster.fleet.fleet import Overview
from tapster.fleet.member import LOW, Member
from tapster.fleet.registration import PushAction, RecordState
from tapster.fleet.store import FleetUnavailable
from tapster.model import Problem

PERMISSION_DENIED = 7
"""gRPC's code. A host may read its own leases; an operator may read all."""
STALE = 300.0
"""Seconds after which a change that was not pushed is reported."""
CERTIFICATE_DAYS = 30
ROOM = 0.8
"""Of the store's quota, which is 2 GiB unless it was set."""
QUOTA = 2 << 30
_ONE_OF_TWO = "no device is touched; end one of the VMs, or give it another MAC"


def examine(member: Member, now: float) -> list[Problem]:
    """Return everything that is wrong."""
    problems = [*_ledger(member, now)]
    try:
        problems += _permit(member)
        problems += _registrations(member)
        overview = Overview(member.store, member.where)
        problems += _hosts(overview)
        problems += _inventory(overview)
        if isinstance(member.store, Etcd):
            problems += examine_etcd(member.store, member.where.root, now)
    except FleetUnavailable as error:
        problems.append(
            Problem(
                f"the store cannot be used: {error}",
                "see to that; VMs start and stop, and tapster fleet sync catches up",
            )
        )
    return problems


def _ledger(member: Member, now: float) -> Iterator[Problem]:
    book = member.book
    for entry in book.entries("WHERE problem != ''"):
        yield Problem(
            f"MAC {entry.record.mac} of {entry.row.name or entry.record.lease} "
            f"(VM {entry.record.vm}): {entry.problem}",
            _ONE_OF_TWO
            if entry.conflicts
            else "tapster fleet sync compares the MAC when the store answers",
        )
    stale = [entry for entry in book.dirty() if now - entry.changed > STALE]
    if stale:
        oldest = max(now - entry.changed for entry in stale)
        yield Problem(
            f"{len(stale)} changes were not pushed, the oldest for {oldest:.0f} s",
            "tapster fleet sync, from tapsterd or tapster-fleet.timer",
        )
    for block, ours in book.blocks().items():
        if not ours:
            yield Problem(
                f"block {block} belongs to another host in the store; this host gives "
                "out none of its MACs any more",
                "if the store was restored from a backup: restart VMs with such a MAC",
            )
    if (free := book.free_macs(now)) < LOW:
        yield Problem(
            f"only {free} MACs are left in the blocks of this host",
            "tapster fleet sync takes another block",
        )


def _permit(member: Member) -> Iterator[Problem]:
    key = member.where.permit(member.me.host)
    try:
        steps.own_permit(member.where, member.me, member.store.read([key]))
    except steps.NoPermit as error:
        yield Problem(str(error), "until then, no change of this host is pushed")


def _registrations(member: Member) -> Iterator[Problem]:
    """Find running leases whose registrations the store gives to another host."""
    host, running = member.me.host, member.book.running()
    entries = member.book.entries("WHERE fleet_record.state = 'active' AND NOT dirty")
    for entry in entries:
        record = entry.record
        key = member.where.registration(record.segment, record.mac)
        found = keys.registration_of(key, member.store.read([key]).get(key))
        found = registration.known_here(host, found, running)
        standing = registration.stand(host, record, found, lost=False)
        action = registration.decide(RecordState.ACTIVE, standing)
        if action is PushAction.REPORT and found is not None:
            yield Problem(
                f"{entry.row.name} has MAC {record.mac} of VM {record.vm}, and the "
                f"store says: VM {found.vm} on host {found.host} ({found.state})",
                "no device is touched; end the VM where it should not run",
            )
        elif standing is not registration.Standing.OURS:
            yield Problem(
                f"{entry.row.name} has MAC {record.mac}, and the store has no "
                "registration of it any more",
                "tapster fleet sync --all",
            )


def _inventory(overview: Overview) -> Iterator[Problem]:
    """Find MACs that two running leases have, if this user may read the inventory."""
    seen: dict[tuple[str, str], str] = {}
    try:
        rows = [*overview.rows()]
    except EtcdRefusal as error:
        if error.code != PERMISSION_DENIED:
            raise
        return
    for host, _, row in rows:
        here = f"{row.name} on {host} (VM {row.vm}, owner {row.owner or '-'})"
        if other := seen.get((row.segment, row.mac)):
            yield Problem(
                f"MAC {row.mac} is in segment {row.segment} twice: {other} and {here}",
                _ONE_OF_TWO,
            )
        seen[row.segment, row.mac] = here


def _hosts(overview: Overview) -> Iterator[Problem]:
    """Find hosts that were declared dead and are alive."""
    for status in overview.hosts():
        if status.fenced and status.session and status.session.boot == status.fenced:
            yield Problem(
                f"host {status.name} was declared dead by {status.by!r} and is alive",
                "its VMs may run twice: stop them, then restart the host, or "
                f"tapster fleet fence --lift {status.name}",
            )


def examine_etcd(store: Etcd, root: str, now: float) -> Iterator[Problem]:
    if store.is_open_to_all(f"{root}/fleet"):
        yield Problem(
            "the store answers callers without a password",
            "etcdctl auth enable; if it is enabled, the certificate of an etcd server "
            "is named after a user such as root: give servers certificates without CN",
        )
    for alarm in store.alarms():
        yield Problem(
            f"the store raises the alarm {alarm}",
            "etcdctl compact, etcdctl defrag, then etcdctl alarm disarm",
        )
    versions = set()
    for endpoint, status in store.members():
        if isinstance(status, str):
            yield Problem(f"a member does not answer: {status}", f"see to {endpoint}")
            continue
        versions.add(status.get("version", "?"))
        if (size := int(status.get("dbSize", 0))) > ROOM * QUOTA:
            yield Problem(
                f"{endpoint} uses {size >> 20} MiB of a quota that is 2048 unless set",
                "etcd --auto-compaction-retention, etcdctl defrag, "
                "--quota-backend-bytes",
            )
    if len(versions) > 1:
        shown = ", ".join(sorted(versions))
        yield Problem(f"the members have several versions: {shown}", "upgrade the rest")
    try:
        ends = store.certificate_ends()
    except TapsterError:
        return
    if ends is not None and (days := (ends - now) / 86400) < CERTIFICATE_DAYS:
        yield Problem(
            f"the certificate of the store ends in {days:.0f} days", "renew it"
        )
