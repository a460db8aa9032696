# SPDX-License-Identifier: Apache-2.0
"""Run libvirt's real daemon, for the system, in a test's own namespaces."""

import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from lab import shell
from lab.host.cache import folder as cache_folder
from lab.lines import Lines
from lab.overlay import overlay

SECONDS = 60.0
"""In which the daemon, or a guest, surely starts or ends."""
KVM = "/dev/kvm"
CACHE = "/var/cache/libvirt"
HOOK = Path("/etc/libvirt/hooks/qemu.d/50-tapster")
PIDS = Path("run/libvirt/qemu")

FILES = {
    "/etc/libvirt/libvirtd.conf": "auth_unix_ro='none'\nauth_unix_rw='none'\n",
    "/etc/libvirt/qemu.conf": "user='{user}'\ngroup='{user}'\n"
    "dynamic_ownership=0\nremember_owner=0\nsecurity_driver='none'\n"
    "namespaces=[]\ncgroup_controllers=[]\nstdio_handler='file'\n",
}
# The daemon asks for them; the package that makes them starts services too.
ACCOUNTS = {
    "/etc/passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false\n",
    "/etc/group": "libvirt-qemu:x:64055:\n",
}

# A guest needs no disk: it runs its firmware, or nothing if it starts paused.
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>{metadata}
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='qemu-xhci'/>
{interfaces}
    <memballoon model='none'/>
  </devices>
</domain>
"""


def domain(name: str, *interfaces: str, uuid: str = "", metadata: str = "") -> str:
    """Return the XML of a domain; its UUID is made of its name if none is given."""
    return DOMAIN.format(
        name=name,
        uuid=uuid or uuid_of(name),
        interfaces="\n".join(interfaces),
        metadata=metadata,
    )


def uuid_of(name: str) -> str:
    """Return the UUID of a domain of this name."""
    start = name.encode().hex().ljust(8, "0")[:8]
    rest = name.encode().hex()[8:].rjust(12, "0")
    return f"{start}-0000-4000-8000-{rest}"


def adopted(name: str, *nics: str, model: str = "virtio", more: str = "") -> str:
    """Return the XML of a domain whose NICs are Tapster's, as written by hand.

    A NIC is what follows `<tapster:nic`: dev='web0' bridge='br0'.
    """
    devs = [nic.split("dev='")[1].split("'")[0] for nic in nics]
    return domain(
        name,
        *(
            f"<interface type='ethernet'><target dev='{dev}' managed='no'/>"
            f"<model type='{model}'/>{more}<rom enabled='no'/></interface>"
            for dev in devs
        ),
        metadata="<metadata><tapster:nics xmlns:tapster='urn:tapster:libvirt:1'>"
        + "".join(f"<tapster:nic {nic}/>" for nic in nics)
        + "</tapster:nics></metadata>",
    )


def configure(user: str) -> None:
    """Write libvirt's files into folders of this mount namespace; `user` runs QEMU."""
    for folder in ("/etc", "/var"):
        overlay(folder)
    for path, text in FILES.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text.replace("{user}", user))
    for path, line in ACCOUNTS.items():
        with open(path, "a") as file:
            file.write(line)


def prepare() -> None:
    """Give libvirt folders and accounts that the rest of the host does not see.

    What libvirt finds out about QEMU takes seconds, and stays in the lab's cache.
    """
    kept, cache = cache_folder() / "libvirt", Path("/run/libvirt-cache")
    for path in (kept, cache):
        path.mkdir(exist_ok=True)
    shell.sh(f"mount --bind {kept} {cache}")
    configure("libvirt-qemu")
    Path(CACHE).mkdir(exist_ok=True)
    shell.sh(f"mount --bind {cache} {CACHE}")
    # libvirt refuses to migrate between two daemons with one UUID.
    with open("/etc/libvirt/libvirtd.conf", "a") as file:
        file.write(f"host_uuid='{uuid4()}'\n")
    shutil.rmtree("/var/lib/tapster", ignore_errors=True)
    # libvirt examines QEMU again at each start if its user cannot open this.
    node = Path("/run/kvm")
    os.mknod(node, stat.S_IFCHR, os.makedev(10, 232))
    node.chmod(0o666)
    if Path(KVM).exists():
        shell.sh(f"mount --bind {node} {KVM}")


class Libvirt:
    """One libvirtd after another; the guests outlive the daemon."""

    def __init__(self, place: "SecondHost | None" = None) -> None:
        """The daemon is here, or on the second host."""
        self._inside = place.inside if place else ()
        self.root = place.root if place else Path("/")
        if place:
            place.sh(f"{sys.executable} -m lab.libvirt")
        else:
            prepare()
        self.uri = "qemu:///system"
        if place:
            self.uri = (
                f"qemu+unix:///system?socket={self.root}/run/libvirt/libvirt-sock"
            )
        self.hooks = HookLog(self.root)
        self._pid: int | None = None
        with open(self.root / "run/libvirtd.log", "ab") as log:
            self._starter = subprocess.Popen(
                [*self._inside, sys.executable, "-m", "lab.orphans"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"NOTIFY_SOCKET": "/run/libvirtd.ready"},
                cwd=Path(__file__).parents[1],
                text=True,
            )

    def start(self) -> None:
        """Start the daemon, and wait until it serves."""
        assert self._starter.stdin
        assert self._starter.stdout
        address = self.root / "run/libvirtd.ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(address))
            ready.settimeout(SECONDS)
            self._starter.stdin.write("libvirtd\n")
            self._starter.stdin.flush()
            self._pid = int(self._starter.stdout.readline())
            ready.recv(64)
        address.unlink()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon. Guests go on."""
        pid, self._pid = self._pid, None
        if pid is not None:
            os.kill(pid, number)
            wait_ended(pid)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def close(self) -> None:
        """End all guests, and the daemon."""
        self.stop(signal.SIGKILL)
        pids = (self.root / PIDS).glob("*.pid")
        # A guest that was killed leaves its file, and its pid may be another's by now.
        kill(*(pid for path in pids if is_qemu(pid := int(path.read_text()))))
        self._starter.communicate()
        self.hooks.close()

    def define(self, xml: str) -> None:
        done = call("define", "/dev/stdin", xml=xml, uri=self.uri)
        assert done.returncode == 0, done.stderr


class SecondHost:
    """Namespaces beside the test's own: as a host whose br0 has a cable to ours."""

    inside: tuple[str, ...]
    """The start of a command that runs there."""
    root: Path
    """Its files, as they are seen from here."""

    def __init__(self, pid: int) -> None:
        self.inside = (
            *("nsenter", f"--target={pid}", "--net", "--mount", "--uts"),
            f"--wd={os.getcwd()}",
        )
        self.root = Path(f"/proc/{pid}/root")

    def sh(self, command: str) -> str:
        """Run a command there; its output. Fails the test if it fails."""
        return shell.sh(" ".join([*self.inside, command]))


@contextmanager
def second_host(address: str) -> Iterator[SecondHost]:
    """Have a second host, with this address, for a block."""
    setup = "hostname second && mount -t sysfs s /sys && mount -t tmpfs t /run"
    setup += " && echo && cat"
    pipe = subprocess.PIPE
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "--uts", "sh", "-c", setup],
        stdin=pipe,
        stdout=pipe,
    )
    with holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        host = SecondHost(holder.pid)
        shell.sh(f"ip link add cable type veth peer name cable netns {holder.pid}")
        shell.sh("ip link set cable master br0 up")
        for command in (
            "link set lo up",
            "link add br0 type bridge",
            f"address add {address}/24 dev br0",
            "link set cable master br0 up",
            "link set br0 up",
        ):
            host.sh(f"ip {command}")
        yield host
        holder.stdin.close()


def kill(*pids: int) -> None:
    """Kill processes at once, and wait until they have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_ended(pid)


def wait_ended(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], SECONDS)[0], pid
    finally:
        os.close(process)


def is_qemu(pid: int) -> bool:
    """Return whether this process is a QEMU."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("qemu")
    except OSError:
        return False


def qemu_pid(name: str) -> int:
    """Return the pid of a domain's QEMU."""
    return int((Path("/") / PIDS / f"{name}.pid").read_text())


def call(
    *words: str, xml: str | None = None, uri: str = "qemu:///system"
) -> "subprocess.CompletedProcess[str]":
    """Run virsh."""
    return subprocess.run(
        ["virsh", "--quiet", "--connect", uri, *words],
        input=xml,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def virsh(command: str, uri: str = "qemu:///system") -> str:
    """Run virsh; its output. Fails the test if it fails."""
    done = call(*command.split(), uri=uri)
    assert done.returncode == 0, f"virsh {command}: {done.stderr}"
    return done.stdout.strip()


def refused(command: str) -> str:
    """Run virsh, which must fail; what it complains of."""
    done = call(*command.split())
    assert done.returncode != 0, f"virsh {command} succeeded: {done.stdout}"
    return done.stderr


class HookLog:
    """Records each call of a hook by libvirt: the domain and the phase."""

    def __init__(self, root: Path) -> None:
        pipe = root / "run/hooks"
        os.mkfifo(pipe)
        # Open for writing too: then no hook waits for a reader.
        self._file = open(pipe, "r+b", buffering=0)  # noqa: SIM115 - until close
        self._lines = Lines(self._file)
        hook = root / HOOK.with_name("98-log").relative_to("/")
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text("#!/bin/sh\necho $1 $2 $3 >/run/hooks\n")
        hook.chmod(0o755)

    def wait_for(self, domain: str, phase: str) -> None:
        """Wait until the hooks of a phase have been called."""
        self._lines.wait_for(f"^{domain} {phase} ", SECONDS)

    def phases(self, domain: str) -> list[str]:
        """Return the phases of a domain that were called since the last look."""
        calls = [line.split() for line in self._lines.until(0)]
        return [phase for name, phase, _ in calls if name == domain]

    def close(self) -> None:
        self._file.close()


class HeldHook:
    """A hook beside Tapster's that stops in one phase until it is let go."""

    def __init__(
        self, phase: str, root: Path = Path("/"), *, before_tapster: bool = False
    ) -> None:
        # libvirt calls hooks in the order of their names.
        name = "10-held" if before_tapster else "99-held"
        self._hook = root / HOOK.with_name(name).relative_to("/")
        self._gate, self._reached = root / "run/hook.gate", root / "run/hook.reached"
        for pipe in (self._gate, self._reached):
            os.mkfifo(pipe)
        self._hook.write_text(
            f"#!/bin/sh\n[ $2 = {phase} ] || exit 0\n"
            # Opened before anybody is told: a test may remove the files then.
            "exec 3<>/run/hook.gate\necho $$ >/run/hook.reached\nread line <&3\n"
        )
        self._hook.chmod(0o755)

    def wait_reached(self) -> int:
        """Wait until libvirt is in the phase; return the hook's pid."""
        return int(self._reached.read_text())

    def let_go(self) -> None:
        """Let the domain go on."""
        self._gate.write_text("\n")

    def remove(self) -> None:
        """Hold no domain any more. One that is held stays so."""
        for path in (self._hook, self._gate, self._reached):
            path.unlink()


def wait_until_off(name: str) -> None:
    """Wait until libvirt knows that a domain has ended."""
    while virsh(f"domstate {name}") not in ("shut off", "crashed"):
        call("event", "--domain", name, "--event", "lifecycle", "--timeout", "1")


def running() -> Sequence[str]:
    """Return the names of the domains that run."""
    return virsh("list --name").split()


if __name__ == "__main__":
    prepare()
