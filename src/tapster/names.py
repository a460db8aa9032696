# SPDX-License-Identifier: Apache-2.0
"""The rules for names of devices. Pure.

A template has one `%d` anywhere (`vnet%d`, `ci%d-a`). It stands for the names that
have a number in place of `%d`. Without `%d` it is a plain name, and stands for
itself.

The rules are those of `dev_valid_name` and `dev_get_valid_name` in the kernel's
net/core/dev.c. Linux counts bytes, not characters. It would truncate a longer name
silently (`ifreq` has room for 15 bytes); Tapster refuses it.
"""

from tapster.errors import BadName
from tapster.light import NamedTuple, remembered

MAX_BYTES = 15
"""`IFNAMSIZ` less the NUL that ends the name."""
MAX_ALTNAME_BYTES = 127
"""`ALTIFNAMSIZ`, without its end."""

# `isspace` in the kernel is Latin-1 (lib/ctype.c): a no-break space counts, and
# so does the byte 0xa0 inside a longer UTF-8 character.
_SPACE = frozenset(b"\t\n\v\f\r \xa0")
_UNPRINTABLE = "contains a character that cannot be printed"


class Template(NamedTuple):
    """A parsed template: the text around the number, or a plain name."""

    prefix: str
    suffix: str
    numbered: bool

    def __str__(self) -> str:
        return f"{self.prefix}%d{self.suffix}" if self.numbered else self.prefix

    @property
    def capacity(self) -> int:
        """The number of names of the template that have at most 15 bytes."""
        if not self.numbered:
            return 1
        room = MAX_BYTES - len(self.prefix.encode()) - len(self.suffix.encode())
        return int(10**room)

    def name(self, number: int) -> str:
        """Return the name with this number."""
        return f"{self.prefix}{number}{self.suffix}" if self.numbered else self.prefix

    def number(self, name: str) -> int | None:
        """Return the number in a name; None if the name is not of this template."""
        if not (name.startswith(self.prefix) and name.endswith(self.suffix)):
            return None
        digits = name[len(self.prefix) : len(name) - len(self.suffix)]
        if not (self.numbered and digits.isascii() and digits.isdecimal()):
            return None
        if digits[0] == "0" and digits != "0":
            return None
        return int(digits)


@remembered  # most names of a host are made of one template
def parse(text: str) -> Template:
    """Parse a template or a plain name. Raise BadName."""
    prefix, percent, rest = text.partition("%")
    if not percent:
        check(text)
        return Template(text, "", numbered=False)
    if not text.isprintable():
        raise BadName(f"template {text!r} {_UNPRINTABLE}", name=text)
    if not rest.startswith("d") or "%" in rest:
        raise BadName(f"template {text!r}: '%' may stand only once, as '%d'", name=text)
    template = Template(prefix, rest[1:], numbered=True)
    if template.capacity < 10:
        raise BadName(
            f"template {text!r} leaves no room for a number: "
            f"a name has at most {MAX_BYTES} bytes",
            name=text,
        )
    check(template.name(0))
    return template


def check(name: str) -> None:
    """Raise BadName if Linux would refuse the name."""
    if reason := _objection(name, MAX_BYTES):
        raise BadName(f"name {name!r} {reason}", name=name)


def check_reference(name: str) -> None:
    """Raise BadName if no device can have the name, nor the alternative name."""
    if reason := _objection(name, MAX_ALTNAME_BYTES):
        raise BadName(f"name {name!r} {reason}", name=name)


def _objection(name: str, most: int) -> str | None:
    if not name:
        return "is empty"
    # Bytes that are not UTF-8 are surrogates here, which cannot be printed either.
    encoded = name.encode(errors="replace")
    if len(encoded) > most:
        return f"has {len(encoded)} bytes: Linux takes at most {most}"
    if name in {".", "..", "all", "default"}:
        return "is reserved by Linux"
    for forbidden in "/:%":
        if forbidden in name:
            return f"contains {forbidden!r}"
    if not _SPACE.isdisjoint(encoded):
        return "contains white space"
    if not name.isprintable():
        return _UNPRINTABLE
    return None


def home(template: Template, key: str) -> int:
    """Return the number that `stable` naming gives a key, unless another key has it."""
    # Costs a third of a verb's start (OpenSSL), and only this policy needs it.
    import hashlib

    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % template.capacity
