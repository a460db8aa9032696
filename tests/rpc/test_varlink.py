# SPDX-License-Identifier: Apache-2.0
"""Types and messages of Varlink, and the interface that is made of them."""

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapster import errors
from tapster.errors import KernelError, NoSuchLease, TapsterError
from tapster.light import StrEnum
from tapster.model import Macvtap, Mode, Naming, Tap
from tapster.rpc import interface, varlink
from tapster.rpc.description import describe
from tapster.rpc.varlink import Malformed, Unfit, from_json, to_json


class Colour(StrEnum):
    RED = "red"


class Inner(NamedTuple):
    """Something small."""

    number: int


class Outer(NamedTuple):
    flag: bool
    text: str | None
    inner: tuple[Inner, ...] = ()
    colour: Colour = Colour.RED
    ratio: float = 0.5


WHOLE = Outer(True, "text", (Inner(1), Inner(2)), Colour.RED, 1.5)


def test_a_value_comes_out_as_it_went_in() -> None:
    assert from_json(Outer, to_json(WHOLE)) == WHOLE
    assert from_json(Outer, {"flag": False}) == Outer(False, None)
    assert from_json(Outer, {"flag": False, "ratio": None, "text": None}).ratio == 0.5


@pytest.mark.parametrize(
    ("data", "parameter"),
    [
        ([], "parameters"),
        ({}, "flag"),
        ({"flag": 1}, "flag"),
        ({"flag": True, "text": 1}, "text"),
        ({"flag": True, "text": "\ud800"}, "text"),
        ({"flag": True, "inner": {}}, "inner"),
        ({"flag": True, "inner": [{"number": True}]}, "inner[0].number"),
        ({"flag": True, "inner": [{"number": 1}, {"number": 1 << 63}]}, "inner[1]"),
        ({"flag": True, "inner": [{"number": 1.0}]}, "inner[0].number"),
        ({"flag": True, "inner": [{}]}, "inner[0].number"),
        ({"flag": True, "colour": "blue"}, "colour"),
        ({"flag": True, "colour": ["red"]}, "colour"),
        ({"flag": True, "ratio": "1"}, "ratio"),
        ({"flag": True, "flags": True}, "flags"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_place(
    data: object, parameter: str
) -> None:
    with pytest.raises(Unfit) as caught:
        from_json(Outer, data)
    assert caught.value.parameter.startswith(parameter)


def test_an_error_names_the_place_of_a_value_of_the_wrong_type() -> None:
    for data, place in ((["x"], "vlans[0]"), ("x", "vlans")):
        with pytest.raises(Unfit) as caught:
            from_json(tuple[int, ...], data, "vlans")
        assert caught.value.parameter == place


def test_a_client_ignores_fields_of_a_later_daemon() -> None:
    data = {"flag": True, "later": 1, "inner": [{"number": 1, "later": 2}]}
    assert from_json(Outer, data, strict=False).inner == (Inner(1),)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


# The first values take long while other tests keep the computer busy.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(json_values)
def test_no_value_breaks_the_check(data: object) -> None:
    for method in interface.METHODS:
        try:
            from_json(method.takes, data)
        except Unfit:
            continue


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    try:
        assert isinstance(varlink.decode(data), dict)
    except Malformed:
        return


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"1", b"{", b"[" * 100_000, b'{"a":NaN}', b"1" * 5000],
)
def test_a_message_that_is_no_object_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        varlink.decode(data)


# The interface


def test_every_field_of_a_request_is_in_the_interface() -> None:
    described = describe(interface.INTERFACE)
    for kind in (Tap, Macvtap):
        body = described.partition(f"type {kind.__name__} (")[2].partition("\n)")[0]
        assert [line.split(":")[0].strip() for line in body.splitlines()[1:]] == [
            *kind._fields
        ]


@pytest.mark.parametrize(
    "spec",
    [
        Tap("br0", naming=Naming.STABLE, key="a", queues=3, uid=7, fin_wait=0.0),
        Macvtap("eth0", mode=Mode.PASSTHRU, mtu=1400),
    ],
)
def test_a_request_comes_out_as_it_went_in(spec: Tap | Macvtap) -> None:
    nic = from_json(interface.Nic, to_json(interface.nic(spec)))
    assert interface.spec_of(nic) == spec


def test_a_nic_is_one_thing() -> None:
    for nic in (interface.Nic(), interface.Nic(Tap(), Macvtap("eth0"))):
        with pytest.raises(errors.RequestError, match="either"):
            interface.spec_of(nic)


@pytest.mark.parametrize("name", [*interface.RAISED])
def test_every_error_comes_out_as_it_went_in(name: str) -> None:
    kind = interface.RAISED[name]
    if kind is TapsterError:
        return  # the root is never raised
    fields: dict[str, Any] = {field: f"a {field}" for field in kind.fields} | (
        {"until": 7.5} if "until" in kind.fields else {}
    )
    if "limit" in fields:
        fields["limit"] = 3
    error = (
        KernelError(16, "making", "busy")
        if kind is KernelError
        else kind("message", **fields)
    )
    failure = interface.failure(error)
    assert failure.remedy
    back = interface.raised(name, to_json(failure))
    assert (type(back), str(back)) == (kind, str(error))
    assert vars(back) == vars(error)


def test_an_error_of_a_later_daemon_is_one_of_the_daemons() -> None:
    said = interface.raised("Unheard", {"message": "of"})
    assert isinstance(said, errors.DaemonError)
    assert isinstance(interface.raised("NoSuchLease", None), NoSuchLease)


MESSAGES = [
    {},
    {"a": 1, "b": [1.5, None, True, False, -3, 'é\u2028"\\\n\x01']},
    {"infinite": float("inf")},
    {"surrogate": "\ud800"},
    {"a": {"b": {"c": "d" * 1000}}},
]
TEXTS = [b"{}", b' {"a": 1} ', b'{"a":1} x', b"", b"nul", b"NaN", b'{"a":NaN}', b"[1]"]
TEXTS += [b"\xff", b'{"a":', b'{"a":"\n"}', b'{"a":1e999}', b'{"a":Infinity}', b"-"]
TEXTS += [b'{"a":1,"a":2}', b"[" * 100_000]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_written_as_json_writes_it(message: dict[str, Any]) -> None:
    text = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
    assert varlink.encode(message) == text.encode(errors="replace") + b"\0"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_as_json_reads_it(text: bytes) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def expected() -> object:
        try:
            return json.loads(text.decode(), parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            return f"it is not JSON: {error}"

    try:
        found: object = varlink.decode(text)
    except varlink.Malformed as error:
        found = str(error)
    wanted = expected()
    if not isinstance(wanted, dict | str):
        wanted = "it is not a JSON object"
    assert found == wanted
