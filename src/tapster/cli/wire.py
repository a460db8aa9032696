# SPDX-License-Identifier: Apache-2.0
"""The options for a device's wiring, shared by `add`, `run` and `set`.

An option that is not given is absent from the result. An empty value means none.
"""

from tapster.cli import values
from tapster.cli.options import GATHER, SUPPRESS, YES_OR_NO, Options
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING, Any
from tapster.model import Wiring

if TYPE_CHECKING:
    from tapster.cli.parser import Parser

RATE = "AVERAGE[:PEAK[:BURST]]"


def declare(parser: "Parser") -> None:
    """Add the options to `parser`."""

    def option(flag: str, help: str, **more: Any) -> None:
        parser.add_argument(flag, help=help, default=SUPPRESS, **more)

    yes_or_no = YES_OR_NO
    texts: dict[str, Any] = {"action": GATHER, "type": values.single}
    name, number, rate = values.name, values.optional_number, values.rate
    option("--bridge", "the Linux bridge that a tap joins", metavar="BR", type=name)
    option("--ovs", "the Open vSwitch bridge that a tap joins", metavar="BR", type=name)
    option("--redirect", "the device whose place a tap takes", metavar="DEV", type=name)
    option("--mtu", "the MTU; default: the bridge's", metavar="N", type=number)
    option(
        "--isolated", "exchange no frames with other isolated ports", action=yes_or_no
    )
    option("--learning", "let the bridge learn MACs from the guest", action=yes_or_no)
    option(
        "--root-guard", "do not let the guest become the root bridge", action=yes_or_no
    )
    option("--bpdu-guard", "close the port if a BPDU comes in", action=yes_or_no)
    option("--vlan", "the VLAN of untagged frames", metavar="N", type=number)
    option(
        "--trunk",
        "VLANs of tagged frames: 5,10-20",
        metavar="VLANS",
        action=GATHER,
        type=values.vlans,
    )
    option(
        "--external-id", "an external id for Open vSwitch", metavar="KEY=VALUE", **texts
    )
    option("--filter", "drop frames that are not the guest's own", action=yes_or_no)
    option("--address", "an IP that the guest may use", metavar="IP", **texts)
    option("--guard", "drop what the filter cannot judge", action=yes_or_no)
    option(
        "--inbound",
        "limit traffic to the guest: kB/s, kB/s, KiB",
        metavar=RATE,
        type=rate,
    )
    option(
        "--outbound",
        "limit traffic from the guest: kB/s, kB/s, KiB",
        metavar=RATE,
        type=rate,
    )
    option(
        "--outbound-pps", "limit the guest's frames a second", metavar="N", type=number
    )
    option("--standby", "connect it to nothing until tapster take", action=yes_or_no)
    option("--up", "plug the guest's cable in (the default)", action="store_true")
    option("--down", "pull the guest's cable out", action="store_false", dest="up")


def changes(options: Options) -> dict[str, Any]:
    """Return the fields of `Wiring` that were given. Raises RequestError."""
    given = {
        field: getattr(options, option)
        for field, option in OPTIONS.items()
        if hasattr(options, option)
    }
    if "external_ids" in given:
        given["external_ids"] = tuple(map(_pair, given["external_ids"]))
    if given.get("addresses"):
        given.setdefault("filter", True)
    return given


def empty(options: Options) -> list[str]:
    """Return the options that were given without a value."""
    return [
        option
        for option in OPTIONS.values()
        if getattr(options, option, "absent") in (None, ())
    ]


OPTIONS = {field: field for field in Wiring._fields} | {
    "trunks": "trunk",
    "external_ids": "external_id",
    "addresses": "address",
}
"""The option for each field of `Wiring`."""


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RequestError(f"external id {text!r} is not KEY=VALUE")
    return key, value
