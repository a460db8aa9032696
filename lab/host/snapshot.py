# SPDX-License-Identifier: Apache-2.0
"""Hosts that need not boot: a booted host's memory and disk, kept in the cache."""

import shutil
import subprocess
import time
from pathlib import Path

from lab.host import cache
from lab.host.debian import DebianHost
from lab.host.image import Image

DISK, STATE = "booted.qcow2", "booted.state"


def resumed(
    image: Image, *, folder: Path | None = None, console: str = ""
) -> DebianHost:
    """Return a running host that was booted once, for all; the caller closes it.

    `folder` has a host that `keep` wrote, if not the one that has only been booted.
    `console` is where QEMU's first serial port goes, if not into a file. The host's
    clock is right, but all resumed hosts have the same machine id. Where that matters,
    use `DebianHost.boot`.
    """
    folder = folder or _booted(image)
    host = DebianHost(image, disk=folder / DISK, console=console)
    try:
        host.start("-incoming", "defer")
        _migrate(host, "migrate-incoming", f"exec:cat {folder / STATE}")
        host.qmp.command("cont")
        host.run("date", "--set", f"@{time.time():.3f}")
    except BaseException:
        host.close()
        raise
    return host


def keep(host: DebianHost, folder: Path) -> None:
    """End a host, and keep its memory and its disk in a folder."""
    host.run("sync")
    host.qmp.command("stop")
    host.qmp.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
    _migrate(host, "migrate", f"exec:cat > {folder / STATE}")
    host.qmp.command("quit")
    host.power_cut()
    shutil.copy(host.disk, folder / DISK)


def _booted(image: Image) -> Path:
    kind = f"booted-{_suite(image)}"
    return cache.made(kind, _key(image), lambda new: _boot(image, new))


def _suite(image: Image) -> str:
    return image.disk.parent.name.split("-")[1]


def _key(image: Image) -> str:
    version = ("qemu-system-x86_64", "--version")
    qemu = subprocess.run(version, capture_output=True, check=True).stdout
    with DebianHost(image) as host:
        return cache.digest([image.disk.parent.name, qemu, *host.hardware()])


def _boot(image: Image, folder: Path) -> None:
    with DebianHost(image) as host:
        host.boot()
        keep(host, folder)


def _migrate(host: DebianHost, command: str, uri: str) -> None:
    # QEMU says that it is done only if asked for events beforehand.
    events = [{"capability": "events", "state": True}]
    host.qmp.command("migrate-set-capabilities", capabilities=events)
    host.qmp.command(command, uri=uri)
    host.qmp.wait_for("MIGRATION", status="completed")
