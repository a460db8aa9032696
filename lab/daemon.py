# SPDX-License-Identifier: Apache-2.0
"""A real tapsterd for a test, and callers of it that are not root."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sysconfig import get_path
from typing import Self

import tapster
from lab.lines import Lines
from tapster import Client
from tapster.rpc.interface import Event

ALICE, BOB, SERVICE = 61001, 61002, 61003
"""Users that no host knows by name; the last is the daemon's own."""

TUN = "/dev/net/tun"
UNIT = Path(__file__).parents[1] / "units" / "tapsterd.service"

POLICY = f"""
[[allow]]
users = ["{ALICE}"]
bridges = ["br0"]
devices = 4
features = ["queues", "fin-wait"]

[[allow]]
users = ["{BOB}"]
bridges = ["br0"]
"""


PROGRAMS = {
    "tapster": "tapster.cli",
    "tapsterd": "tapster.daemon",
    "qemu-bridge-helper": "tapster.integrate.qemu_bridge_helper",
}


def install(folder: Path) -> Path:
    """Put Tapster where every user can run it, and return the folder of its programs.

    This tree may be in a home."""
    library, programs = folder / "lib", folder / "bin"
    shutil.copytree(Path(tapster.__file__).parent, library / "tapster")
    programs.mkdir()
    python = _share_python(folder / "python")
    for name, module in PROGRAMS.items():
        start = f"PYTHONPATH={library} exec {python} -m {module}"
        (programs / name).write_text(f'#!/bin/sh\n{start} "$@"\n')
        (programs / name).chmod(0o755)
    return programs


def _share_python(folder: Path) -> str:
    """Return the Python that runs the tests, as every user can start it.

    Python and its packages may be in a home. So they are mounted in a folder that every
    user can enter. Debian's Python has Debian's packages.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.base_prefix == "/usr":
        return f"/usr/bin/{name}"
    for source, there in ((sys.base_prefix, "base"), (get_path("purelib"), "packages")):
        (folder / there).mkdir(parents=True)
        subprocess.run(["mount", "--bind", source, folder / there], check=True)
    python = folder / name
    python.write_text(
        "#!/bin/sh\n"
        f"export PYTHONPATH=$PYTHONPATH:{folder}/packages "
        f"LD_LIBRARY_PATH={folder}/base/lib\n"
        f'exec {folder}/base/bin/{name} "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


def capabilities() -> list[str]:
    """Return the unit's capabilities, as setpriv names them."""
    kept: str
    (kept,) = re.findall(r"(?m)^AmbientCapabilities=(.*)$", UNIT.read_text())
    return [name.removeprefix("CAP_").lower() for name in kept.split()]


def as_service() -> list[str]:
    """Return the prefix that runs a command as the daemon's unit does."""
    kept = ",".join(f"+{name}" for name in capabilities())
    return [
        *("setpriv", f"--reuid={SERVICE}", f"--regid={SERVICE}", "--clear-groups"),
        *(f"--inh-caps={kept}", f"--ambient-caps={kept}", "--no-new-privs"),
        f"--bounding-set=-all,{kept}",
    ]


def let_everybody_open_tun(folder: Path) -> None:
    """Give the node the mode that udev gives it, in the test's own mount namespace."""
    node = folder / "tun"
    os.mknod(node, stat.S_IFCHR, os.stat(TUN).st_rdev)
    node.chmod(0o666)
    subprocess.run(["mount", "--bind", node, TUN], check=True)


class Daemon:
    """One tapsterd after another, on the same ledger, socket and policy."""

    def __init__(self, *wrapper: str, policy: str = POLICY, root: bool = False) -> None:
        """Install Tapster; `root` runs the daemon as root, not as its unit does."""
        folder = Path("/run/test")  # below the test's own /run; users must get there
        folder.mkdir()
        if not root:
            os.chown(folder, SERVICE, SERVICE)
            let_everybody_open_tun(folder)
        self.programs = install(folder)
        self.socket = folder / "tapster.sock"
        self.ledger = folder / "ledger.db"
        self.config = folder / "tapster.toml"
        self.config.write_text(policy)
        self.log = folder / "log"
        self._wrapper = [*wrapper, *([] if root else as_service())]
        self._watchers: list[Client] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close; after an error the daemon's exit status is not checked."""
        try:
            if kind is None:
                self.stop()
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            for watcher in self._watchers:
                watcher.close()

    def start(self) -> int:
        """Start the daemon, wait until it is ready, and return its pid."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            address = self.socket.with_suffix(".notify")
            ready.bind(str(address))
            address.chmod(0o777)
            ready.settimeout(30)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *self._wrapper,
                        *(self.programs / "tapsterd", "--socket", str(self.socket)),
                        *("--ledger", str(self.ledger), "--config", str(self.config)),
                    ],
                    env={**os.environ, "NOTIFY_SOCKET": str(address)},
                    stderr=log,
                )
            try:
                assert ready.recv(100) == b"READY=1"
            except TimeoutError:
                raise AssertionError(self.log.read_text()) from None
            finally:
                address.unlink()
        return self.pid

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon, and check its exit status."""
        process = self._process
        if process is None:
            return
        assert process.poll() is None, self.log.read_text()
        process.send_signal(number)
        expected = 0 if number == signal.SIGTERM else -number
        assert process.wait(30) == expected, self.log.read_text()
        self._process = None

    def connect(self, uid: int = 0, groups: Sequence[int] = ()) -> Client:
        """Connect as this user."""
        with user(uid, groups):
            return tapster.connect(self.socket)

    def events(self, uid: int = 0) -> Iterator[Event]:
        """Yield the events that this user is told from now on."""
        remote = self.connect(uid)
        self._watchers.append(remote)
        events = remote.watch()
        assert next(events).event == "watching"
        return events

    def reload(self, policy: str) -> None:
        """Give the daemon another policy, and wait until it has read or refused it."""
        logged = self.log.stat().st_size
        self.config.write_text(policy)
        self.send_signal(signal.SIGHUP)
        self.wait_logged("config-(read|kept)", after=logged)

    def wait_logged(self, event: str, *, after: int = 0) -> None:
        """Wait until the log has a line about an event after so many bytes."""
        follow = ["tail", f"--bytes=+{after + 1}", "--follow", str(self.log)]
        with subprocess.Popen(follow, stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            try:
                Lines(tail.stdout).wait_for(rf"\bevent={event}\b", 30)
            finally:
                tail.kill()

    def logged(self, event: str) -> list[str]:
        """Return the lines of the log about an event."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if f"event={event}" in line.split()]

    def tapster(
        self, *arguments: str, uid: int = ALICE, status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run the command as a user without privileges does."""
        done = subprocess.run(
            [*as_user(uid), str(self.programs / "tapster"), *arguments],
            env={**os.environ, "TAPSTER_SOCKET": str(self.socket)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, (done, self.log.read_text())
        return done


def as_user(uid: int) -> list[str]:
    """Return the prefix that runs a command without any privilege."""
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return ["setpriv", *ids, "--bounding-set=-all", "--inh-caps=-all"]


def companion(uid: int) -> subprocess.Popen[bytes]:
    """Start a process of a user that ends when its input does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*as_user(uid), "cat"], stdin=pipe, stdout=pipe, bufsize=0
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"!")
    assert process.stdout.read(1) == b"!", "it is that user's now"
    return process


@contextmanager
def user(uid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Act as another user for a moment: a connection made then stays that user's."""
    before = os.getgroups()
    if uid:
        os.setgroups(groups)
        os.setegid(uid)
        os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
