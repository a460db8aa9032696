# SPDX-License-Identifier: Apache-2.0
"""Install the units of tapsterd, for the programs of this installation.

The files also keep udev, NetworkManager and systemd-networkd off Tapster's
devices. A package has placed them already; this verb is for pip, pipx and
virtual environments.
"""

import os
import sys

from tapster.cli.options import Options
from tapster.errors import HostError, RequestError
from tapster.install import place
from tapster.install.manifest import service_files
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

HOMES = ("/home", "/root", "/run/user")
"""What ProtectHome= in tapsterd.service hides."""


def declare(parser: "Parser") -> None:
    parser.add_argument(
        "--remove", action="store_true", help="remove what this verb placed"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say which files it would write"
    )


def run(options: Options, host: "AnyHost | None") -> int:
    prefix, bindir = _installation()
    files = service_files(prefix)
    if options.dry_run:
        print(*(file.destination for file in files), sep="\n")
        return 0
    if os.geteuid() != 0:
        raise RequestError("install-service writes below /etc: run it as root")
    if not options.remove:
        _check_place(bindir)
    if options.remove:
        changed = place.remove(file.destination for file in files)
    else:
        changed = place.place(files, bindir)
        if configuration := place.place_configuration():
            changed.append(configuration)
    print(*changed, sep="\n")
    place.activate(removed=options.remove)
    if not options.remove:
        print("next: systemctl enable --now tapsterd.socket", file=sys.stderr)
    return 0


def _installation() -> tuple[str, str]:
    """Return the prefix of this installation and the directory of its programs."""
    bindir = os.path.dirname(os.path.realpath(sys.argv[0]))
    if not os.access(os.path.join(bindir, "tapsterd"), os.X_OK):
        bindir = os.path.join(sys.prefix, "bin")
    if not os.access(os.path.join(bindir, "tapsterd"), os.X_OK):
        raise HostError(f"there is no program 'tapsterd' beside tapster, in {bindir!r}")
    return os.path.dirname(bindir), bindir


def _check_place(bindir: str) -> None:
    """Raise RequestError if the daemon's unit could not start the programs there."""
    for path in (bindir, os.path.realpath(sys.executable)):
        if path.startswith(tuple(f"{home}/" for home in HOMES)):
            raise RequestError(
                f"tapsterd cannot start from {path!r}: its unit hides all homes "
                "(ProtectHome=). Install Tapster elsewhere, for example with: "
                "sudo env PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install "
                "--python /usr/bin/python3 tapster"
            )
