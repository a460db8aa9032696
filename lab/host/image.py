# SPDX-License-Identifier: Apache-2.0
"""Build a disk from Debian's packages, without a mount or a loop device.

The tools of requirements-dev.txt that tests need come from this tree's .venv, in the
pinned versions; pip fetches the few that are compiled for one Python alone.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab.host import archive, cache

HERE = Path(__file__).parent
ROOT = HERE / "root"
"""Files that are laid over Debian's."""
REQUIREMENTS = HERE.parents[1] / "requirements-dev.txt"

CODENAMES = {"12": "bookworm", "13": "trixie"}
SIZE = "4G"

TOOLS = (
    *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis"),
    *("asyncvarlink", "varlink"),
)
"""What of .venv the tests import."""

OFF = (
    *("NetworkManager.service", "NetworkManager-wait-online.service"),
    *("openvswitch-switch.service", "apt-daily.timer", "apt-daily-upgrade.timer"),
    *(
        "apparmor.service",
        "dpkg-db-backup.timer",
        "fstrim.timer",
        "e2scrub_reap.service",
    ),
)
"""Units that Debian enables, and that a test must start if it needs them."""

MASKED = (
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount"),
    *("sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("modprobe@configfs.service", "modprobe@drm.service", "modprobe@fuse.service"),
    *("modprobe@efi_pstore.service", "proc-sys-fs-binfmt_misc.automount"),
    *("systemd-binfmt.service", "systemd-logind.service"),
)
"""Units that no test needs, and that take a third of a boot without KVM."""

LEFT_OUT = (
    *("usr/share/man", "usr/share/locale", "usr/share/doc", "usr/share/info"),
    *(
        f"lib/modules/*/kernel/{part}"
        for part in (
            *("drivers/gpu", "drivers/media", "drivers/staging", "drivers/infiniband"),
            *("drivers/net/ethernet", "drivers/net/wireless", "drivers/scsi", "sound"),
        )
    ),
)
"""Parts of packages that no test can use: drivers of hardware, texts."""


class Image(NamedTuple):
    """What a host boots from; nobody changes it."""

    disk: Path
    kernel: Path
    initrd: Path


def build(suite: str, more: str = "") -> Image:
    """Return the image of this Debian release, and build it if it is missing.

    `more` is the name of a list of further packages, which packages-MORE.txt has.
    """
    lists = [HERE / "packages.txt", *([HERE / f"packages-{more}.txt"] if more else ())]
    key = cache.digest(_inputs(suite, lists))
    kind = f"image-{suite}{more}"
    folder = cache.made(kind, key, lambda new: _build(suite, new, lists))
    return Image(folder / "disk.raw", folder / "vmlinuz", folder / "initrd")


def _inputs(suite: str, lists: Iterable[Path]) -> Iterator[bytes | str]:
    yield suite
    for path in (HERE / "image.py", HERE / "agent.py", *lists):
        yield path.read_bytes()
    for tool in _with_requirements(TOOLS):
        yield f"{tool}=={importlib.metadata.version(tool)}"
    for path in sorted(ROOT.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(ROOT))
            yield path.read_bytes()


def _build(suite: str, folder: Path, lists: Iterable[Path]) -> None:
    archive.check(CODENAMES[suite])
    root = folder / "root"
    acquire = folder / "acquire.conf"
    acquire.write_text(archive.acquire_options())
    try:
        _bootstrap(CODENAMES[suite], root, acquire, lists)
        (kernel,) = root.glob("boot/vmlinuz-*")
        (initrd,) = root.glob("boot/initrd.img-*")
        shutil.copy(kernel, folder / "vmlinuz")
        shutil.copy(initrd, folder / "initrd")
        _copy_tools(root)
        _run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "disk.raw", SIZE)
    finally:
        acquire.unlink()
        shutil.rmtree(root, ignore_errors=True)


def _bootstrap(codename: str, root: Path, acquire: Path, lists: Iterable[Path]) -> None:
    overlay = f'cp -RT "{ROOT}" "$1"'
    agent = f'install -Dm644 "{HERE}/agent.py" "$1"/usr/local/lib/lab/agent.py'
    on, off = "lab-agent.service", " ".join(OFF)
    _run(
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        *("--format=directory", "--skip=download/empty", f"--aptopt={acquire}"),
        *("--aptopt=APT::Install-Recommends false", "--dpkgopt=force-unsafe-io"),
        "--dpkgopt=force-confold",
        *(f"--dpkgopt=path-exclude={glob}" for glob in _left_out()),
        f"--essential-hook={overlay}",  # before the kernel's package makes its initrd
        f"--customize-hook={agent}",
        f'--customize-hook=chroot "$1" systemctl --quiet enable {on}',
        f'--customize-hook=chroot "$1" systemctl --quiet disable {off}',
        f'--customize-hook=chroot "$1" systemctl --quiet mask {" ".join(MASKED)}',
        # So that the first boot does not renew what the packages have just made.
        '--customize-hook=touch "$1"/etc/.updated "$1"/var/.updated',
        f"--include={','.join(_packages(lists))}",
        *(codename, root, archive.address()),
    )


def _left_out() -> Iterator[str]:
    for glob in LEFT_OUT:
        yield f"/{glob}/*"
        if glob.startswith("lib/"):
            yield f"/usr/{glob}/*"


def _packages(lists: Iterable[Path]) -> list[str]:
    text = "\n".join(path.read_text() for path in lists)
    return re.findall(r"(?m)^[a-z][a-z0-9.+-]*", text)


def _copy_tools(root: Path) -> None:
    (version,) = (path.name for path in root.glob("usr/lib/python3.[0-9]*"))
    target = root / "usr/local/lib" / version / "dist-packages"
    for tool in _with_requirements(TOOLS):
        _copy_tool(tool, target)
    inside = "/" + str(target.relative_to(root))
    _run("chroot", root, "python3", "-m", "compileall", "-q", inside)


def _with_requirements(names: Iterable[str]) -> list[str]:
    """Return distributions of .venv with all that they require, in order."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.distribution(name).requires or ():
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return sorted(found)


def _copy_tool(name: str, target: Path) -> None:
    """Copy a distribution of .venv, or fetch it if it is compiled for one Python."""
    files = importlib.metadata.distribution(name).files or []
    here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if target.parent.name != here and any(file.suffix == ".so" for file in files):
        _fetch_wheel(name, target)
    else:
        _copy_files(files, target)


def _copy_files(files: Iterable[importlib.metadata.PackagePath], target: Path) -> None:
    for file in files:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            copy = target / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), copy)


def _fetch_wheel(name: str, target: Path) -> None:
    """Have pip fetch the pinned wheel for the host's own Python."""
    pins = rf"(?m)^{re.escape(name)}==.*(?:\n +--hash=.*)*"
    (pinned,) = re.findall(pins, REQUIREMENTS.read_text())
    with NamedTemporaryFile("w") as file:
        file.write(pinned.rstrip(" \\") + "\n")
        file.flush()
        _run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--only-binary=:all:", "--require-hashes", "--requirement", file.name),
            *("--python-version", target.parent.name.removeprefix("python")),
            *("--target", target),
        )


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        printed = archive.without_addresses(done.stdout + done.stderr)
        last = "\n".join(printed.splitlines()[-20:])
        raise RuntimeError(
            f"{command[0]} failed with status {done.returncode}:\n{last}"
        )
