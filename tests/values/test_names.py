# SPDX-License-Identifier: Apache-2.0
"""What a device may be called."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tapster import names
from tapster.errors import BadName

SETTINGS = settings(derandomize=True, deadline=None)

REFUSED = [
    ("", "is empty"),
    (".", "reserved"),
    ("..", "reserved"),
    ("all", "reserved"),
    ("default", "reserved"),
    ("a/b", "contains '/'"),
    ("a:b", "contains ':'"),
    ("50%", "'%'"),
    ("a b", "white space"),
    ("a\tb", "white space"),
    ("a\nb", "white space"),
    ("vnet0\n", "white space"),
    ("a\vb", "white space"),
    ("a\fb", "white space"),
    ("a\rb", "white space"),
    ("a\xa0b", "white space"),
    ("à", "white space"),  # its UTF-8 has the byte 0xa0, as Linux sees it
    ("a\0b", "cannot be printed"),
    ("a\x01b", "cannot be printed"),
    ("a\x7fb", "cannot be printed"),
    ("a\u200bb", "cannot be printed"),
    ("a\udcffb", "cannot be printed"),  # the byte 0xff of an argument
    ("a\udbffb", "cannot be printed"),  # not even a byte
    ("a" * 16, "16 bytes"),
    ("é" * 8, "16 bytes"),
]

BAD_TEMPLATES = ["vnet%", "vnet%s", "vnet%5d", "%d%d", "%%d", "vnet%d%", "vnet%D"]

HOME_OF_WEB_1 = 15912652391

part = st.text(alphabet="abcxyz019.-_é€", max_size=6)


@st.composite
def templates(draw: st.DrawFn) -> names.Template:
    prefix, suffix = draw(part), draw(part)
    assume(len(f"{prefix}{suffix}".encode()) < names.MAX_BYTES)
    return names.parse(f"{prefix}%d{suffix}")


def linux_takes(name: bytes) -> bool:
    """`dev_valid_name`, and what sysctl refuses, in the kernel's own terms."""
    return (
        0 < len(name) < 16
        and name not in (b".", b"..", b"all", b"default")
        and not set(name) & set(b"/:%\0 \t\n\v\f\r\xa0")
    )


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_a_name_that_linux_refuses_is_refused_with_the_reason(
    name: str, reason: str
) -> None:
    with pytest.raises(BadName) as caught:
        names.check(name)
    assert repr(name) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_a_plain_name_is_checked_when_it_is_parsed(name: str, reason: str) -> None:
    with pytest.raises(BadName) as caught:
        names.parse(name)
    assert repr(name) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a", "a" * 15, "é" * 7, "...", "5", "-a", "vnet0.100", "a@b", "all0"]
)
def test_a_name_that_linux_takes_is_taken(name: str) -> None:
    names.check(name)


@given(st.text(max_size=17))
@example("à")
@example("\x85")
@SETTINGS
def test_exactly_what_linux_takes_and_people_can_read_is_taken(name: str) -> None:
    try:
        names.check(name)
    except BadName:
        assert not (name.isprintable() and linux_takes(name.encode()))
    else:
        assert linux_takes(name.encode())


def test_bytes_are_counted_not_characters() -> None:
    names.check("€" * 5)
    with pytest.raises(BadName, match="18 bytes"):
        names.check("€" * 6)
    assert names.parse("€€€€%d").capacity == 1000


@pytest.mark.parametrize(
    ("text", "first"),
    [("vnet%d", "vnet0"), ("%dvm", "0vm"), ("ci%d-a", "ci0-a"), ("%d", "0")],
)
def test_the_number_may_stand_anywhere(text: str, first: str) -> None:
    template = names.parse(text)
    assert template.numbered
    assert template.name(0) == first
    assert template.number(first) == 0
    assert str(template) == text


@pytest.mark.parametrize("text", BAD_TEMPLATES)
def test_a_template_has_one_percent_d_and_no_other_percent(text: str) -> None:
    with pytest.raises(BadName, match="'%' may stand only once") as caught:
        names.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["a" * 15 + "%d", "%d" + "é" * 8, "a" * 99 + "%d"])
def test_a_template_leaves_room_for_a_number(text: str) -> None:
    with pytest.raises(BadName, match="no room for a number") as caught:
        names.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a/b%d", "a:%d", "v m%d", "%d\xa0", "à%d", "a\x01%d", "\udcff%d"]
)
def test_the_text_around_the_number_is_checked_too(text: str) -> None:
    with pytest.raises(BadName):
        names.parse(text)


def test_a_plain_name_stands_for_itself_alone() -> None:
    plain = names.parse("mytap")
    assert not plain.numbered
    assert plain.capacity == 1
    assert plain.name(7) == str(plain) == "mytap"
    assert plain.number("mytap") is None


@pytest.mark.parametrize(
    ("text", "capacity"),
    [("%d", 10**15), ("vnet%d", 10**11), ("ab%dcd", 10**11), ("x" * 14 + "%d", 10)],
)
def test_capacity_is_what_fits_in_15_bytes(text: str, capacity: int) -> None:
    template = names.parse(text)
    assert template.capacity == capacity
    names.check(template.name(capacity - 1))
    with pytest.raises(BadName, match="16 bytes"):
        names.check(template.name(capacity))


@given(templates(), st.data())
@SETTINGS
def test_number_is_the_inverse_of_name(
    template: names.Template, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, template.capacity - 1))
    name = template.name(number)
    names.check(name)
    assert template.number(name) == number
    assert names.parse(str(template)) == template


@given(templates(), st.text(alphabet="abcxyz0123456789.-_é€", max_size=15))
@example(names.parse("a%da"), "a")
@example(names.parse("ab%dba"), "aba")
@SETTINGS
def test_a_name_that_carries_a_number_is_made_from_it(
    template: names.Template, name: str
) -> None:
    number = template.number(name)
    assert number is None or template.name(number) == name


@pytest.mark.parametrize(
    "name",
    [
        "vnet",
        "vnet00",
        "vnet01",
        "vnet-1",
        "vnet+1",
        "vnet 1",
        "vnet1 ",
        "vnet1_0",
        "vnet1.100",
        "vnet\u0661",  # an Arabic digit one
        "vnet\uff11",  # a full-width digit one
        "vnet\u00b2",  # a superscript two
        "VNET1",
        "xvnet1",
        "1",
        "",
    ],
)
def test_a_text_that_resembles_a_number_is_none(name: str) -> None:
    assert names.parse("vnet%d").number(name) is None


@given(templates(), st.text(alphabet=st.characters(codec="utf-8")))
@SETTINGS
def test_home_is_a_number_of_the_template(template: names.Template, key: str) -> None:
    assert 0 <= names.home(template, key) < template.capacity


def test_home_is_the_same_in_every_release() -> None:
    # A lost ledger forgets which key had which name; this does not.
    vnet = names.parse("vnet%d")
    assert names.home(vnet, "web-1") == HOME_OF_WEB_1
    assert names.home(vnet, "web-2") != HOME_OF_WEB_1
    assert names.home(names.parse("vm%d"), "web-1") != HOME_OF_WEB_1
