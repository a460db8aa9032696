# SPDX-License-Identifier: Apache-2.0
"""Tapster installed in each way of README, used as README shows, and removed.

Every command is README's own. tests/install/test_journeys.py is the short form.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from lab import readme
from lab.host import product, snapshot
from lab.host.debian import DebianHost
from lab.host.image import Image
from lab.packages import later_version, pack_wheels
from lab.readme import USER
from tests.host.outside import ground
from tests.host.outside.ground import leases, taps

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLONE = "/srv/tapster"
QUESTION = "tapster/purge-devices"
SUDO = f"""\
#!/bin/sh
PATH={PATH} exec "$@"
"""
QEMU = """\
#!/usr/bin/python3
import re, socket, subprocess, sys
if helper := re.search(r"br=(\\w+),helper=(\\S+)", " ".join(sys.argv)):
    ours, theirs = socket.socketpair()
    bridge, fd = f"--br={helper[1]}", f"--fd={theirs.fileno()}"
    call = [helper[2], "--use-vnet", bridge, fd]
    subprocess.run(call, pass_fds=[theirs.fileno()], check=True)
    socket.recv_fds(ours, 1, 1)
print("runs", flush=True)
with open("/run/fifo") as fifo:
    fifo.read()
"""
"""Takes a device as QEMU does, and keeps it until a fifo is written to."""
OFFLINE = {
    "PIP_FIND_LINKS": "/srv/wheels /usr/share/python-wheels",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_NO_INDEX": "1",
}
WAYS = readme.ways()

FILES = """
find / -xdev ! -type d \\
    ! -path '/proc/*' ! -path '/run/*' ! -path '/srv/*' ! -path '/tmp/*' \\
    ! -path '/var/cache/*' ! -path '/var/log/*' ! -path '/var/lib/apt/*' \\
    ! -path '/var/lib/dpkg/*' \\
    ! -path '/var/lib/systemd/*' ! -path '/usr/src/*' ! -path "$HOME/*" | sort
"""
"""What is on the host, but for what other programs write at any time."""
ACCOUNTS = {"/etc/group-", "/etc/gshadow-", "/etc/passwd-", "/etc/shadow-"}
"""Copies that systemd-sysusers makes. The daemon's user stays: files may be its own."""


class HostShell:
    """A host whose commands are README's."""

    def __init__(self, host: DebianHost) -> None:
        self.host = host
        self.path = PATH

    def type(self, *commands: str) -> None:
        """Type commands in the clone. Fails the test if one fails."""
        for command in commands:
            self.host.run(
                *("bash", "-c", command),
                environment=self._environment(),
                folder=CLONE,
                timeout=600,
            )

    def enter(self, command: str, user: str = "root") -> str:
        done = self.host.run(
            *self._as_user(f"exec 2>&1; {command}", user),
            environment=self._environment(),
            check=False,
        )
        return done.stdout

    @contextmanager
    def running(self, command: str, user: str = "root") -> Iterator[None]:
        self.host.sh("mkfifo -m 666 /run/fifo")
        self.host.write("/run/vm.sh", command)
        unit = f"systemd-run --quiet --unit vm --uid {user} --setenv PATH={self.path}"
        output = "--property StandardOutput=file:/run/vm.log"
        self.host.sh(f"{unit} {output} bash /run/vm.sh")
        ground.wait_output(self.host, "cat /run/vm.log", "runs")
        yield
        self.host.sh("timeout 60 sh -c 'echo > /run/fifo'; rm /run/fifo /run/vm.log")
        stopped = "systemctl show --property ActiveState,Result vm"
        ground.wait_output(self.host, stopped, "ActiveState=inactive")

    def daemon(self) -> AbstractContextManager[object]:
        return nullcontext()  # systemd's socket starts it

    def write(self, path: str, data: bytes) -> None:
        self.host.write(path, data)

    def taps(self) -> set[str]:
        return taps(self.host)

    def _environment(self) -> dict[str, str]:
        return {"PATH": self.path, **OFFLINE}

    def _as_user(self, command: str, user: str) -> list[str]:
        if user == "root":
            return ["bash", "-c", command]
        login = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return [*login, "bash", "-c", command]


@pytest.fixture
def bare_host(debian: Image) -> Iterator[HostShell]:
    """A running host with a user and a clone, without Tapster."""
    with snapshot.resumed(debian) as host:
        host.sh(f"useradd --groups kvm {USER}")
        host.write("/etc/apt/apt.conf.d/99yes", 'APT::Get::Assume-Yes "yes";\n')
        for program, text in {"sudo": SUDO, "qemu-system-x86_64": QEMU}.items():
            host.write(f"/usr/local/sbin/{program}", text)
            host.sh(f"chmod 755 /usr/local/sbin/{program}")
        host.unpack(product.tree(), CLONE)
        _unpack_wheels(host)
        yield HostShell(host)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this tree."""
    built = list((product.TREE / "dist" / "deb").glob("tapster_*_all.deb"))
    assert built, "there is no package in dist/deb; build it with: make deb"
    return built[0]


def files(host: DebianHost) -> set[str]:
    return set(host.sh(FILES).splitlines()) - ACCOUNTS


@pytest.mark.parametrize("way", ["make", "pip", "pipx"])
def test_an_installation_from_the_tree(bare_host: HostShell, way: str) -> None:
    host, shell = bare_host.host, bare_host
    before = files(host)
    install, remove, programs = WAYS[way]
    shell.path = f"{PATH}:{programs}"
    shell.type(*install)
    readme.follow(shell, f"{programs}/python3")
    assert json.loads(shell.enter("tapster doctor --json"))["problems"] == []
    shell.type(*remove)
    host.sh("rm -rf /opt/pipx")  # what pipx keeps for itself
    assert files(host) - before == set()
    assert before - files(host) == set()


def test_a_debian_package_from_its_installation_to_its_purge(
    bare_host: HostShell, package: Path, tmp_path: Path
) -> None:
    host, shell = bare_host.host, bare_host
    before = files(host)
    (_, install), remove, _ = WAYS["deb"]  # `package` is what the first has built
    host.write(f"{CLONE}/dist/deb/{package.name}", package.read_bytes())
    shell.type(install)
    assert host.sh("systemctl is-enabled tapsterd.socket").strip() == "enabled"
    assert host.sh("systemctl is-active tapsterd.socket").strip() == "active"
    readme.follow(shell, "/usr/bin/python3")

    # An upgrade restarts the daemon; the VM's device and its lease go on.
    name = shell.enter("tapster add --bridge br0", USER).strip()
    lease = leases(host)[name]
    main_pid = "systemctl show --value --property MainPID tapsterd.service"
    pid = host.sh(main_pid)
    policy = host.read("/etc/tapster/tapster.toml")
    host.write("/srv/later.deb", later_version(package, tmp_path).read_bytes())
    host.sh("dpkg --install /srv/later.deb", timeout=300)
    assert host.sh(main_pid) != pid
    assert host.read("/etc/tapster/tapster.toml") == policy
    assert leases(host)[name] == {**leases(host)[name], "id": lease["id"]}
    (shown,) = json.loads(host.sh(f"ip -j link show {name}"))
    assert (shown["ifindex"], shown["master"]) == (lease["ifindex"], "br0")

    # Without a yes, a purge leaves a VM its device, and says so.
    host.sh("dpkg --remove tapster")
    assert name in taps(host)
    kept = host.run("bash", "-c", "DEBIAN_FRONTEND=noninteractive dpkg --purge tapster")
    assert name in taps(host), kept
    assert "kept /var/lib/tapster" in kept.stderr

    # With a yes, it deletes the device and the ledger.
    shell.type(install)
    assert name in leases(host)
    host.sh(f"echo tapster {QUESTION} boolean true | debconf-set-selections")
    shell.type(*remove)
    assert taps(host) == set()
    assert host.sh("debconf-show tapster") == ""
    assert files(host) - before == set()
    assert before - files(host) == set()


def _unpack_wheels(host: DebianHost) -> None:
    """Give the host what pip builds Tapster with."""
    with io.BytesIO() as buffer, tempfile.TemporaryDirectory() as folder:
        pack_wheels("hatchling", Path(folder))
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(folder, arcname=".")
        host.unpack(buffer.getvalue(), "/srv/wheels")
