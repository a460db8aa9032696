# SPDX-License-Identifier: Apache-2.0
"""Make a request of the attributes that a domain's metadata gives a NIC.

The attributes are options of `add` without their dashes.
"""

import argparse
from collections.abc import Iterator, Mapping

from tapster.cli import nic, wire
from tapster.cli.parser import Parser
from tapster.errors import RequestError
from tapster.light import NoReturn
from tapster.model import DEFAULT_FIN_WAIT, Macvtap, Rate, Spec, Wiring

NIC_OPTIONS = ("link", "mode", "mac", "vnet-hdr", "queues", "fin-wait")
"""Options of `add` that are no wiring, and belong to a domain's NIC."""
ANSWERS = {"yes": "--", "no": "--no-"}
LISTS = {"address": ",", "external-id": None}
"""Options that are given once for each value, and what separates the values."""


def _options(parser: Parser) -> dict[str, argparse.Action]:
    """Return the options of a parser, by their names without dashes."""
    return {
        flag[2:]: action for action in parser._actions for flag in action.option_strings
    }


def allowed_attributes() -> set[str]:
    """Return the attributes that a NIC may have beside its name."""
    parser = _Parser(add_help=False)
    wire.declare(parser)
    wiring = {name for name in _options(parser) if not name.startswith("no-")}
    return {*NIC_OPTIONS, *wiring}


def request(name: str, attributes: Mapping[str, str]) -> Spec:
    """Return the request for the device `name`. Raise RequestError."""
    parser = _Parser(prog=name, add_help=False)
    nic.declare(parser)
    allowed = allowed_attributes()
    known = {
        option: action
        for option, action in _options(parser).items()
        if option in allowed
    }
    words = ["--name", name]
    for option, value in attributes.items():
        if option not in known:
            raise RequestError(
                f"the metadata's NIC {name!r} has an attribute {option!r}, which is "
                f"none of {', '.join(sorted(known))}"
            )
        words += _words(name, option, value, known[option])
    options = parser.parse_args(words)
    return nic.spec(options)


def attributes_of(spec: Spec) -> dict[str, str]:
    """Return the attributes from which `request` makes an equal request.

    They lack what the interface of a domain determines, such as the MAC.
    """
    found: dict[str, object] = {
        wire.OPTIONS[field].replace("_", "-"): value
        for field, value in spec.wiring._asdict().items()
        if value != Wiring._field_defaults[field]
    }
    if isinstance(spec, Macvtap):
        found |= {"link": spec.lower, "mode": spec.mode}
    if not spec.vnet_hdr:
        found["vnet-hdr"] = False
    if spec.fin_wait != DEFAULT_FIN_WAIT:
        found["fin-wait"] = f"{spec.fin_wait:g}s"
    return {name: _text(name, value) for name, value in found.items()}


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Rate):
        return ":".join("" if part is None else str(part) for part in value).rstrip(":")
    if name == "external-id" and isinstance(value, tuple):
        # The attribute cannot have a value with a space.
        ids = ["=".join(pair) for pair in value]
        return " ".join(id for id in ids if len(id.split()) == 1)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _words(
    name: str, option: str, value: str, action: argparse.Action
) -> Iterator[str]:
    if action.nargs == 0:
        if value not in ANSWERS:
            raise RequestError(
                f"the metadata's NIC {name!r} has {option}={value!r}: say yes or no"
            )
        if isinstance(action, argparse.BooleanOptionalAction):
            yield ANSWERS[value] + option
        elif (value == "yes") == (option == "up"):
            yield "--up"
        else:
            yield "--down"
    elif option in LISTS:
        for part in value.split(LISTS[option]):
            yield f"--{option}={part}"
    else:
        yield f"--{option}={value}"


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        text = message.replace("argument --", "").replace("--", "")
        raise RequestError(f"the metadata's NIC {self.prog!r}: {text}")
