# SPDX-License-Identifier: Apache-2.0
"""Elements of leases come and go with them, and with nothing else."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

import tapster
from lab import guests, iproute, library, nftables, shell
from lab.frames import ARP, BROADCAST, arp, ether
from lab.guests import Guest, GuestBridge
from tapster import Action, Host, Lease, Rate, State, Tap, doctor
from tapster.backends import filter
from tapster.backends.table import TableBackend
from tapster.kernel import nft
from tapster.kernel.port import LinkChange

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MINE, OTHER = "192.0.2.5", "192.0.2.6"
FILTERED = Tap(bridge="br0", filter=True, addresses=(MINE, "2001:db8::5"))
WIRING = {"filter": True, "addresses": FILTERED.addresses}
LIMITED = Tap(bridge="br0", outbound=Rate(1000, 2000, 4000))


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


def table(host: Host, backend: str) -> str:
    context = host.operations.context
    return f"tapster_{context.ledger.id}_{backend}"


def left(host: Host) -> list[Any]:
    """The elements of a ledger's tables."""
    return [
        element
        for backend in ("filter", "outbound")
        for found in nftables.elements(table(host, backend)).values()
        for element in found
    ]


def announce(guest: Guest, address: str) -> bytes:
    return ether(guest.mac, BROADCAST, ARP, arp(guest.mac, address, address))


def shown(host: Host, backend: str, set: str) -> list[str]:
    """The devices in a set, as nft calls them."""
    elements = nftables.elements(table(host, backend))[set]
    return [element["elem"]["val"] for element in elements]


def taken(host: Host, spec: Tap) -> Lease:
    lease = library.acquire(host, spec)
    return lease


# In force before the port


@pytest.mark.parametrize("spec", [FILTERED, LIMITED])
def test_the_elements_exist_before_the_device_is_up_or_on_its_bridge(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch, spec: Tap
) -> None:
    seen: list[int] = []
    namespace = lab.host.operations.context.namespace
    set_links = namespace.set_links

    def look_first(changes: Sequence[LinkChange]) -> None:
        if any(change.up or change.master for change in changes):
            seen.append(len(left(lab.host)))
        set_links(changes)

    monkeypatch.setattr(namespace, "set_links", look_first)
    taken(lab.host, spec)
    assert seen == [len(left(lab.host))]
    assert seen[0] >= 3


# Nothing remains


@pytest.mark.parametrize("spec", [FILTERED, LIMITED])
def test_a_release_leaves_no_element(lab: GuestBridge, spec: Tap) -> None:
    lease = taken(lab.host, spec)
    assert left(lab.host)
    lab.host.release(lease.id)
    assert left(lab.host) == []
    assert lab.host.find(lease.id).backends == ()
    lab.host.release(lease.id)
    lab.host.reap(now=True)


def test_a_release_takes_what_a_change_put_there_before_it_was_killed(
    lab: GuestBridge,
) -> None:
    """The ledger has not heard of the change: it knows of less than there is."""
    lease = taken(lab.host, FILTERED)
    more = FILTERED._replace(addresses=(*FILTERED.addresses, OTHER)).wiring
    context = lab.host.operations.context
    TableBackend(context.ledger.id, filter.PURPOSE).attach(
        context.namespace, lease._replace(wiring=more)
    )
    assert lab.host.differences(lease)
    lab.host.release(lease.id)
    assert left(lab.host) == []


@pytest.mark.parametrize("spec", [FILTERED, LIMITED])
def test_an_acquire_that_fails_leaves_no_element(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch, spec: Tap
) -> None:
    namespace = lab.host.operations.context.namespace
    set_links = namespace.set_links

    def refuse(changes: Sequence[LinkChange]) -> None:
        if any(change.master for change in changes):
            assert left(lab.host)
            raise tapster.KernelError(5, "joining the bridge")
        set_links(changes)

    monkeypatch.setattr(namespace, "set_links", refuse)
    with pytest.raises(tapster.KernelError, match="joining"):
        lab.host.acquire(spec)
    assert left(lab.host) == []
    assert len(lab.host.leases()) == 2


def test_the_elements_of_a_deleted_device_are_deleted_by_its_ifindex(
    lab: GuestBridge,
) -> None:
    lease = taken(lab.host, FILTERED)
    shell.sh(f"ip link del {lease.name}")
    shell.sh(f"ip link add index {lease.ifindex} name foreign type veth")
    lab.host.release(lease.id)
    assert left(lab.host) == []
    assert "foreign" in iproute.links()


def test_elements_that_a_placeholder_outlived_are_deleted_later(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the lease has another ifindex."""
    lease = taken(lab.host, FILTERED)
    shell.sh(f"ip link del {lease.name}")
    with monkeypatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise tapster.ServiceUnavailable("not now")

        patch.setattr(TableBackend, "detach", refuse)
        lab.host.release(lease.id)
    assert lab.host.find(lease.id).ifindex != lease.ifindex
    assert len(left(lab.host)) == 8
    lab.host.reap(now=True)
    assert left(lab.host) == []


def test_the_elements_of_a_renamed_device_are_deleted(
    lab: GuestBridge,
) -> None:
    first, second = taken(lab.host, FILTERED), taken(lab.host, FILTERED)
    for name, new in ((first.name, "swap"), (second.name, first.name)):
        shell.sh(f"ip link set {name} name {new}")
    shell.sh(f"ip link set swap name {second.name}")
    lab.host.release(first.id)
    (gate,) = nftables.elements(table(lab.host, "filter"))["ports"]
    assert gate["elem"]["val"] == first.name, "as the second is called now"
    lab.host.release(second.id)
    assert left(lab.host) == []


def test_no_device_is_mistaken_for_another_by_its_name(lab: GuestBridge) -> None:
    """nft takes the name 7 for that of a device, if there is one called so."""
    number = taken(lab.host, Tap()).ifindex + 1
    shell.sh(f"ip link add {number} type veth")
    lease = taken(lab.host, FILTERED)
    assert lease.ifindex == number
    (gate,) = nftables.elements(table(lab.host, "filter"))["ports"]
    assert gate["elem"]["val"] == lease.name
    assert lab.host.differences(lease) == {}
    lab.host.release(lease.id)
    assert left(lab.host) == []


def leave_behind(host: Host, ifindex: int) -> None:
    """What a lost lease had at an ifindex."""
    context = host.operations.context
    lost = host.leases()[0]._replace(id="0123456789abcdef", ifindex=ifindex)
    wiring = FILTERED._replace(addresses=(OTHER,)).wiring
    TableBackend(context.ledger.id, filter.PURPOSE).attach(
        context.namespace, lost._replace(wiring=wiring)
    )


def test_a_device_inherits_nothing_from_one_that_had_its_ifindex(
    lab: GuestBridge,
) -> None:
    leave_behind(lab.host, lab.host.leases()[-1].ifindex + 1)
    assert len(left(lab.host)) == 6
    guest = lab.guest(**WIRING)
    assert lab.passes(guest, announce(guest, MINE))
    assert not lab.passes(guest, announce(guest, OTHER))
    assert lab.host.differences(guest.lease) == {}
    lab.host.release(guest.lease.id)
    assert left(lab.host) == []


def test_recover_removes_what_is_left_of_a_lost_lease(
    lab: GuestBridge,
) -> None:
    """Even if another, which wants nothing of the backend, has its ifindex now."""
    leave_behind(lab.host, lab.peer.lease.ifindex)
    assert not lab.passes(lab.peer, announce(lab.peer, MINE))
    name = table(lab.host, "filter")
    nftables.nft(f"add element bridge {name} trunks {{ 77, lo, * }}")
    leftovers = lab.host.operations.recover.leftovers()
    found = {stray.lease: stray.description for _, stray in leftovers}
    assert set(found) == {"0123456789abcdef", ""}
    assert found[""] == f"3 elements of nftables table {name}"
    described = [problem.description for problem in lab.host.examine()]
    assert f"3 elements of nftables table {name}, of no lease" in described
    assert any(text.endswith(", left by lease 0123456789abcdef") for text in described)
    lab.host.recover()
    assert left(lab.host) == []
    assert lab.host.operations.recover.leftovers() == []
    assert lab.arrive(lab.peer, [announce(lab.peer, MINE)], lab.guest())


# Others

FOREIGN = """
table inet firewall {
    set blocked { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 } }
    chain input { type filter hook input priority 0; ip saddr @blocked drop; }
}
table bridge firewall {
    map ports { type ifname : verdict; elements = { "vnet0" : accept } }
    chain prerouting { type filter hook prerouting priority 0; iifname vmap @ports; }
}
"""


def test_tables_of_others_are_as_they_were(lab: GuestBridge, tmp_path: Path) -> None:
    (tmp_path / "foreign.nft").write_text(FOREIGN)
    shell.sh(f"nft -f {tmp_path}/foreign.nft")
    before = nftables.foreign()
    assert len(before) == 8
    lease = taken(lab.host, FILTERED._replace(outbound=Rate(1000)))
    lab.host.set(lease.id, addresses=(OTHER,), outbound=Rate(500))
    shell.sh(f"nft delete table bridge {table(lab.host, 'filter')}")
    lab.host.recover()
    assert nftables.foreign() == before
    lab.host.release(lease.id)
    lab.host.recover()
    lab.host.reap(now=True)
    assert nftables.foreign() == before


def test_two_ledgers_on_one_host_share_no_table(
    lab: GuestBridge, tmp_path: Path
) -> None:
    with Host(tmp_path / "other.db", reaper=library.no_reaper) as other:
        ours, theirs = taken(lab.host, FILTERED), taken(other, FILTERED)
        before = left(other)
        assert len(before) == len(left(lab.host)) == 8
        lab.host.release(ours.id)
        assert lab.host.operations.recover.leftovers() == []
        lab.host.recover()
        assert (left(lab.host), left(other)) == ([], before)
        assert other.differences(theirs) == {}


def test_two_leases_share_no_element(lab: GuestBridge) -> None:
    first, second = lab.guest(**WIRING), lab.guest(filter=True, addresses=(OTHER,))
    assert lab.passes(first, announce(first, MINE))
    assert not lab.passes(first, announce(first, OTHER))
    assert lab.passes(second, announce(second, OTHER))
    assert not lab.passes(second, announce(second, MINE))
    before = len(left(lab.host))
    lab.host.release(first.lease.id)
    assert len(left(lab.host)) == before - 8
    assert not lab.passes(second, announce(second, MINE))
    assert lab.host.differences(second.lease) == {}


def test_a_lease_with_a_rate_is_not_filtered_nor_the_other_way_round(
    lab: GuestBridge,
) -> None:
    limited, filtered = lab.guest(outbound=Rate(1000)), lab.guest(filter=True)
    assert lab.passes(limited, ether("52:54:00:66:66:66", BROADCAST, 0x88B5, bytes(46)))
    assert shown(lab.host, "outbound", "average") == [limited.lease.name]
    assert shown(lab.host, "filter", "ports") == [filtered.lease.name]


# What somebody does by hand

EDITS = {
    "an element gone": "delete element {filter} macs {{ {ifindex} . {mac} }}",
    "the address gone": "delete element {filter} ipv4 {{ {ifindex} . 192.0.2.5 }}",
    "another address": "add element {filter} ipv4 {{ {ifindex} . 192.0.2.6 }}",
    "a trunk": "add element {filter} trunks {{ {ifindex} }}",
    "all elements gone": "flush set {filter} ports",
    "a rule more": "insert rule {filter} guest accept",
    "the rules of a chain gone": "flush chain {filter} guest",
    "all rules gone": "flush table {filter}",
    "all rules and elements gone": "flush table {filter}; flush set {filter} leases; "
    "flush set {filter} ports; flush set {filter} macs; flush set {filter} addressed; "
    "flush set {filter} ipv4; flush set {filter} ipv6",
    "asleep": "add table {filter} {{ flags dormant; }}",
    "another policy": "add chain {filter} prerouting {{ policy drop; }}",
    "the table gone": "delete table {filter}",
    "everything gone": "flush ruleset",
    "another limit": "delete element {outbound} average {{ {ifindex} }}; "
    "add element {outbound} average {{ {ifindex} limit rate over 7 mbytes/second "
    "burst 9 kbytes }}",
    "no peak": "delete element {outbound} peak {{ {ifindex} }}",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_change_by_hand_is_reported_and_repaired(lab: GuestBridge, edit: str) -> None:
    guest = lab.guest(**WIRING, outbound=Rate(10, 20, 300))
    bystander = taken(lab.host, FILTERED)
    before = nftables.unnumbered(nftables.ruleset())
    tables = {
        backend: f"bridge {table(lab.host, backend)}"
        for backend in ("filter", "outbound")
    }
    mac = f"0x{guest.mac.replace(':', '')}"
    nftables.nft(edit.format(ifindex=guest.lease.ifindex, mac=mac, **tables))
    assert nftables.unnumbered(nftables.ruleset()) != before
    assert lab.host.differences(guest.lease).keys() <= {"filter", "outbound"}
    assert lab.host.differences(guest.lease)
    assert Action.REWIRE in {action for _, action in lab.host.recover()}
    assert nftables.unnumbered(nftables.ruleset()) == before
    assert lab.host.differences(guest.lease) == lab.host.differences(bystander) == {}
    assert lab.host.recover() == []
    assert not lab.passes(guest, announce(guest, OTHER))
    assert lab.passes(guest, announce(guest, MINE))


def test_after_a_flush_of_everything_vms_start_and_stop_as_ever(
    lab: GuestBridge,
) -> None:
    """As a restart of nftables.service does it."""
    old = lab.guest(**WIRING, outbound=Rate(1000))
    shell.sh("nft flush ruleset")
    assert lab.passes(old, announce(old, OTHER)), "until recover"
    new = lab.guest(**WIRING, outbound=Rate(1000))
    assert not lab.passes(new, announce(new, OTHER))
    shell.sh("nft flush ruleset")
    lab.host.release(old.lease.id)
    lab.host.recover()
    assert shown(lab.host, "filter", "ports") == [new.lease.name]
    assert not lab.passes(new, announce(new, OTHER))


def test_a_rule_that_is_replaced_is_noticed(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    name = table(lab.host, "filter")
    handle = next(
        rule["handle"]
        for one in nftables.ruleset()
        if (rule := one.get("rule")) and rule.get("comment") == "another MAC"
    )
    shell.sh(f"nft replace rule bridge {name} guest handle {handle} accept")
    said = lab.host.differences(guest.lease)
    assert said == {"filter": f"nftables table {name} has other rules"}
    lab.host.recover()
    assert lab.host.differences(guest.lease) == {}


def test_rules_are_compared_by_what_they_do(lab: GuestBridge) -> None:
    """A rule with our comment may do anything."""
    guest = lab.guest(filter=True)
    name = table(lab.host, "filter")
    handle = next(
        rule["handle"]
        for one in nftables.ruleset()
        if (rule := one.get("rule")) and rule.get("comment") == "another MAC"
    )
    rule = f"bridge {name} guest handle {handle} accept comment"
    nftables.nft(f'replace rule {rule} "another MAC"')
    said = {"filter": f"nftables table {name} has other rules"}
    assert lab.host.differences(guest.lease) == said
    lab.host.recover()
    assert lab.host.differences(guest.lease) == {}


@pytest.mark.parametrize("change", ["acquire", "set"])
@pytest.mark.parametrize(
    "gone",
    [
        "delete table bridge {}",
        "flush ruleset",
        "flush table bridge {}",
        "flush chain bridge {} guest",
        "add table bridge {} {{ flags dormant; }}",
        "insert rule bridge {} guest accept",
        "insert rule bridge {} prerouting accept",
    ],
)
def test_a_table_that_is_gone_is_made_again_with_all_its_elements(
    lab: GuestBridge, gone: str, change: str
) -> None:
    """What comes next would otherwise leave the others open, without a word."""
    running = lab.guest(**WIRING, outbound=Rate(1000))
    changed = lab.guest(**WIRING)
    nftables.nft(gone.format(table(lab.host, "filter")))
    assert lab.passes(running, announce(running, OTHER)), "until then"
    if change == "acquire":
        lab.guest(**WIRING, outbound=Rate(1000))
    else:
        lab.host.set(changed.lease.id, addresses=(OTHER,), outbound=Rate(1000))
    assert not lab.passes(running, announce(running, OTHER))
    assert lab.passes(running, announce(running, MINE))
    assert lab.host.differences(running.lease) == {}


def test_a_difference_is_described_with_both_values(lab: GuestBridge) -> None:
    lease = taken(lab.host, FILTERED)
    name = table(lab.host, "filter")
    for command in (
        f"delete element bridge {name} ipv4 {{ {lease.ifindex} . {MINE} }}",
        f"add element bridge {name} ipv4 {{ {lease.ifindex} . {OTHER} }}",
    ):
        nftables.nft(command)
    said = f"lacks ipv4 {MINE}; has ipv4 {OTHER}"
    assert lab.host.differences(lease) == {"filter": said}


def test_a_release_deletes_elements_that_were_added_by_hand(
    lab: GuestBridge,
) -> None:
    lease = taken(lab.host, FILTERED)
    element = f"ipv4 {{ {lease.ifindex} . {OTHER} }}"
    nftables.nft(f"add element bridge {table(lab.host, 'filter')} {element}")
    lab.host.release(lease.id)
    lab.host.recover()
    assert left(lab.host) == []


# Live changes


def test_while_a_lease_is_changed_honest_frames_pass_and_forged_ones_do_not(
    lab: GuestBridge,
) -> None:
    # On a busy host a change takes so long that this test sends some MB.
    guest = lab.guest(**WIRING, outbound=Rate(10_000_000))
    honest, forged = announce(guest, MINE), announce(guest, "192.0.2.99")
    changes: list[dict[str, Any]] = [
        {
            "addresses": (MINE, f"192.0.2.{number}"),
            "outbound": Rate(10_000_000 + number),
        }
        for number in range(10, 20)
    ]

    def change() -> None:
        for wiring in changes:
            lab.host.set(guest.lease.id, **wiring)

    changing = threading.Thread(target=change)
    changing.start()
    rounds = 0
    while changing.is_alive():
        assert lab.arrive(guest, [forged, honest], lab.peer) == [honest]
        rounds += 1
    changing.join()
    assert rounds > 10
    assert lab.passes(guest, announce(guest, "192.0.2.19"))
    assert not lab.passes(guest, announce(guest, "192.0.2.18"))
    assert lab.host.differences(lab.host.find(guest.lease.id)) == {}


def test_a_change_replaces_only_what_differs(lab: GuestBridge) -> None:
    """While the kernel replaces an element, a frame may find none."""
    guest = lab.guest(**WIRING)
    with nftables.changes() as changes:
        lab.host.set(guest.lease.id, addresses=(OTHER, FILTERED.addresses[1]))
    changed = re.findall(
        r"^(create|delete) (\w+) bridge \w+ (\w+)", "\n".join(changes), re.MULTILINE
    )
    assert sorted(changed) == [
        *(("create", "element", "ipv4"), ("create", "element", "leases")),
        *(("delete", "element", "ipv4"), ("delete", "element", "leases")),
    ]
    with nftables.changes() as changes:
        lab.host.set(guest.lease.id, isolated=True)
    assert changes == []


def test_a_lease_can_get_a_filter_and_lose_it(lab: GuestBridge) -> None:
    guest = lab.guest()
    forged = ether("52:54:00:66:66:66", BROADCAST, 0x88B5, bytes(46))
    for wanted in (True, False, True):
        rate = Rate(1000) if wanted else None
        lab.host.set(guest.lease.id, filter=wanted, outbound=rate)
        assert lab.passes(guest, forged) is not wanted
        assert bool(left(lab.host)) is wanted
        backends = ("filter", "guard", "outbound") if wanted else ()
        assert lab.host.find(guest.lease.id).backends == backends


def test_a_change_that_fails_leaves_all_as_it_was(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = lab.guest(**WIRING, outbound=Rate(1000))
    before = nftables.unnumbered(nftables.ruleset())
    refusals = iter([True])
    attach = TableBackend.attach

    def refuse_once(backend: TableBackend, namespace: Any, lease: Lease) -> None:
        if backend.name == "outbound" and next(refusals, False):
            raise tapster.HostError("no more rates")
        attach(backend, namespace, lease)

    monkeypatch.setattr(TableBackend, "attach", refuse_once)
    with pytest.raises(tapster.HostError, match="no more rates"):
        lab.host.set(guest.lease.id, addresses=(OTHER,), outbound=Rate(500))
    assert nftables.unnumbered(nftables.ruleset()) == before
    assert lab.host.find(guest.lease.id).wiring == guest.lease.wiring
    assert lab.passes(guest, announce(guest, MINE))


# Where they are kept


def test_the_table_is_in_the_network_namespace_of_the_lease(
    lab: GuestBridge, tmp_path: Path
) -> None:
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add br0 type bridge")
    path = tmp_path / "blue.db"
    with Host(path, netns="blue", reaper=library.no_reaper) as blue:
        lease = taken(blue, FILTERED._replace(outbound=Rate(1000)))
        assert nftables.ruleset() == []
        shown = shell.sh("ip netns exec blue nft list ruleset")
        assert shown.count(lease.name) == shown.count(lease.id) == 10
    with Host(path, reaper=library.no_reaper) as elsewhere:
        assert elsewhere.differences(lease) == {}
        elsewhere.release(lease.id)
    assert lease.id not in shell.sh("ip netns exec blue nft list ruleset")


def test_two_managers_that_make_the_table_at_the_same_moment(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes the elements of the leases that it knows of."""
    namespace = lab.host.operations.context.namespace
    nft_list = namespace.nft_list
    with Host(lab.ledger, reaper=library.no_reaper) as other:

        def list_then_lose(what: str) -> list[dict[str, Any]]:
            listed = nft_list(what)
            monkeypatch.undo()
            taken(other, FILTERED)
            return listed

        monkeypatch.setattr(namespace, "nft_list", list_then_lose)
        taken(lab.host, FILTERED)
    assert len(lab.host.leases(all=False)) == 4
    assert sorted(shown(lab.host, "filter", "ports")) == ["vnet2", "vnet3"]
    assert lab.host.recover() == []


@pytest.mark.parametrize("verb", ["flush", "delete"])
def test_a_table_that_is_lost_during_a_change_is_made_again(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Also if the change itself asks nothing of the table."""
    lease, _ = taken(lab.host, FILTERED), taken(lab.host, FILTERED)
    namespace = lab.host.operations.context.namespace
    nft_list = namespace.nft_list

    def list_then_lose(what: str) -> list[dict[str, Any]]:
        listed = nft_list(what)
        if what.startswith("table"):
            monkeypatch.undo()
            nftables.nft(f"{verb} table bridge {table(lab.host, 'filter')}")
        return listed

    monkeypatch.setattr(namespace, "nft_list", list_then_lose)
    lab.host.set(lease.id, isolated=True)
    assert sorted(shown(lab.host, "filter", "ports")) == ["vnet2", "vnet3"]
    assert lab.host.recover() == []


def test_a_table_that_is_lost_at_any_moment_hinders_no_look_and_no_removal(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, namespace = lab.host, lab.host.operations.context.namespace
    when, calls = -1, 0

    def losing(verb: Callable[[str], Any]) -> Callable[[str], Any]:
        def lose_first(what: str) -> Any:
            nonlocal calls
            if calls == when and nftables.elements(table(host, "filter")):
                nftables.nft(f"delete table bridge {table(host, 'filter')}")
            calls += 1
            return verb(what)

        return lose_first

    for verb in ("nft", "nft_list"):
        monkeypatch.setattr(namespace, verb, losing(getattr(namespace, verb)))

    def calls_of(step: Callable[[Lease], object], moment: int) -> int:
        nonlocal when, calls
        lease = taken(host, FILTERED)
        when, calls = moment, 0
        step(lease)
        when, made = -1, calls
        host.release(lease)
        host.reap(now=True)
        host.recover()
        assert left(host) == []
        return made

    steps: list[Callable[[Lease], object]] = [
        host.differences,
        lambda lease: host.set(lease, filter=False, addresses=()),
        host.release,
    ]
    for step in steps:
        for moment in range(calls_of(step, -1)):
            calls_of(step, moment)


def test_managers_side_by_side_do_not_disturb_each_other(lab: GuestBridge) -> None:
    """Each process has a copy of the tables before it changes them."""
    code = """
import os, sys
from tapster import Host, Rate, Tap
rate = Rate(1000)
spec = Tap(bridge="br0", filter=True, outbound=rate, fin_wait=3600)
with Host(sys.argv[1], reaper=lambda _: None) as host:
    for number in range(15):
        lease = host.acquire(spec)
        host.set(lease.id, addresses=(f"192.0.2.{number}",))
        lease.close()
        if number % 3:
            host.release(lease.id)
"""
    command = [sys.executable, "-c", code, str(lab.ledger)]
    managers = [subprocess.Popen(command) for _ in range(4)]
    assert [manager.wait() for manager in managers] == [0] * 4
    active = lab.host.leases(all=False)
    assert len(active) == 2 + 4 * 5
    assert len(left(lab.host)) == 20 * (6 + 2)
    assert lab.host.recover() == []


# What it takes


def test_a_missing_library_is_named_with_its_package(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft.library.cache_clear()
    monkeypatch.setattr(nft, "LIBRARY", "libnftables.so.0")
    for spec in (FILTERED, LIMITED):
        with pytest.raises(tapster.HostError, match="apt install libnftables1"):
            lab.host.acquire(spec)
    taken(lab.host, Tap(bridge="br0"))
    assert lab.host.recover() == []
    assert lab.host.operations.recover.leftovers() == []
    assert len(lab.host.leases()) == 3
    nft.library.cache_clear()


def test_without_the_library_a_release_waits_for_it(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = taken(lab.host, FILTERED)
    with Host(lab.ledger, reaper=library.no_reaper) as later:
        with monkeypatch.context() as patch:
            nft.library.cache_clear()
            patch.setattr(nft, "LIBRARY", "libnftables.so.0")
            later.release(lease.id)
            with pytest.raises(tapster.HostError, match="libnftables"):
                later.reap(now=True)
        nft.library.cache_clear()
        assert later.find(lease.name).backends == ("filter", "guard")
        assert later.reap(now=True) == 1
    assert left(lab.host) == []


@pytest.mark.parametrize("lacking", ["net_admin", "sys_admin"])
def test_a_missing_capability_is_named(lab: GuestBridge, lacking: str) -> None:
    code = """
import sys
from tapster import Host, MissingCapability, Tap
with Host(sys.argv[1], reaper=lambda _: None) as host:
    try:
        host.acquire(Tap(filter=True, bridge="br0"))
    except MissingCapability as error:
        print(error)
"""
    limited = ["setpriv", "--bounding-set", f"-{lacking}"]
    command = [*limited, sys.executable, "-c", code, str(lab.ledger)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"CAP_{lacking.upper()}" in done.stdout
    assert len(lab.host.leases()) == 2


@pytest.mark.parametrize("error", [tapster.MissingCapability, tapster.HostError])
def test_only_a_change_that_nft_refused_is_tried_again(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch, error: type[tapster.HostError]
) -> None:
    """Another error is reported at once: it would come again."""
    lease = taken(lab.host, FILTERED)
    context = lab.host.operations.context
    asked: list[str] = []

    def fail(what: str) -> NoReturn:
        asked.append(what)
        raise error("asking nftables fails here")

    monkeypatch.setattr(context.namespace, "nft_list", fail)
    with pytest.raises(error, match="fails here"):
        TableBackend(context.ledger.id, filter.PURPOSE).restore(
            context.namespace, [lease]
        )
    assert len(asked) == 1


# What it costs, when there are many


class Counted:
    """Counts what the host asks of nftables."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transactions: list[str] = []
        self.listed: list[str] = []
        namespace = host.operations.context.namespace
        nft, nft_list = namespace.nft, namespace.nft_list

        def run(commands: str) -> None:
            self.transactions.append(commands)
            nft(commands)

        def list_(what: str) -> list[dict[str, Any]]:
            self.listed.append(what)
            return nft_list(what)

        monkeypatch.setattr(namespace, "nft", run)
        monkeypatch.setattr(namespace, "nft_list", list_)


@pytest.fixture
def counted(lab: GuestBridge, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(lab.host, monkeypatch)


@pytest.fixture
def many(lab: GuestBridge) -> list[Lease]:
    return [taken(lab.host, FILTERED) for _ in range(12)]


def changes(transactions: Sequence[str]) -> list[str]:
    """The transactions that do something: an empty one asks whether nftables works."""
    return [commands for commands in transactions if commands]


def test_a_look_at_a_plain_tap_does_not_wait_for_the_filters_of_others(
    lab: GuestBridge, many: list[Lease], counted: Counted
) -> None:
    plain = taken(lab.host, Tap(bridge="br0"))
    assert lab.host.differences(plain) == {}
    assert counted.listed == counted.transactions == []


def test_one_transaction_restores_a_table_that_is_gone(
    lab: GuestBridge, many: list[Lease], counted: Counted
) -> None:
    before = nftables.unnumbered(nftables.ruleset())
    shell.sh("nft flush ruleset")
    repaired = {lease.id for lease, action in lab.host.recover()}
    assert repaired == {lease.id for lease in many}
    assert len(changes(counted.transactions)) == 1
    assert set(counted.listed) == {"chains bridge"}, "no table is there"
    assert nftables.unnumbered(nftables.ruleset()) == before


def test_one_transaction_restores_what_many_leases_lack(
    lab: GuestBridge, many: list[Lease], counted: Counted
) -> None:
    before = nftables.unnumbered(nftables.ruleset())
    name = table(lab.host, "filter")
    for lease in many[:4]:
        nftables.nft(
            f"delete element bridge {name} ipv4 {{ {lease.ifindex} . {MINE} }}"
        )
    assert len(doctor.examine(lab.host.operations)) == 4
    tables = [what for what in counted.listed if not what.startswith("chains")]
    assert len(tables) == 3, "what differs, how it differs, what is left over"
    counted.listed.clear()
    assert len(lab.host.recover()) == 4
    assert len(changes(counted.transactions)) == 1
    tables = [what for what in counted.listed if not what.startswith("chains")]
    assert len(tables) == 2, "to look, and to restore"
    assert nftables.unnumbered(nftables.ruleset()) == before


def test_no_filter_is_made_again_for_a_device_that_only_left_its_bridge(
    lab: GuestBridge, many: list[Lease], counted: Counted
) -> None:
    for lease in many[:4]:
        shell.sh(f"ip link set {lease.name} nomaster")
    ids = [lease.id for lease in many]
    repaired = lab.host.operations.recover.some(ids, wiring=True)
    assert [action for _, action in repaired] == [Action.REWIRE] * 4
    assert changes(counted.transactions) == []
    assert all(iproute.links()[lease.name]["master"] == "br0" for lease in many)


def test_a_release_while_many_are_restored_takes_its_elements_with_it(
    lab: GuestBridge, many: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.sh("nft flush ruleset")
    restore = TableBackend.restore

    def release_first(
        backend: TableBackend, namespace: Any, leases: Sequence[Lease]
    ) -> frozenset[str]:
        with Host(lab.ledger, reaper=library.no_reaper) as other:
            other.release(many[0].id)
        return restore(backend, namespace, leases)

    monkeypatch.setattr(TableBackend, "restore", release_first)
    lab.host.recover()
    assert lab.host.find(many[0].id).state is State.FIN_WAIT
    assert lab.host.find(many[0].id).backends == ()
    ports = shown(lab.host, "filter", "ports")
    assert sorted(ports) == sorted(lease.name for lease in many[1:])
