# SPDX-License-Identifier: Apache-2.0
"""A copy of this system that a test may change: an overlay above its root.

The test is in network and mount namespaces of its own, and the copy ends with them.
systemd does not run there. What the test changes is in memory.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab import iproute
from lab.daemon import capabilities, let_everybody_open_tun
from lab.lines import Lines
from lab.packages import pack_wheels
from lab.readme import USER

ROOT = Path("/run/copy/root")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TREE = Path(__file__).parents[1]
CLONE = "/srv/tapster"
"""This tree in the copy. What is written there is not in the tree."""

RESTLESS = ("var/cache/", "var/log/", "var/lib/apt/", "var/lib/dpkg/")
"""What apt, dpkg and others write at any time."""
ACCOUNTS = {"etc/.pwd.lock"} | {
    f"etc/{name}-" for name in ("group", "gshadow", "passwd", "shadow")
}
"""Files that systemd-sysusers makes. The user stays: files may be the user's."""

SUDO = f"""\
#!/bin/sh
PATH={PATH} exec "$@"
"""
SYSTEMCTL = """\
#!/bin/sh
[ "$1" = try-reload-or-restart ] && exit
for word; do
    shift
    [ "$word" = --now ] || set -- "$@" "$word"
done
exec /usr/bin/systemctl "$@"
"""
"""Enables and disables units, and starts none."""
QEMU = """\
#!/bin/sh
shift
echo '{{"execute": "qmp_capabilities"}}' | cat - '{fifo}' |
    exec {qemu} -m 64 -display none -nodefaults -S -qmp stdio "$@" |
    sed -u 's/^{{"return".*/runs/'
"""
"""QEMU without what pages leave out (...), until a fifo is written to."""
OFFLINE = {
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_FIND_LINKS": "/run/wheels",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_NO_INDEX": "1",
    "UV_CACHE_DIR": "/run/uv",
    "UV_FIND_LINKS": "/run/wheels",
    "UV_NO_CONFIG": "1",
    "UV_NO_INDEX": "1",
    "UV_OFFLINE": "1",
}
"""pip, pipx and uv find there what they build Tapster with."""


class Copied:
    """The copy, as the root of commands."""

    def __init__(self) -> None:
        self.path = PATH

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell that may fail."""
        return subprocess.run(
            ["chroot", ROOT, "sh", "-ec", command],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=self._environment(),
        )

    def sh(self, command: str) -> str:
        """Run a command of the shell; its output. Fails the test if it fails."""
        done = self.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def type(self, *commands: str) -> None:
        """Type commands of a page in the clone. Fails the test if one fails."""
        for command in commands:
            self.sh(f"cd {CLONE}\n{command}")

    def enter(self, command: str, user: str = "root") -> str:
        return subprocess.run(
            self._as_user(command, user),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=self._environment(),
        ).stdout

    @contextmanager
    def running(self, command: str, user: str = "root") -> Iterator[None]:
        fifo = ROOT / "run" / "fifo"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        with subprocess.Popen(
            self._as_user(command, user),
            stdout=subprocess.PIPE,
            env=self._environment(),
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                Lines(process.stdout).wait_for("runs", 60)
                yield
                fifo.write_text('{"execute": "quit"}\n')
                assert process.wait(60) == 0
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                fifo.unlink()

    def taps(self) -> set[str]:
        return {name for name in iproute.links() if name.startswith("vnet")}

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        file = ROOT / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)

    def _environment(self) -> dict[str, str]:
        return {"PATH": self.path, "HOME": "/root", "LC_ALL": "C.UTF-8", **OFFLINE}

    def _as_user(self, command: str, user: str) -> list[str | Path]:
        change = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return ["chroot", ROOT, *change, "sh", "-c", command]

    def files(self) -> set[str]:
        """Return the path of each file that was added, changed or deleted."""
        upper = ROOT.parent / "upper"
        found = {
            str(Path(folder, name).relative_to(upper))
            for folder, _, names in os.walk(upper)
            for name in names
        }
        return {path for path in found if not path.startswith(RESTLESS)} - ACCOUNTS

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run the daemon as its unit does, at the address of its socket's unit."""
        kept = ",".join(f"+{name}" for name in capabilities())
        # As RuntimeDirectory= and StateDirectory= do.
        self.sh("mkdir -p /run/tapster /var/lib/tapster")
        self.sh("chown -R tapster:tapster /run/tapster /var/lib/tapster")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(ROOT / "run" / "notify"))
            (ROOT / "run" / "notify").chmod(0o777)
            ready.settimeout(60)
            daemon = subprocess.Popen(
                [
                    *("chroot", ROOT, "setpriv", "--reuid=tapster", "--regid=tapster"),
                    *("--clear-groups", f"--inh-caps={kept}", f"--ambient-caps={kept}"),
                    *("--no-new-privs", f"--bounding-set=-all,{kept}", "tapsterd"),
                ],
                env={"PATH": self.path, "NOTIFY_SOCKET": "/run/notify"},
                cwd="/",
            )
            try:
                assert ready.recv(100) == b"READY=1"
                yield
            finally:
                daemon.terminate()
                assert daemon.wait(60) == 0


def make() -> Copied:
    """Make the copy, without a ledger or a policy that this system may have."""
    base = ROOT.parent
    for folder in ("upper", "work", "root"):
        (base / folder).mkdir(parents=True)
    let_everybody_open_tun(base)
    layers = f"lowerdir=/,upperdir={base}/upper,workdir={base}/work"
    mounts: tuple[list[str | Path], ...] = (
        ["-t", "overlay", "overlay", "-o", layers, ROOT],
        ["--rbind", "/dev", ROOT / "dev"],
        ["--rbind", "/proc", ROOT / "proc"],
        ["-t", "sysfs", "sysfs", ROOT / "sys"],
        ["-t", "tmpfs", "tmpfs", ROOT / "run"],
        ["-t", "tmpfs", "tmpfs", ROOT / "tmp"],
    )
    for arguments in mounts:
        subprocess.run(["mount", *arguments], check=True)
    _mount_clone(base / "tree")
    copied = Copied()
    copied.sh("rm -rf /var/lib/tapster /etc/tapster")
    copied.sh("rm -f /var/lib/man-db/auto-update")  # no index of manual pages is needed
    copied.sh(f"groupadd --force --system kvm; useradd --groups kvm {USER}")
    copied.write("/etc/apt/apt.conf.d/99yes", b'APT::Get::Assume-Yes "yes";\n')
    copied.write("/usr/local/sbin/sudo", SUDO.encode(), 0o755)
    copied.write("/usr/local/sbin/systemctl", SYSTEMCTL.encode(), 0o755)
    qemu = QEMU.format(fifo="/run/fifo", qemu=shutil.which("qemu-system-x86_64"))
    copied.write("/usr/local/bin/qemu-system-x86_64", qemu.encode(), 0o755)
    copied.write("/usr/local/bin/uv", b"")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(["mount", "--bind", uv, ROOT / "usr/local/bin/uv"], check=True)
    (ROOT / "run" / "wheels").mkdir()
    pack_wheels("hatchling", ROOT / "run" / "wheels")
    return copied


def _mount_clone(changes: Path) -> None:
    """Put this tree into the copy, with a layer for what is written there."""
    clone, upper, work = ROOT / CLONE[1:], changes / "upper", changes / "work"
    for folder in (clone, upper, work):
        folder.mkdir(parents=True)
    layers = f"lowerdir={TREE},upperdir={upper},workdir={work}"
    mount = ("mount", "-t", "overlay", "overlay", "-o", layers, clone)
    subprocess.run(mount, check=True)
