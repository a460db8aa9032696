# SPDX-License-Identifier: Apache-2.0
"""Copy the files of the manifest to a host, and remove exactly these again."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable

from tapster.errors import HostError, RequestError
from tapster.install.manifest import (
    CONFIGURATION,
    PROGRAMS,
    File,
    for_prefix,
    program,
    service_files,
    shared_files,
)

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The directory of the package `tapster`."""


def shared_directory() -> str:
    """Return the directory with units/: the checkout, or what a wheel put below its
    prefix.

    Raises HostError if this installation carries none.
    """
    checkout = os.path.dirname(os.path.dirname(PACKAGE))
    for directory in (checkout, os.path.join(sys.prefix, "share", "tapster")):
        if os.path.exists(os.path.join(directory, "units", "tapsterd.service")):
            return directory
    raise HostError(
        f"the installation in {PACKAGE!r} carries no units: install Tapster from its "
        "wheel or its source"
    )


def library_directory(prefix: str) -> str:
    """Return where this Python looks for packages below a prefix, site directories of
    Debian's own Python included."""
    schemes = sysconfig.get_scheme_names()
    if prefix == "/usr" and "deb_system" in schemes:
        return sysconfig.get_path("purelib", "deb_system")
    scheme = "posix_local" if "posix_local" in schemes else "posix_prefix"
    base = prefix.removesuffix("/local") if scheme == "posix_local" else prefix
    return sysconfig.get_path("purelib", scheme, {"base": base, "platbase": base})


def install(prefix: str, destdir: str, python: str) -> list[str]:
    """Install everything below `prefix`; return the paths, without `destdir`.

    Programs are started by `python`. Raises RequestError and HostError.
    """
    _check(prefix, destdir)
    library, bindir = library_directory(prefix), f"{prefix}/bin"
    placed = _copy_package(library, destdir)
    for name in PROGRAMS:
        path = f"{bindir}/{name}"
        _write(destdir + path, program(name, python, library), 0o755)
        placed.append(path)
    placed += place(shared_files(prefix) + service_files(prefix), bindir, destdir)
    if not destdir:  # a package's own scripts compile it on the host
        _compile(python, f"{library}/tapster")
    return placed


def uninstall(prefix: str, destdir: str) -> list[str]:
    """Remove what `install` placed, and directories that this leaves empty.

    The configuration, the ledger and other files stay. Returns the removed paths.
    """
    _check(prefix, destdir)
    paths = [f"{prefix}/bin/{name}" for name in PROGRAMS]
    paths += [file.destination for file in shared_files(prefix) + service_files(prefix)]
    removed = remove(paths, destdir)
    package = f"{library_directory(prefix)}/tapster"
    if os.path.isdir(destdir + package):
        shutil.rmtree(destdir + package)
        removed.append(package)
    return removed


def place(files: Iterable[File], bindir: str, destdir: str = "") -> list[str]:
    """Copy files, with the programs in `bindir`; return where they are now."""
    shared = shared_directory()
    placed = []
    for file in files:
        with open(os.path.join(shared, file.source), encoding="utf-8") as source:
            text = source.read()
        _write(destdir + file.destination, for_prefix(text, bindir), 0o644)
        placed.append(file.destination)
    return placed


def place_configuration(destdir: str = "") -> str | None:
    """Make the example the policy if there is no policy; return its path then."""
    if os.path.lexists(destdir + CONFIGURATION):
        return None
    place([File("units/tapster.toml", CONFIGURATION)], "/usr/bin", destdir)
    return CONFIGURATION


def remove(paths: Iterable[str], destdir: str = "") -> list[str]:
    """Remove files that are there, and directories of Tapster's that become empty."""
    removed = []
    for path in paths:
        try:
            os.unlink(destdir + path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError(f"{path!r} was not removed: {error.strerror}") from error
        removed.append(path)
        _remove_if_empty(os.path.dirname(destdir + path))
    return removed


def activate(*, removed: bool = False) -> None:
    """Tell systemd and udev that the files were placed, or removed.

    Make the daemon's user, also where systemd is installed and does not run. Raises
    HostError.
    """
    if not removed and shutil.which("systemd-sysusers"):
        _call("systemd-sysusers", "tapster.conf")
    if os.path.isdir("/run/systemd/system"):
        if not removed:
            _call("systemd-tmpfiles", "--create", "tapster.conf")
        _call("udevadm", "control", "--reload")
        _call("systemctl", "daemon-reload")


def _check(prefix: str, destdir: str) -> None:
    for name, path in (("PREFIX", prefix), ("DESTDIR", destdir)):
        if path and (not path.startswith("/") or path.endswith("/")):
            raise RequestError(
                f"{name} is {path!r}: it must begin with a slash and not end with one"
            )
    if not prefix:
        raise RequestError("PREFIX is empty: name a directory such as /usr/local")


def _copy_package(library: str, destdir: str) -> list[str]:
    target = f"{destdir}{library}/tapster"
    if os.path.isdir(target):
        shutil.rmtree(target)  # modules of an earlier release must not stay
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return [f"{library}/tapster"]


def _compile(python: str, package: str) -> None:
    """Write the bytecode, which no program of a user who is not root could keep."""
    _call(python, "-I", "-m", "compileall", "-q", package)


def _call(*command: str) -> None:
    try:
        pid = os.posix_spawnp(command[0], command, os.environ)
    except OSError as error:
        raise HostError(f"{command[0]!r} cannot start: {error.strerror}") from error
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise HostError(f"{' '.join(command)!r} failed with status {status}")


def _write(path: str, text: str, mode: int) -> None:
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)
    except OSError as error:
        raise HostError(f"{path!r} was not written: {error.strerror}") from error


def _remove_if_empty(directory: str) -> None:
    """Remove a directory that bears Tapster's name, and its parents that do."""
    while "tapster" in directory and not os.listdir(directory):
        os.rmdir(directory)
        directory = os.path.dirname(directory)
