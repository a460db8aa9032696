# SPDX-License-Identifier: Apache-2.0
"""Share MAC addresses and an inventory with other hosts, through etcd.

The table [fleet] of /etc/tapster/tapster.toml says how.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence

from tapster.cli import output, terminal
from tapster.cli.options import Options
from tapster.cli.output import Column
from tapster.cli.values import given_text
from tapster.errors import OF_ONE_LEASE, NoSuchLease, RequestError
from tapster.fleet import settings
from tapster.fleet.book import BookEntry
from tapster.fleet.fleet import Overview
from tapster.fleet.keys import InventoryRow, Keys, Session
from tapster.fleet.member import Member, Synced, open_store
from tapster.fleet.registration import Registration
from tapster.fleet.settings import Settings
from tapster.fleet.steps import Fenced
from tapster.fleet.store import FleetUnavailable
from tapster.light import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tapster.cli.parser import Parser

ROW_COLUMNS = (
    Column("HOST"),
    Column("NAME"),
    Column("STATE"),
    Column("KIND", 1),
    Column("ON", cut=True),
    Column("MAC"),
    Column("SEGMENT", 2),
    Column("VM", cut=True),
    Column("OWNER", cut=True),
)
REGISTRATION_COLUMNS = tuple(
    map(Column, ("VM", "MAC", "SEGMENT", "STATE", "HOST", "EPOCH", "LEASE"))
)
HOST_COLUMNS = tuple(map(Column, ("HOST", "SESSION", "LEDGER", "FENCED")))


def declare(parser: "Parser") -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=given_text,
        help="the configuration; default: /etc/tapster/tapster.toml",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    for name, action in ACTIONS.items():
        child = actions.add_parser(
            name,
            help=action.help,
            description=f"{action.help[0].upper()}{action.help[1:]}.",
        )
        child.add_argument("--json", action="store_true", help="print JSON")
        for option, arguments in action.options:
            child.add_argument(option, **arguments)


def run(options: Options, _: None) -> int:
    if options.config is not None:
        if not os.path.exists(options.config):
            raise RequestError(f"there is no file {options.config!r}")
        os.environ["TAPSTER_CONFIG"] = options.config
    loaded = settings.load()
    if loaded is None:
        raise RequestError(
            f"{settings.path()} has no [fleet]: this host is in no fleet"
        )
    return ACTIONS[options.action].run(options, loaded)


# Hosts


def _member(options: Options, loaded: Settings) -> Member:
    from tapster.kernel.linux import LinuxSystem
    from tapster.ledger import Ledger
    from tapster.operations.context import ledger_path

    ledger = Ledger(ledger_path(options.ledger), LinuxSystem())
    return Member(loaded, ledger, open_store(loaded))


def _joined(options: Options, loaded: Settings) -> Member:
    member = _member(options, loaded)
    member.check_joined()
    return member


def _join(options: Options, loaded: Settings) -> int:
    member = _member(options, loaded)
    if options.dry_run:
        return _say(
            options, f"would join as {member.me.host}, ledger {member.me.ledger}"
        )
    return _synced(options, member.join(), f"joined as {member.me.host}")


def _leave(options: Options, loaded: Settings) -> int:
    member = _joined(options, loaded)
    if options.dry_run:
        return _say(options, f"would leave; blocks: {', '.join(member.book.blocks())}")
    member.leave()
    return _say(options, f"{member.me.host} has left the fleet")


def _sync(options: Options, loaded: Settings) -> int:
    member = _joined(options, loaded)
    if options.dry_run:
        dirty = member.book.dirty()
        lines = [
            f"{e.record.mac} {e.record.state} {e.record.vm} {e.row.name}" for e in dirty
        ]
        return _say(options, *lines, f"would push {len(dirty)} records")
    try:
        synced = member.sync(everything=options.all)
    except Fenced:
        if loaded.on_fenced == "down":
            _take_down(options, member)
        raise
    return _synced(options, synced, "synced")


def _take_down(options: Options, member: Member) -> None:
    """Pull the cables of VMs that another host has taken over."""
    from tapster.host import Host

    with Host(options.ledger) as host:
        for entry in member.superseded():
            try:
                host.set(entry.record.lease, up=False)
            except OF_ONE_LEASE as error:
                terminal.complain(error, f"{entry.row.name}: ")
                continue
            said = f"{entry.row.name} is down: VM {entry.record.vm} runs elsewhere"
            print(said, file=sys.stderr)


def _epoch(options: Options, loaded: Settings) -> int:
    entry = _entry(_joined(options, loaded), options.name)
    if entry.record.epoch is None:
        raise RequestError(f"{entry.row.name} has no epoch yet: tapster fleet sync")
    return _say(options, str(entry.record.epoch))


def _entry(member: Member, name_or_id: str) -> BookEntry:
    entries = member.book.entries("WHERE name = ? OR id = ?", name_or_id, name_or_id)
    if not entries:
        raise NoSuchLease(
            f"no lease has the name or id {name_or_id!r}", reference=name_or_id
        )
    return entries[-1]


def _doctor(options: Options, loaded: Settings) -> int:
    from tapster.fleet import doctor

    problems = doctor.examine(_joined(options, loaded), time.time())
    return output.print_problems(problems, json=options.json)


# The fleet


def _overview(options: Options, loaded: Settings) -> Overview:
    dry_run = getattr(options, "dry_run", False)
    return Overview(open_store(loaded), Keys(loaded.prefix), dry_run=dry_run)


def _init(options: Options, loaded: Settings) -> int:
    where = Keys(loaded.prefix)
    overview = Overview(open_store(loaded), where, dry_run=not options.apply)
    lines = []
    try:
        fleet = overview.init(options.mac_prefix, force=options.force)
        lines.append(f"# the fleet {where.root}: its MACs begin with {fleet.prefix}")
    except FleetUnavailable as error:
        if options.apply:
            raise
        # The commands below may be needed to make this user.
        lines.append(f"# etcd could not be asked: {error}")
    for host in options.host or ["HOST"]:
        lines += role_lines(host, host_rights(where, host))
    lines += role_lines("operator", [("readwrite", f"{where.root}/")])
    if not options.apply:
        lines.append(f"# nothing was changed; --apply writes {where.fleet} alone")
    return _say(options, *lines)


def host_rights(where: Keys, host: str) -> list[tuple[str, str]]:
    """Return the keys of a host, with its rights on each. A key that ends with "/" is a
    prefix."""
    return [
        ("read", where.fleet),
        ("read", where.permits),
        ("read", where.sessions),
        ("readwrite", where.permit(host)),
        ("readwrite", where.session(host)),
        ("readwrite", where.rows(host)),
        ("readwrite", where.registrations),
        ("readwrite", where.blocks),
    ]


def role_lines(name: str, rights: list[tuple[str, str]]) -> list[str]:
    """Return the commands that make a user with these rights."""
    grant = f"etcdctl role grant-permission {name}"
    return [
        f"etcdctl role add {name}",
        *(
            f"{grant} {'--prefix=true ' if key.endswith('/') else ''}{right} {key}"
            for right, key in rights
        ),
        f"etcdctl user add {name}",
        f"etcdctl user grant-role {name} {name}",
    ]


def _ls(options: Options, loaded: Settings) -> int:
    overview = _overview(options, loaded)
    silent = {status.name for status in overview.hosts() if status.session is None}
    rows = [
        found
        for found in overview.rows(options.host or "")
        if not options.silent or found[0] in silent
    ]
    return _print_rows(options, rows)


def _hosts(options: Options, loaded: Settings) -> int:
    hosts = _overview(options, loaded).hosts()
    if options.json:
        output.print_json(
            hosts=[
                host._asdict() | {"session": host.session and _json(host.session)}
                for host in hosts
            ]
        )
        return 0
    output.print_table(
        HOST_COLUMNS,
        [
            (
                host.name,
                "alive" if host.session else "silent",
                host.ledger or "-",
                f"by {host.by}: {host.why}" if host.fenced else "-",
            )
            for host in hosts
        ],
    )
    return 0


def _who(options: Options, loaded: Settings) -> int:
    return _print_rows(options, _overview(options, loaded).who(options.wanted))


def _json(record: InventoryRow | Registration | Session) -> dict[str, Any]:
    """Return a record of the store as --json shows it."""
    return record._asdict() | {"since": output.timestamp(record.since)}


def _print_rows(options: Options, rows: Sequence[tuple[str, str, InventoryRow]]) -> int:
    if options.json:
        output.print_json(
            rows=[
                {"host": host, "lease": lease, **_json(row)}
                for host, lease, row in rows
            ]
        )
    else:
        output.print_table(
            ROW_COLUMNS,
            [
                (
                    host,
                    *(row.name or "-", row.state, row.kind or "-", row.on or "-"),
                    *(row.mac, row.segment, row.vm, row.owner or "-"),
                )
                for host, _, row in rows
            ],
        )
    return 0


def _where(options: Options, loaded: Settings) -> int:
    found = _overview(options, loaded).where_is(options.wanted)
    if options.json:
        output.print_json(
            registrations=[
                {
                    "mac": located.mac,
                    "segment": located.segment,
                    **_json(located.registration),
                    "epoch": str(located.registration.epoch),
                }
                for located in found
            ]
        )
    else:
        output.print_table(
            REGISTRATION_COLUMNS,
            [
                (
                    *(located.registration.vm, located.mac, located.segment),
                    *(located.registration.state, located.registration.host),
                    *(str(located.registration.epoch), located.registration.lease),
                )
                for located in found
            ],
        )
    return 0 if found else 1


def _fence(options: Options, loaded: Settings) -> int:
    overview = _overview(options, loaded)
    if options.lift:
        _confirm(options, f"{options.host} is not dead, and its VMs run nowhere else")
        overview.lift(options.host)
        return _say(options, f"the fence of {options.host} is lifted")
    if not options.why:
        raise RequestError("say why the host is known to be dead: --why")
    _confirm(options, f"{options.host} is dead, or cut off from its networks")
    by = options.by or os.environ.get("SUDO_USER") or os.environ.get("USER") or "root"
    status = overview.fence(
        options.host, by=by, why=options.why, boot=options.boot or ""
    )
    return _say(options, f"{options.host} is fenced: boot {status.fenced or '-'}")


def _forget(options: Options, loaded: Settings) -> int:
    _confirm(options, f"the MACs of {options.wanted} may go to other VMs")
    return _say(options, *_overview(options, loaded).forget(options.wanted))


def _evict(options: Options, loaded: Settings) -> int:
    _confirm(options, f"{options.host} never comes back")
    return _say(options, *_overview(options, loaded).evict(options.host))


def _confirm(options: Options, statement: str) -> None:
    """Let the user confirm a fact that Tapster cannot know."""
    if options.yes or options.dry_run:
        return
    if not sys.stdin.isatty():
        raise RequestError(f"is it so that {statement}? If it is, say --yes")
    print(f"{statement}. Is this so? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RequestError("nothing was changed")


def _say(options: Options, *lines: str) -> int:
    if options.json:
        output.print_json(done=[*lines])
    else:
        for line in lines:
            print(line)
    return 0


def _synced(options: Options, synced: Synced, said: str) -> int:
    if options.json:
        output.print_json(
            pushed=synced.pushed,
            block=synced.block or None,
            problems=[
                {
                    "mac": entry.record.mac,
                    "vm": entry.record.vm,
                    "lease": entry.record.lease,
                    "problem": entry.problem,
                }
                for entry in synced.problems
            ],
        )
    else:
        block = f", took block {synced.block}" if synced.block else ""
        print(f"{said}: {synced.pushed} records pushed{block}")
        for entry in synced.problems:
            print(
                f"{entry.record.mac} of VM {entry.record.vm}: {entry.problem}",
                file=sys.stderr,
            )
    return int(bool(synced.problems))


class FleetAction(NamedTuple):
    """One action of `tapster fleet`."""

    help: str
    run: Callable[[Options, Settings], int]
    options: tuple[tuple[str, dict[str, Any]], ...] = ()


_DRY_RUN = ("--dry-run", {"action": "store_true", "help": "change nothing"})
_YES = ("--yes", {"action": "store_true", "help": "do not ask"})
_HOST = (
    "host",
    {"type": given_text, "metavar": "HOST", "help": "a host's name in the fleet"},
)

ACTIONS = {
    "init": FleetAction(
        "begin a fleet: print commands for its store",
        _init,
        (
            (
                "--mac-prefix",
                {
                    "default": "0a:54:00",
                    "metavar": "XX:XX:XX",
                    "help": "the first bytes of its MACs; default: 0a:54:00",
                },
            ),
            (
                "--host",
                {"action": "append", "metavar": "HOST", "help": "a host to be"},
            ),
            ("--force", {"action": "store_true", "help": "also with 52:54:00"}),
            ("--apply", {"action": "store_true", "help": "write the prefix to etcd"}),
        ),
    ),
    "join": FleetAction("let this host enter the fleet", _join, (_DRY_RUN,)),
    "leave": FleetAction("let this host leave the fleet", _leave, (_DRY_RUN,)),
    "sync": FleetAction(
        "push changes of this host's ledger",
        _sync,
        (
            ("--all", {"action": "store_true", "help": "also push unchanged leases"}),
            _DRY_RUN,
        ),
    ),
    "epoch": FleetAction(
        "print the epoch to hand over with a VM",
        _epoch,
        (
            (
                "name",
                {
                    "metavar": "NAME",
                    "type": given_text,
                    "help": "a device's name, or a lease's id",
                },
            ),
        ),
    ),
    "ls": FleetAction(
        "list the leases of all hosts",
        _ls,
        (
            (
                "--host",
                {"metavar": "HOST", "type": given_text, "help": "only of this host"},
            ),
            (
                "--silent",
                {"action": "store_true", "help": "only of hosts that do not sync"},
            ),
        ),
    ),
    "hosts": FleetAction("list the hosts", _hosts),
    "who": FleetAction(
        "show which host has a device",
        _who,
        (
            (
                "wanted",
                {
                    "type": given_text,
                    "metavar": "MAC|NAME|VM",
                    "help": "a MAC, a name or a VM",
                },
            ),
        ),
    ),
    "where": FleetAction(
        "show where a VM runs, or ran last",
        _where,
        (
            (
                "wanted",
                {"type": given_text, "metavar": "VM|MAC", "help": "a VM or a MAC"},
            ),
        ),
    ),
    "doctor": FleetAction("list the problems of the fleet", _doctor),
    "fence": FleetAction(
        "declare a host dead, so that its VMs can start elsewhere",
        _fence,
        (
            _HOST,
            ("--why", {"metavar": "TEXT", "help": "the proof that the host is dead"}),
            ("--by", {"metavar": "TEXT", "help": "the person who declares it"}),
            ("--boot", {"metavar": "ID", "help": "the boot that has ended"}),
            ("--lift", {"action": "store_true", "help": "take the declaration back"}),
            _YES,
            _DRY_RUN,
        ),
    ),
    "forget": FleetAction(
        "give up the MACs of a VM that no host runs",
        _forget,
        (
            (
                "wanted",
                {"type": given_text, "metavar": "VM|MAC", "help": "a VM or a MAC"},
            ),
            _YES,
            _DRY_RUN,
        ),
    ),
    "evict": FleetAction(
        "give up a host that never comes back, with its blocks",
        _evict,
        (_HOST, _YES, _DRY_RUN),
    ),
}
