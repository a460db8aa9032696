# SPDX-License-Identifier: Apache-2.0
"""Requests, MAC addresses and stamps."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapster import model, names
from tapster.errors import BadName, RequestError
from tapster.model import Kind, Macvtap, Mode, Naming, Rate, Spec, Stamp, Tap

SETTINGS = settings(derandomize=True, deadline=None)

unicast = st.binary(min_size=6, max_size=6).filter(
    lambda mac: not mac[0] & 1 and any(mac)
)
ids = st.text(alphabet="0123456789abcdef", min_size=1, max_size=16)


# Requests


@pytest.mark.parametrize(
    "spec",
    [
        Tap(),
        Tap(bridge="br0", isolated=True, mac="52:54:00:12:34:56", mtu=1500),
        Tap(name="mytap"),
        Tap(naming=Naming.NEXT),
        Tap(naming=Naming.STABLE, key="web-1"),
        Tap(queues=1, mtu=68, fin_wait=0),
        Tap(queues=256, mtu=65521, fin_wait=86400),
        Macvtap("eth0"),
        Macvtap("eth0", mode=Mode.PASSTHRU, name="mv%d", queues=4),
    ],
)
def test_a_request_that_can_be_gives_its_template(spec: Spec) -> None:
    assert model.check_spec(spec) == names.parse(spec.name)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (Tap(name="mytap", naming=Naming.NEXT), "template with '%d', not 'mytap'"),
        (
            Tap(name="mytap", naming=Naming.STABLE, key="k"),
            "template with '%d', not 'mytap'",
        ),
        (Tap(naming=Naming.STABLE), "naming 'stable' needs a key"),
        (Tap(key="k"), "naming 'lowest' takes no key, and key is 'k'"),
        (Tap(naming=Naming.NEXT, key="k"), "only naming 'stable' takes one"),
        (Tap(naming=Naming.STABLE, key="k" * 256), "key has 256 characters"),
        (Tap(owner="o" * 256), "owner has 256 characters"),
        (
            Tap(labels=tuple((f"k{n}", "ü" * 200) for n in range(3))),
            "the labels have 1209 bytes together: at most 1024",
        ),
        (
            Tap(labels=(("role", "web"), ("site", "a"), ("role", "db"))),
            "label 'role' is given twice",
        ),
        (
            Tap("br0", inbound=Rate(1), outbound=Rate(0)),
            "outbound: average must be 1 to",
        ),
        (Tap(inbound=Rate(9, 8)), "inbound: peak 8 is less than the average, 9"),
        (
            Tap(bridge="br0", filter=True, addresses=("10.0.0.1",) * 65),
            "65 addresses are too many: at most 64; give networks",
        ),
        (
            Tap(ovs="br0", external_ids=(("k", "v"),) * 33),
            "33 external ids are too many: at most 32",
        ),
        (Tap(queues=0), "1 to 256, not 0"),
        (Tap(queues=257), "1 to 256, not 257"),
        (Tap(mtu=67), "68 to 65521, not 67"),
        (Tap(mtu=65522), "68 to 65521, not 65522"),
        (Tap(fin_wait=-0.5), "0 to 86400 s, not -0.5"),
        (Tap(fin_wait=86401), "0 to 86400 s, not 86401"),
        (Tap(fin_wait=float("nan")), "not nan"),
        (Tap(fin_wait=float("inf")), "not inf"),
        (Tap(isolated=True), "name a bridge"),
        (Tap(mac="52:54:00:12:34"), "MAC '52:54:00:12:34' is not"),
        (Macvtap("eth0", queues=0), "1 to 256, not 0"),
        (Macvtap("eth0", mac="01:00:5e:00:00:01"), "not a unicast address"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_the_value(
    spec: Spec, complaint: str
) -> None:
    with pytest.raises(RequestError) as caught:
        model.check_spec(spec)
    assert complaint in str(caught.value)


def test_the_name_of_a_request_is_checked() -> None:
    with pytest.raises(BadName):
        model.check_spec(Tap(name="a name with spaces"))


@pytest.mark.parametrize(
    "spec",
    [
        Tap(owner="vm\udcff"),
        Tap(naming=Naming.STABLE, key="vm\udcff"),
        Macvtap("eth0", owner="vm\udcff"),
    ],
)
def test_text_that_cannot_be_stored_is_a_wrong_request(spec: Spec) -> None:
    # An argument of the command that is not UTF-8 becomes such text.
    with pytest.raises(RequestError, match="udcff"):
        model.check_spec(spec)


def test_each_request_knows_its_kind() -> None:
    assert Tap().kind is Kind.TAP
    assert Macvtap("eth0").kind is Kind.MACVTAP


# MAC addresses


def test_a_mac_is_parsed_in_either_case() -> None:
    mac = b"\x52\x54\x00\xab\xcd\xef"
    assert model.parse_mac("52:54:00:ab:cd:ef") == mac
    assert model.parse_mac("52:54:00:AB:CD:EF") == mac


@given(unicast)
@SETTINGS
def test_parse_mac_is_the_inverse_of_format_mac(mac: bytes) -> None:
    assert model.parse_mac(model.format_mac(mac)) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "525400123456",
        "5254:0012:3456",
        "52:54:0:12:34:56",
        "52:54:00:12:34:5g",
        " 52:54:00:12:34:56",
        "52:54:00:12:34:56\n",
        "52:54:  :12:34:56",
        "5 :4 :00:12:34:56",
        "+2:54:00:12:34:56",
        "\uff15\uff12:54:00:12:34:56",  # full-width digits
        "52:54:00:12:34:\udcff\udcff",
    ],
)
def test_a_text_that_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not of the form") as caught:
        model.parse_mac(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"]
)
def test_a_mac_that_no_device_can_have_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=f"'{text}' is not a unicast address"):
        model.parse_mac(text)


def test_the_host_side_begins_with_fe() -> None:
    assert model.host_mac("52:54:00:12:34:56") == "fe:54:00:12:34:56"
    assert model.host_mac("52:54:00:AB:CD:EF") == "fe:54:00:ab:cd:ef"


@pytest.mark.parametrize("guest", ["fe:54:00:12:34:56", "FE:54:00:12:34:56"])
def test_the_host_side_of_a_guest_that_begins_with_fe_begins_with_fa(
    guest: str,
) -> None:
    assert model.host_mac(guest) == "fa:54:00:12:34:56"


@given(unicast, st.booleans())
@example(b"\xfe\0\0\0\0\1", True)
@example(b"\xfa\0\0\0\0\1", False)
@SETTINGS
def test_the_host_side_is_another_unicast_mac(mac: bytes, upper: bool) -> None:
    guest = model.format_mac(mac)
    host = model.parse_mac(model.host_mac(guest.upper() if upper else guest))
    assert host != mac
    assert host[1:] == mac[1:]
    assert host[0] in (0xFE, 0xFA)


# Stamps


def test_a_stamp_says_whose_it_is() -> None:
    assert model.stamp("0a1b2c3d", "0123456789abcdef") == (
        "tapster:0a1b2c3d:0123456789abcdef"
    )


@given(ids, ids)
@SETTINGS
def test_stamps_make_the_round_trip(ledger: str, lease: str) -> None:
    assert model.parse_stamp(model.stamp(ledger, lease)) == Stamp(ledger, lease)


@pytest.mark.parametrize(
    "alias",
    [
        "",
        "tapster",
        "tapster:a",
        "tapster:a:b:c",
        "Tapster:a:b",
        " tapster:a:b",
        "vm:1",
    ],
)
def test_any_other_alias_is_no_stamp(alias: str) -> None:
    assert model.parse_stamp(alias) is None


@given(st.lists(st.sampled_from(["tapster", "Tapster", "", "a", "b "]), max_size=4))
@SETTINGS
def test_a_stamp_is_all_of_an_alias_or_nothing(parts: list[str]) -> None:
    alias = ":".join(parts)
    if found := model.parse_stamp(alias):
        assert model.stamp(*found) == alias
    else:
        assert parts[:1] != ["tapster"] or len(parts) != 3
