# SPDX-License-Identifier: Apache-2.0
"""What adopting a domain changes in its XML, and that releasing restores it."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tapster import cli
from tapster.errors import RequestError
from tapster.libvirt import adoption, domain
from tapster.libvirt.adoption import Conversion
from tapster.libvirt.domain import NicRequest

DOMAINS = {
    path.stem: path for path in sorted(Path(__file__).with_name("domains").iterdir())
}
ADDRESS = {"type": "pci", "slot": "0x03"}


def resolve(network: str) -> dict[str, str]:
    if network == "lan":
        return {"bridge": "br7"}
    raise RequestError(f"network {network!r} is no network on a bridge of the host")


def adopt(name: str) -> Conversion:
    return adoption.adopt(DOMAINS[name].read_bytes(), resolve)


def only_nic(name: str) -> NicRequest:
    (nic,) = adopt(name).nics
    return nic


@pytest.mark.parametrize("name", DOMAINS)
def test_releasing_an_adopted_domain_restores_every_byte_of_its_interfaces(
    name: str,
) -> None:
    before = DOMAINS[name].read_bytes()
    adopted = adoption.adopt(before, resolve)
    after = adoption.release(adopted.xml)
    assert len(after.nics) == len(adopted.nics)
    if name == "empty-metadata":
        before = before.replace(b"  <metadata/>\n", b"")
    assert after.xml == before


@pytest.mark.parametrize("name", DOMAINS)
def test_adopting_twice_changes_nothing_more(name: str) -> None:
    once = adopt(name).xml
    assert adoption.adopt(once, resolve).xml == once


@pytest.mark.parametrize("name", DOMAINS)
def test_what_the_guest_sees_of_its_nics_stays(name: str) -> None:
    def shown(xml: bytes) -> list[dict[str, str]]:
        found = []
        for interface in ElementTree.fromstring(xml).iter("interface"):
            parts = {}
            for part in ("mac", "model", "boot", "alias", "address", "rom", "mtu"):
                for element in interface.findall(part):
                    parts[part] = ElementTree.tostring(element).decode().strip()
            found.append(parts)
        return found

    assert shown(adopt(name).xml) == shown(DOMAINS[name].read_bytes())


@pytest.mark.parametrize("name", DOMAINS)
def test_the_metadata_says_which_device_each_adopted_interface_opens(
    name: str,
) -> None:
    adopted = adopt(name)
    targets = [
        target.attrib
        for interface in ElementTree.fromstring(adopted.xml).iter("interface")
        if interface.get("type") == "ethernet"
        for target in interface.iter("target")
    ]
    assert targets == [{"dev": nic.dev, "managed": "no"} for nic in adopted.nics]
    assert domain.nics_of(adopted.xml) == list(adopted.nics)
    assert all(len(nic.dev) <= 15 for nic in adopted.nics)


MAC = {"mac": "52:54:00:00:00:01"}


def only_request(name: str) -> dict[str, str]:
    (request,) = domain.requests_of(adopt(name).xml)
    return request.attributes


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("bridge", {"bridge": "br0"}),
        ("e1000", {"bridge": "br0", "vnet-hdr": "no"}),
        ("no-model", {"bridge": "br0", "vnet-hdr": "no"}),
        ("network", {"bridge": "br7"}),
        (
            "bandwidth",
            {"bridge": "br0", "inbound": "1000:2000:512", "outbound": "500"},
        ),
        ("vlan", {"bridge": "br0", "vlan": "42"}),
        ("trunk", {"bridge": "br0", "vlan": "123", "trunk": "42,200"}),
        ("mtu", {"bridge": "br0", "mtu": "1400"}),
        ("isolated", {"bridge": "br0", "isolated": "yes"}),
        ("queues", {"bridge": "br0", "queues": "4"}),
        (
            "clean-traffic",
            {"bridge": "br0", "filter": "yes", "address": "192.0.2.7,192.0.2.8"},
        ),
        ("no-mac-spoofing", {"bridge": "br0", "filter": "yes"}),
        (
            "no-ip-spoofing",
            {"bridge": "br0", "filter": "yes", "address": "192.0.2.9"},
        ),
        ("direct-bridge", {"link": "eth0", "mode": "bridge"}),
        ("direct-passthrough", {"link": "eth1", "mode": "passthru"}),
        ("direct-no-mode", {"link": "eth0", "mode": "vepa"}),
    ],
)
def test_what_the_interface_asked_for_is_asked_of_tapster(
    name: str, attributes: dict[str, str]
) -> None:
    assert only_request(name) == {**attributes, **MAC}
    assert adopt(name).lost == ()


def test_a_port_of_open_vswitch_keeps_the_ids_that_libvirt_would_set() -> None:
    nic = only_nic("ovs")
    uuid = domain.uuid_of(DOMAINS["ovs"].read_bytes())
    assert (nic.attributes["ovs"], nic.attributes["vlan"]) == ("ovs0", "7")
    assert nic.attributes["external-id"].split() == [
        "attached-mac=52:54:00:00:00:01",
        f"vm-id={uuid}",
        "iface-id=09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f",
        "port-profile=gold",
    ]


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("floor", "guaranteed rate"),
        ("clean-traffic-learning", "give it IP"),
        ("own-filter", "filter my-filter"),
        ("coalesce", "<coalesce>"),
    ],
)
def test_what_tapster_cannot_give_is_listed(name: str, lost: str) -> None:
    (missing,) = adopt(name).lost
    assert lost in missing
    assert missing.startswith("52:54:00:00:00:01: ")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("user", "'user'"),
        ("vhostuser", "'vhostuser'"),
        ("hostdev", "'hostdev'"),
        ("qbg", "802.1Qbg"),
        ("network-nat", "'default'"),
    ],
)
def test_an_interface_that_needs_no_device_stays_as_it_is(name: str, why: str) -> None:
    adopted = adopt(name)
    assert adopted.xml == DOMAINS[name].read_bytes()
    (left,) = adopted.left
    assert why in left


def changed(name: str, old: str, new: str) -> Conversion:
    """Adopt a domain after a change of its text."""
    xml = DOMAINS[name].read_text()
    assert old in xml
    return adoption.adopt(xml.replace(old, new, 1).encode(), resolve)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "/>",
            "/><virtualport type='openvswitch'/>",
            "is on a bridge, not on a device",
        ),
        (" dev='eth0'", "", "it names no device"),
        (" dev='eth0'", " dev=''", "it names no device"),
    ],
)
def test_an_interface_that_libvirt_could_not_connect_stays_as_it_is(
    old: str, new: str, why: str
) -> None:
    xml = DOMAINS["direct-bridge"].read_text()
    before, interface, after = xml.partition("<interface")
    assert old in after
    text = before + interface + after.replace(old, new, 1)
    adopted = adoption.adopt(text.encode(), resolve)
    (left,) = adopted.left
    assert (adopted.xml, adopted.nics) == (text.encode(), ())
    assert why in left


def test_an_id_with_a_space_and_a_guest_that_changes_its_mac_are_listed() -> None:
    adopted = changed("ovs", "'gold'", "'solid gold'")
    (nic,) = adopted.nics
    assert "port-profile" not in nic.attributes["external-id"]
    assert "port-profile 'solid gold', which has a space" in adopted.lost[0]
    trusting = changed(
        "bridge", "type='bridge'", "type='bridge' trustGuestRxFilters='yes'"
    )
    assert "trustGuestRxFilters" in trusting.lost[0]


def test_a_domain_that_could_not_start_is_not_adopted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    xml = DOMAINS["clean-traffic"].read_bytes().replace(b"192.0.2.7", b"192.0.2.777")
    monkeypatch.setattr("tapster.libvirt.virsh.domains", lambda: {"web": "1"})
    monkeypatch.setattr("tapster.libvirt.virsh.definition", lambda _: xml)
    monkeypatch.setattr(
        "tapster.libvirt.virsh.define", lambda _: pytest.fail("defined")
    )
    assert cli.main(["libvirt", "adopt", "web"]) == 1
    assert "tapster: web: '192.0.2.777' is not an IPv4" in capsys.readouterr().err


def test_two_domains_never_ask_for_the_same_device() -> None:
    devices = [nic.dev for name in DOMAINS for nic in adopt(name).nics]
    assert len(devices) == len(set(devices))


def test_other_metadata_stays() -> None:
    assert b"keep &amp; carry &lt;on&gt;" in adopt("metadata").xml


@pytest.mark.parametrize(
    ("xml", "wrong"),
    [
        (b"<domain", "not well-formed"),
        (b"<domain/>", "no <uuid>"),
        (b'<!DOCTYPE d [<!ENTITY a "b">]><domain>&a;</domain>', "entities"),
        (b"<domain>" + b"<a>" * 50000 + b"</a>" * 50000, "more than 256 deep"),
    ],
)
def test_what_is_no_domain_is_refused(xml: bytes, wrong: str) -> None:
    with pytest.raises(RequestError, match=wrong):
        adoption.adopt(xml, resolve)


def test_a_clone_gets_devices_of_its_own_and_keeps_its_mac() -> None:
    xml = adopt("everything").xml
    uuid = domain.uuid_of(xml).encode()
    clone = xml.replace(
        b"<uuid>" + uuid + b"</uuid>",
        b"<uuid>0badcafe-0000-4000-8000-000000000001</uuid>",
    )
    devices = [nic.dev for nic in domain.nics_of(xml)]
    adopted = adoption.adopt(clone, resolve)
    assert len(adopted.nics) == len(devices)
    assert {nic.dev[:11] for nic in adopted.nics} == {"tv0badcafe-"}
    # virt-clone has given it MACs of its own, which the original's XML must not undo.
    new_mac = clone.replace(
        b"<mac address='52:54:00:00:00:01'/>", b"<mac address='52:54:00:00:00:09'/>"
    )
    macs = [
        nic.attributes["mac"]
        for nic in domain.requests_of(adoption.adopt(new_mac, resolve).xml)
    ]
    assert "52:54:00:00:00:09" in macs
    assert "52:54:00:00:00:01" not in macs
    assert adoption.adopt(adopted.xml, resolve).xml == adopted.xml


NAMED = re.compile(rb"<target dev=.tv[^/]*/>")


def as_virt_clone_leaves_it(xml: bytes) -> bytes:
    """Return a domain with another UUID, whose devices have lost their names."""
    uuid = domain.uuid_of(xml).encode()
    clone = xml.replace(uuid, b"0badcafe-0000-4000-8000-000000000001", 1)
    assert NAMED.search(clone)
    return NAMED.sub(b"<target managed='no'/>", clone)


@pytest.mark.parametrize("name", ["everything", "many"])
def test_a_clone_whose_devices_have_lost_their_names_gets_its_own(name: str) -> None:
    xml = adopt(name).xml
    clone = as_virt_clone_leaves_it(xml)
    with pytest.raises(RequestError, match="if this domain is a clone"):
        domain.requests_of(clone)
    adopted = adoption.adopt(clone, resolve).nics
    assert {nic.dev[:11] for nic in adopted} == {"tv0badcafe-"}
    assert [nic.attributes for nic in adopted] == [
        nic.attributes for nic in adopt(name).nics
    ]


def test_an_interface_that_the_metadata_does_not_know_gets_no_name() -> None:
    clone = as_virt_clone_leaves_it(adopt("everything").xml)
    metadata, end, devices = clone.partition(b"</metadata>")
    moved = metadata + end + devices.replace(b"slot='0x03'", b"slot='0x09'")
    assert adoption.adopt(moved, resolve).xml == moved


@pytest.mark.parametrize(
    ("interface", "wrong"),
    [
        ("<target dev='web1' managed='no'/>", "no interface of the domain opens it"),
        ("<target dev='web0'/>", "no interface of the domain opens it"),
        ("<target dev='web0' managed='no'/>" * 1, None),
    ],
)
def test_metadata_and_interface_must_agree(interface: str, wrong: str | None) -> None:
    xml = (
        "<domain><metadata><t:nics xmlns:t='urn:tapster:libvirt:1'>"
        "<t:nic dev='web0' bridge='br0' mtu='1300'/></t:nics></metadata><devices>"
        f"<interface type='ethernet'><mac address='52:54:00:00:00:01'/>{interface}"
        "<mtu size='1400'/><model type='e1000'/></interface></devices></domain>"
    ).encode()
    if wrong is not None:
        with pytest.raises(RequestError, match=wrong):
            domain.requests_of(xml)
        return
    (request,) = domain.requests_of(xml)
    assert request.attributes == {
        "bridge": "br0",
        "mtu": "1300",
        "mac": "52:54:00:00:00:01",
        "vnet-hdr": "no",
    }


def test_a_device_has_a_name_and_no_template() -> None:
    """libvirt would look for a device that is called `web%d`."""
    xml = b"""<domain><metadata><t:nics xmlns:t='urn:tapster:libvirt:1'>
        <t:nic dev='web%d' bridge='br0'/></t:nics></metadata><devices>
        <interface type='ethernet'><target dev='web%d' managed='no'/></interface>
        </devices></domain>"""
    with pytest.raises(RequestError, match="dev='web%d' of a tapster:nic must be a na"):
        domain.requests_of(xml)


def test_a_nic_that_was_unplugged_counts_for_nothing() -> None:
    """libvirt's own detach-device leaves it in the metadata."""
    xml = b"""<domain><metadata><t:nics xmlns:t='urn:tapster:libvirt:1'>
        <t:nic dev='web1' bridge='br0' plugged='yes'/>
        <t:nic dev='web2' bridge='br0' plugged='yes'/></t:nics></metadata><devices>
        <interface type='ethernet'><target dev='web2' managed='no'/>
        <model type='virtio'/></interface></devices></domain>"""
    assert [nic.dev for nic in domain.nics_of(xml)] == ["web2"]
    assert domain.requests_of(xml) == [NicRequest("web2", {"bridge": "br0"})]


def test_a_nic_written_by_hand_is_never_removed() -> None:
    xml = DOMAINS["bridge"].read_bytes()
    by_hand = xml.replace(
        b"  <memory",
        b"  <metadata>\n    <tapster:nics xmlns:tapster='urn:tapster:libvirt:1'>"
        b"<tapster:nic dev='web0' bridge='br0'/></tapster:nics>\n  </metadata>\n"
        b"  <memory",
    )
    assert domain.nics_of(by_hand) == [NicRequest("web0", {"bridge": "br0"})]
    adopted = adoption.adopt(by_hand, resolve)
    released = adoption.release(adopted.xml)
    assert domain.nics_of(released.xml) == [NicRequest("web0", {"bridge": "br0"})]
