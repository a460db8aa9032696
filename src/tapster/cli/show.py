# SPDX-License-Identifier: Apache-2.0
"""Show leases, their devices as the kernel reports them, and every difference."""

from tapster.cli import output, selection, terminal
from tapster.cli.options import Options
from tapster.errors import NoSuchLease, RequestError, ServiceUnavailable
from tapster.light import TYPE_CHECKING, Any
from tapster.model import Lease
from tapster.operations.decision import UNREPAIRED

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser


def declare(parser: "Parser") -> None:
    selection.declare(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Options, host: "AnyHost") -> int:
    if not selection.is_given(options):
        raise RequestError("nothing was chosen: give a NAME or ID, or a filter")
    chosen = selection.choose(options, host)
    shown = []
    for lease in chosen.leases:
        try:
            shown.append(_look(host, lease))
        except NoSuchLease as error:  # it has ended in the meantime
            if not {lease.name, lease.id}.isdisjoint(options.lease):
                chosen.missing.append(error)
    if options.json:
        # One lease by name is what version 1 began with: its fields are at the top.
        plain = len(options.lease) == 1 and len(shown) == 1
        if shown or not chosen.missing:
            output.print_json(**(shown[0] if plain else {"shown": shown}))
    else:
        print(
            "\n\n".join("\n".join(lines(lease)) for lease in shown),
            end="\n" * bool(shown),
        )
    return int(selection.report(chosen.missing))


def _look(host: "AnyHost", lease: Lease) -> dict[str, Any]:
    link = host.device(lease)
    try:
        differences = host.differences(lease)
    except ServiceUnavailable as error:
        differences = {"service": str(error)}
    return {
        "lease": output.lease_json(lease),
        "device": output.link_json(link),
        "differences": differences,
    }


def lines(shown: dict[str, Any]) -> list[str]:
    """Return one lease for people."""
    sound = [
        (prefix + field, _shown(value))
        for prefix, part in (("", shown["lease"]), ("device ", shown["device"] or {}))
        for field, value in part.items()
        if value not in (None, "", (), {})
    ]
    wrong = [] if shown["device"] else [("device", "is missing: tapster recover")]
    for backend, difference in shown["differences"].items():
        remedy = "" if backend in UNREPAIRED else ": tapster recover"
        what = f"differs {terminal.plain(backend)}"
        wrong.append((what, terminal.plain(difference) + remedy))
    width = 2 + max(len(field) for field, _ in sound + wrong)
    red = terminal.RED if terminal.has_colours() else None
    return [f"{field:<{width}}{text}" for field, text in sound] + [
        terminal.paint(f"{field:<{width}}{text}", red) for field, text in wrong
    ]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        parts = (f"{key}={part}" for key, part in value.items() if part is not None)
        return terminal.plain(" ".join(parts))
    if isinstance(value, tuple):
        return terminal.plain(" ".join(map(str, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return terminal.plain(str(value))
