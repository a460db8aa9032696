# SPDX-License-Identifier: Apache-2.0
"""The list of files that a host needs, and their places. Pure.

`make install`, the Debian package and `tapster install-service` place the same
files; this list is the only place that names them.
"""

from tapster.light import NamedTuple

PROGRAMS = {
    "tapster": ("tapster.__main__", "command"),
    "tapsterd": ("tapster.daemon.__main__", "main"),
    "tapster-cni": ("tapster.cni.__main__", "command"),
    "tapster-qemu-bridge-helper": ("tapster.integrate.qemu_bridge_helper", "main"),
}
"""Each program's module and function."""

CONFIGURATION = "/etc/tapster/tapster.toml"
"""Belongs to the administrator: never overwritten, never removed."""


class File(NamedTuple):
    """A file to copy."""

    source: str
    """Its path below the directory that has units/."""
    destination: str
    """Its absolute path on the host."""


def service_files(prefix: str) -> list[File]:
    """Return the units, and what keeps other programs' hands off Tapster's devices.

    systemd reads units, sysusers.d, tmpfiles.d and network files below /usr/lib
    and /usr/local/lib (systemd.unit(5), systemd.link(5)); udev reads rules below
    /usr/lib, /usr/local/lib and /etc (udev(7)). A prefix anywhere else, such as a
    virtual environment, is read by neither: its files go to /etc.
    """
    if prefix in ("/usr", "/usr/local"):
        units = f"{prefix}/lib/systemd/system"
        network = f"{prefix}/lib/systemd/network"
        sysusers, tmpfiles = f"{prefix}/lib/sysusers.d", f"{prefix}/lib/tmpfiles.d"
        rules = f"{prefix}/lib/udev/rules.d"
    else:
        units, network = "/etc/systemd/system", "/etc/systemd/network"
        sysusers, tmpfiles = "/etc/sysusers.d", "/etc/tmpfiles.d"
        rules = "/etc/udev/rules.d"
    return [
        File("units/tapsterd.service", f"{units}/tapsterd.service"),
        File("units/tapsterd.socket", f"{units}/tapsterd.socket"),
        File("units/tapster-fleet.service", f"{units}/tapster-fleet.service"),
        File("units/tapster-fleet.timer", f"{units}/tapster-fleet.timer"),
        File("units/tapster-vm@.service", f"{units}/tapster-vm@.service"),
        File("units/tapster.sysusers.conf", f"{sysusers}/tapster.conf"),
        File("units/tapster.tmpfiles.conf", f"{tmpfiles}/tapster.conf"),
        File("units/hands-off/70-tapster.rules", f"{rules}/70-tapster.rules"),
        File("units/hands-off/10-tapster.link", f"{network}/10-tapster.link"),
        File("units/hands-off/10-tapster.network", f"{network}/10-tapster.network"),
    ]


def shared_files(prefix: str) -> list[File]:
    """Manual pages, completions, examples and what a monitoring system reads."""
    share = f"{prefix}/share"
    examples = f"{share}/doc/tapster/examples"
    return [
        File("man/tapster.1", f"{share}/man/man1/tapster.1"),
        File("man/tapsterd.8", f"{share}/man/man8/tapsterd.8"),
        File("man/tapster-cni.8", f"{share}/man/man8/tapster-cni.8"),
        File(
            "man/tapster-qemu-bridge-helper.8",
            f"{share}/man/man8/tapster-qemu-bridge-helper.8",
        ),
        File(
            "completions/tapster.bash",
            f"{share}/bash-completion/completions/tapster",
        ),
        File("completions/_tapster", f"{share}/zsh/site-functions/_tapster"),
        File(
            "completions/tapster.fish",
            f"{share}/fish/vendor_completions.d/tapster.fish",
        ),
        File("units/tapster.toml", f"{examples}/tapster.toml"),
        File("units/grafana-dashboard.json", f"{share}/tapster/grafana-dashboard.json"),
        File("units/alerts.yml", f"{share}/tapster/alerts.yml"),
    ]


def program(name: str, python: str, library: str | None) -> str:
    """Return the text of a program.

    Python starts isolated from the caller's environment (-I) and, where the path
    of the library is known, without the search of site directories (-S), which
    costs as much as the rest of Python's start. The directory of the library is
    the only one added, so optional modules are found only beside Tapster.
    """
    module, function = PROGRAMS[name]
    flags = "-I" if library is None else "-IS"
    path = "" if library is None else f"sys.path.append({library!r})\n"
    return (
        f"#!{python} {flags}\n"
        f"import sys\n{path}from {module} import {function}\n"
        f"sys.exit({function}())\n"
    )


def for_prefix(text: str, bindir: str) -> str:
    """Return a unit with the programs of another directory than /usr/bin."""
    return text.replace("/usr/bin/tapster", f"{bindir}/tapster")
