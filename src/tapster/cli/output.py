# SPDX-License-Identifier: Apache-2.0
"""What the command prints: tables for people, versioned JSON for programs.

The JSON is a contract. Within version 1 a field may be added; none changes its
meaning or goes.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from tapster.kernel.netns import NAMED
from tapster.model import HistoryEntry, Lease, Link, Wiring

VERSION = 1


def print_json(**content: Any) -> None:
    """Print one versioned document."""
    import json  # only here: `tapster add` mostly does without

    json.dump({"version": VERSION, **content}, sys.stdout, indent=2)
    print()


def print_json_line(**content: Any) -> None:
    """Print one versioned document on a line of its own, at once."""
    import json

    print(json.dumps({"version": VERSION, **content}), flush=True)


def lease_json(lease: Lease) -> dict[str, Any]:
    """A lease as programs see it."""
    return {
        "id": lease.id,
        "name": lease.name,
        "ifindex": lease.ifindex,
        "kind": lease.kind,
        "state": lease.state,
        "owner": lease.owner,
        "mac": lease.mac,
        "lower": lease.lower,
        "mode": lease.mode,
        "queues": lease.queues,
        "vnet_hdr": lease.vnet_hdr,
        **wiring_json(lease.wiring),
        "netns": netns_name(lease.netns.path) or None,
        "created": timestamp(lease.created),
        "released": timestamp(lease.released),
        "fin_wait": lease.fin_wait,
        "fin_wait_left": wait_left(lease),
        "pid": lease.process.pid if lease.process else None,
        "caller_uid": lease.caller_uid,
        "on_close": lease.on_close,
        "placeholder": lease.placeholder,
    }


def wiring_json(wiring: Wiring) -> dict[str, Any]:
    """What a device is connected to, as programs see it."""
    return wiring._asdict() | {
        "external_ids": dict(wiring.external_ids),
        "inbound": wiring.inbound and wiring.inbound._asdict(),
        "outbound": wiring.outbound and wiring.outbound._asdict(),
    }


def link_json(link: Link | None) -> dict[str, Any] | None:
    """A device as the kernel shows it."""
    return None if link is None else link._asdict()


def tenure_json(entry: HistoryEntry) -> dict[str, Any]:
    """A line of the history as programs see it."""
    return {
        **entry._asdict(),
        "netns": netns_name(entry.netns) or None,
        "created": timestamp(entry.created),
        "released": timestamp(entry.released),
        "ended": timestamp(entry.ended),
    }


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need to be."""
    print("\n".join(table(heads, rows)))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [
        max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))
    ]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in [heads, *rows]
    ]


def wait_left(lease: Lease) -> float | None:
    """The seconds left of a lease's FIN WAIT; None before its release."""
    if lease.deadline is None:
        return None
    left = lease.deadline - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(max(left, 0.0), 3)


def netns_name(path: str) -> str:
    """How people call the namespace at `path`."""
    return path.removeprefix(f"{NAMED}/")


def timestamp(seconds: float | None) -> str | None:
    """Wall clock as RFC 3339, in UTC."""
    if seconds is None:
        return None
    from datetime import UTC, datetime  # only here: `tapster add` does without

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
