# SPDX-License-Identifier: Apache-2.0
"""Each kind of frame through real taps: it passes if the table says so."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import guests, shell
from lab.frame_kinds import frame_kinds
from lab.frame_kinds.kind import ADDRESSES, OTHER_MAC, FrameKind
from lab.frame_kinds.page import PAGE, page
from lab.guests import GuestBridge, Leased

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


def wrong(lab: GuestBridge, guest: Leased, passes: str) -> list[str]:
    """The kinds that do not arrive as they should: in the column that is named."""
    every = frame_kinds(guest.mac)
    expected = Counter(
        kind.frame for kind in every if _should(kind, passes) and not any(kind.request)
    )
    arrived: Counter[bytes] = Counter()
    mistakes = []
    for kind in every:
        guest.send(kind.frame, kind.request)
        if any(kind.request):
            # The host writes the checksum, so the frame that arrives is another.
            if bool(lab.until_mark(lab.peer)) is not _should(kind, passes):
                mistakes.append(f"{kind.group}: {kind.name}")
        else:
            arrived.update(lab.until_mark(lab.peer))
    return mistakes + [
        f"{kind.group}: {kind.name}"
        for kind in every
        if not any(kind.request) and arrived[kind.frame] != expected[kind.frame]
    ]


def _should(kind: FrameKind, column: str) -> bool:
    if column == "bridged":
        return kind.bridged
    return kind.passes[column == "addresses"]


MODES: dict[str, tuple[dict[str, Any], str]] = {
    "no filter": ({}, "bridged"),
    "isolated": ({"isolated": True}, "bridged"),
    "no learning": ({"learning": False}, "bridged"),
    "MAC": ({"filter": True}, "mac"),
    "MAC, isolated": ({"filter": True, "isolated": True}, "mac"),
    "MAC and addresses": ({"filter": True, "addresses": ADDRESSES}, "addresses"),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_kind_passes_or_not(lab: GuestBridge, mode: str) -> None:
    wiring, column = MODES[mode]
    assert wrong(lab, lab.guest(**wiring), column) == []


# Without a filter, br_netfilter drops malformed packets itself.
@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if MODES[mode][1] != "bridged"]
)
@pytest.mark.skipif(
    not BRIDGE_NETFILTER.exists(), reason="this kernel has no br_netfilter"
)
def test_each_kind_passes_or_not_beside_br_netfilter(
    lab: GuestBridge, mode: str
) -> None:
    wiring, column = MODES[mode]
    BRIDGE_NETFILTER.write_text("1")
    assert wrong(lab, lab.guest(**wiring), column) == []


def test_the_bridge_learns_no_forged_mac_from_any_of_them(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    for kind in frame_kinds(guest.mac):
        guest.send(kind.frame, kind.request)
    assert OTHER_MAC not in shell.sh("bridge fdb show br br0")


def test_every_kind_reaches_a_filtered_guest(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True, addresses=ADDRESSES)
    sent = [
        kind.frame
        for kind in frame_kinds(lab.peer.mac)
        if kind.bridged and not any(kind.request)
    ]
    assert lab.arrive(lab.peer, sent, guest) == sent


def test_there_are_many_kinds_and_each_has_a_name() -> None:
    every = frame_kinds("52:54:00:12:34:56")
    assert len(every) >= 300
    names = Counter((kind.group, kind.name) for kind in every)
    assert [name for name, count in names.items() if count > 1] == []


def test_the_page_shows_this_table() -> None:
    assert PAGE.read_text("utf-8") == page(), (
        "to update it: python -m lab.frame_kinds.page"
    )
