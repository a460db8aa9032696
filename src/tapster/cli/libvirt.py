# SPDX-License-Identifier: Apache-2.0
"""Let libvirt's domains have devices that Tapster makes.

The actions:
  install            put libvirt's hook on this host, once
  uninstall          remove the hook
  adopt DOMAIN       convert a domain's interfaces to devices that Tapster makes
  release DOMAIN     give a domain its former interfaces back
  attach DOMAIN      plug a device into a domain that runs
  detach DOMAIN NIC  unplug a device from a domain that runs
  ls                 list the devices of domains
  hook               what libvirt's hook calls

tapster libvirt ACTION --help explains an action. docs/libvirt.md explains the rest.
"""

import os
import sys
from collections.abc import Callable

from tapster.cli import settle, terminal
from tapster.cli.options import SUPPRESS, Options
from tapster.errors import HostError, RequestError, TapsterError
from tapster.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tapster.cli.parser import Parser
    from tapster.host import Host
    from tapster.libvirt.adoption import Conversion
    from tapster.libvirt.domain import NicRequest

HOOK_SECONDS = 20
"""How long the hook may take: libvirt waits for it without a limit."""
GRACE_SECONDS = 5
"""After these seconds more, the hook ends inside a call that does not return."""


def declare(parser: "Parser") -> None:
    parser.add_argument("action", choices=[*ACTIONS], metavar="ACTION")
    parser.add_argument("arguments", nargs="...", help=SUPPRESS)


def run(options: Options, _: None) -> int:
    from tapster.cli.parser import Parser

    action = ACTIONS[options.action]
    parser = Parser(
        prog=f"tapster libvirt {options.action}", description=action.run.__doc__
    )
    action.declare(parser)
    parser.set_defaults(ledger=options.ledger)
    # A domain's name may begin with "-". libvirt gives the hook no options.
    before = ["--"] if options.action == "hook" else []
    return action.run(parser.parse_args([*before, *options.arguments]))


def _open(options: Options) -> "Host":
    from tapster.host import Host

    return Host(options.ledger)


# The host


def _install(options: Options) -> int:
    """Put libvirt's hook on this host."""
    from tapster.kernel.files import absolute
    from tapster.libvirt import hooks

    _need_root("install writes below /etc/libvirt")
    program = os.path.realpath(sys.argv[0])
    if not os.access(program, os.X_OK):
        raise HostError(f"{program!r} is no program that libvirt could start")
    ledger = options.ledger or os.environ.get("TAPSTER_LEDGER")
    print(*hooks.install(program, ledger and absolute(ledger)), sep="\n")
    if daemon := hooks.daemon_to_restart():
        print(
            f"next: systemctl restart {daemon} (it had no hook when it started; VMs "
            "go on running)",
            file=sys.stderr,
        )
    return 0


def _uninstall(options: Options) -> int:
    """Remove libvirt's hook.

    Release the domains first: without the hook those that are adopted do not start.
    """
    from tapster.libvirt import hooks

    _need_root("uninstall removes files below /etc/libvirt")
    print(*hooks.uninstall(), sep="\n")
    return 0


def _need_root(why: str) -> None:
    if os.geteuid() != 0:
        raise RequestError(f"{why}: run it as root")


# Domains


def _declare_domains(parser: "Parser") -> None:
    parser.add_argument("domain", nargs="*", metavar="DOMAIN", help="name or UUID")
    parser.add_argument("--all", action="store_true", help="every domain")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would change"
    )


def _declare_adopt(parser: "Parser") -> None:
    _declare_domains(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="convert a domain although it loses settings",
    )


def _adopt(options: Options) -> int:
    """Convert a domain's interfaces to devices that Tapster makes.

    A domain that runs keeps its devices until it is shut down.
    """
    from tapster.cli import nic_attributes
    from tapster.libvirt import adoption, domain
    from tapster.model import check_spec

    def adopted(xml: bytes) -> "Conversion":
        conversion = adoption.adopt(xml, _resolve)
        for nic in domain.requests_of(conversion.xml):
            # Else the hook would refuse it when the domain starts.
            check_spec(nic_attributes.request(nic.dev, nic.attributes))
        return conversion

    return _convert(options, adopted)


def _release(options: Options) -> int:
    """Give a domain the interfaces back that it had before it was adopted."""
    from tapster.libvirt import adoption

    return _convert(options, adoption.release)


def _convert(options: Options, convert: "Callable[[bytes], Conversion]") -> int:
    """Convert each chosen domain on its own; return the exit code."""
    from tapster.libvirt import virsh

    if bool(options.domain) == options.all:
        raise RequestError("give one or more DOMAINs, or --all")
    failed = False
    uuids = virsh.domains()
    for name in uuids if options.all else options.domain:
        try:
            _convert_one(name, uuids.get(name, name), options, convert)
        except TapsterError as error:
            terminal.complain(error, f"{name}: ")
            failed = True
    return int(failed)


def _convert_one(
    name: str, uuid: str, options: Options, convert: "Callable[[bytes], Conversion]"
) -> None:
    from tapster.libvirt import virsh

    before = virsh.definition(uuid)
    conversion = convert(before)
    for line in conversion.left:
        print(f"{name}: stays as it is: {line}", file=sys.stderr)
    for line in conversion.lost:
        print(f"{name}: not supported: {line}", file=sys.stderr)
    if conversion.lost and not getattr(options, "force", True):
        raise RequestError("nothing was changed; to convert it without these: --force")
    for nic in conversion.nics:
        print(f"{name}: {_shown(nic)}")
    if conversion.xml == before or options.dry_run:
        return
    virsh.define(conversion.xml)
    if virsh.runs(uuid):
        print(f"{name}: it runs, and changes at its next start", file=sys.stderr)


def _shown(nic: "NicRequest") -> str:
    return " ".join(
        [nic.dev, *(f"{key}={value}" for key, value in nic.attributes.items())]
    )


def _resolve(network: str) -> dict[str, str]:
    from tapster.libvirt import virsh
    from tapster.libvirt.network import place

    return place(virsh.network(network))


# Devices of domains that run


def _declare_attach(parser: "Parser") -> None:
    from tapster.cli import nic

    parser.add_argument("domain", metavar="DOMAIN", help="a domain that runs")
    parser.add_argument("--model", default="virtio", help="default: virtio")
    nic.declare(parser)
    parser.set_defaults(name=None)


def _attach(options: Options) -> int:
    """Plug a device into a domain that runs, and print the device's name.

    The device lasts until it is detached or the domain ends. The options are those of
    tapster add.
    """
    from tapster.cli import nic, nic_attributes
    from tapster.libvirt import plug

    name, options.name = options.name, options.name or "tap"
    spec = nic.spec(options)
    asked = nic_attributes.attributes_of(spec)
    with _open(options) as host:
        settle(host)
        print(plug.attach(host, options.domain, spec, asked, options.model, name))
    return 0


def _declare_detach(parser: "Parser") -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain that runs")
    parser.add_argument("nic", metavar="NIC", help="the device's name, or the MAC")


def _detach(options: Options) -> int:
    """Unplug a device of Tapster's from a domain that runs."""
    from tapster.libvirt import plug

    with _open(options) as host:
        settle(host)
        plug.detach(host, options.domain, options.nic)
    return 0


def _declare_ls(parser: "Parser") -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _ls(options: Options) -> int:
    """List the devices that domains have or want, with their leases."""
    from tapster.cli import output
    from tapster.libvirt import listing

    with _open(options) as host:
        rows = listing.rows(host)
    if options.json:
        output.print_json(nics=[row._asdict() for row in rows])
        return 0
    columns = ("DOMAIN", "STATE", "NIC", "ON", "MAC", "LEASE", "ID")
    output.print_table(
        [output.Column(name) for name in columns],
        [[value or "-" for value in row] for row in rows],
    )
    return 0


# The hook


def _declare_hook(parser: "Parser") -> None:
    for name in ("domain", "phase", "step", "extra"):
        parser.add_argument(name, metavar=name.upper())


def _hook(options: Options) -> int:
    """Do what a phase of a domain's life needs. The input is the domain's XML."""
    _bound_time(options.phase)
    from tapster.cli import nic_attributes
    from tapster.libvirt import domain, hook

    xml = sys.stdin.buffer.read()
    uuid, name = domain.uuid_of(xml), domain.name_of(xml)
    devs = tuple(nic.dev for nic in domain.nics_of(xml))
    asked = hook.Domain(uuid, name, devs)
    if options.phase in hook.STARTING:
        nics = domain.requests_of(xml)
        asked = asked._replace(
            specs=tuple(nic_attributes.request(nic.dev, nic.attributes) for nic in nics)
        )
    with _open(options) as host:
        if hook.call(host, asked, options.phase, os.getppid()):
            from tapster.kernel import detached

            ledger = host.operations.context.ledger.path
            detached.start("tapster.libvirt.arrival", asked.uuid, ledger)
    return 0


def _bound_time(phase: str) -> None:
    """End the hook in time: with an error, and if it cannot see that, at once."""
    import signal
    from _thread import allocate_lock, start_new_thread

    never = allocate_lock()
    never.acquire()
    late = f"{phase} took longer than {HOOK_SECONDS} s; tapster doctor may say why"

    def give_up(*_: object) -> None:
        raise HostError(late)

    def end() -> None:
        never.acquire(timeout=HOOK_SECONDS + GRACE_SECONDS)
        os.write(2, f"tapster: {late}\n".encode())
        os._exit(1)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HOOK_SECONDS)
    start_new_thread(end, ())


class LibvirtAction(NamedTuple):
    """An action of the verb."""

    declare: Callable[["Parser"], None]
    run: Callable[[Options], int]


def _declare_nothing(_: "Parser") -> None:
    pass


ACTIONS = {
    "install": LibvirtAction(_declare_nothing, _install),
    "uninstall": LibvirtAction(_declare_nothing, _uninstall),
    "adopt": LibvirtAction(_declare_adopt, _adopt),
    "release": LibvirtAction(_declare_domains, _release),
    "attach": LibvirtAction(_declare_attach, _attach),
    "detach": LibvirtAction(_declare_detach, _detach),
    "ls": LibvirtAction(_declare_ls, _ls),
    "hook": LibvirtAction(_declare_hook, _hook),
}
