# SPDX-License-Identifier: Apache-2.0
"""The options that say what a device is connected to: of `add`, `run` and `set`.

One that was not given is not in the namespace. An empty value is none.
"""

import argparse
from collections.abc import Callable
from typing import Any

from tapster.errors import RequestError
from tapster.model import Rate, Wiring

RATE = "AVERAGE[:PEAK[:BURST]]"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add the options to `parser`."""

    def option(flag: str, help: str, **more: Any) -> None:
        parser.add_argument(flag, help=help, default=argparse.SUPPRESS, **more)

    yes_or_no = argparse.BooleanOptionalAction
    option("--bridge", "the Linux bridge that a tap joins", metavar="BR", type=name)
    option("--ovs", "the Open vSwitch bridge instead", metavar="BR", type=name)
    option("--mtu", "default: the bridge's", metavar="N", type=number)
    option("--isolated", "isolate the bridge port", action=yes_or_no)
    option("--learning", "whether the bridge learns MACs there", action=yes_or_no)
    option("--vlan", "the VLAN of untagged frames", metavar="N", type=number)
    option("--trunk", "a VLAN of tagged frames", metavar="N", action=_List, type=int)
    option("--external-id", "for Open vSwitch", metavar="KEY=VALUE", action=_List)
    option("--filter", "let the guest send as itself alone", action=yes_or_no)
    option("--address", "an IP that it can use", metavar="IP", action=_List)
    option("--guard", "drop what the filter cannot judge", action=yes_or_no)
    option("--inbound", "limit what it gets", metavar=RATE, type=rate)
    option("--outbound", "limit what it sends", metavar=RATE, type=rate)
    option("--up", "plug the cable in (the default)", action="store_true")
    option("--down", "pull it out", action="store_false", dest="up")


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Wiring` that were given. Raises RequestError."""
    given = {
        field: getattr(options, option)
        for field, option in _OPTIONS.items()
        if hasattr(options, option)
    }
    if "external_ids" in given:
        given["external_ids"] = tuple(map(_pair, given["external_ids"]))
    if given.get("addresses"):
        given.setdefault("filter", True)
    return given


_OPTIONS = {field: field for field in Wiring._fields} | {
    "trunks": "trunk",
    "external_ids": "external_id",
    "addresses": "address",
}
"""The options by the fields of `Wiring` that they are about."""


class _List(argparse.Action):
    """One more value of several; an empty one takes away those before."""

    def __init__(self, *args: Any, type: Callable[[str], Any] = str, **more: Any):
        super().__init__(*args, **more)
        self._type = type

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, ())
        try:
            now = (*before, self._type(values)) if values else ()
        except ValueError:
            parser.error(f"argument {option_string}: invalid value: {values!r}")
        setattr(namespace, self.dest, now)


def name(given: str) -> str | None:
    return given or None


def number(given: str) -> int | None:
    return int(given) if given else None


def rate(given: str) -> Rate | None:
    if not given:
        return None
    average, *others = given.split(":")
    if len(others) > 2:
        raise ValueError(given)
    return Rate(int(average), *(number(one) for one in others))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RequestError(f"external id {text!r} is not KEY=VALUE")
    return key, value
