# SPDX-License-Identifier: Apache-2.0
"""A copy of this system that a test may change: an overlay above its root.

The test is in network and mount namespaces of its own, and the copy ends with them.
systemd does not run there. What the test changes is in memory.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.daemon import capabilities, let_everybody_open_tun

ROOT = Path("/run/copy/root")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

RESTLESS = ("var/cache/", "var/log/", "var/lib/dpkg/")
"""What dpkg and others write at any time."""
ACCOUNTS = {"etc/.pwd.lock"} | {
    f"etc/{name}-" for name in ("group", "gshadow", "passwd", "shadow")
}
"""Files that systemd-sysusers makes. The user stays: files may be the user's."""


class Copied:
    """The copy, as the root of commands."""

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell that may fail."""
        return subprocess.run(
            ["chroot", ROOT, "sh", "-ec", command],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"},
        )

    def sh(self, command: str) -> str:
        """Run a command of the shell; its output. Fails the test if it fails."""
        done = self.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, data: bytes) -> None:
        file = ROOT / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

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
    def daemon(self, program: str = "/usr/bin/tapsterd") -> Iterator[None]:
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
                    *("--no-new-privs", f"--bounding-set=-all,{kept}", program),
                ],
                env={"PATH": PATH, "NOTIFY_SOCKET": "/run/notify"},
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
    copied = Copied()
    copied.sh("rm -rf /var/lib/tapster /etc/tapster")
    copied.sh("rm -f /var/lib/man-db/auto-update")  # no index of manual pages is needed
    return copied
