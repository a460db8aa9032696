# SPDX-License-Identifier: Apache-2.0
"""A running Debian host: start it, run commands in it, end it gently or at once."""

import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple, Self

from lab.host import accelerator, cable, cache
from lab.host.agent import ERR, EXIT, HEADER, INPUT, OUT, RUN
from lab.host.cable import CableEnd
from lab.host.image import Image
from lab.host.qmp import Qmp

BOOT = 240.0
"""Seconds in which a host boots, also without KVM on a busy computer."""
COMMAND = 300.0
"""Seconds for one command, unless the caller says otherwise."""
MEMORY = "1024"
BARE = "/usr/local/lib/lab/init"
"""Where a host has `init.sh`, if a test wants to boot it without systemd."""
CHUNK = 1 << 16


class Result(NamedTuple):
    """What a command in the host printed, and its exit status."""

    status: int
    stdout: str
    stderr: str


class Failed(Exception):
    """A command in the host ended with another status than 0."""

    def __init__(self, argv: Sequence[str], result: Result) -> None:
        said = f"{result.stdout}{result.stderr}"
        super().__init__(f"{' '.join(argv)} ended with {result.status}:\n{said}")
        self.result = result


class DebianHost:
    """A Debian host in QEMU. Whatever happens to the process that made it, its VM ends.

    The disk is a layer over the image: it lives as long as this object, through power
    cuts and boots.
    """

    def __init__(
        self,
        image: Image,
        *,
        name: str = "host",
        disk: Path | None = None,
        cables: Sequence[CableEnd] = (),
        console: str = "",
    ) -> None:
        """`disk`: what to lay the host's own disk over, instead of the image's.
        `console`: where QEMU's first serial port goes, instead of a file."""
        self.name = name
        self.folder = Path(mkdtemp(prefix="tapster-lab-"))
        self.disk = self.folder / "disk.qcow2"
        self._image = image
        self._cables = list(cables)
        self._console = console or f"file:{self.console}"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._qmp: Qmp | None = None
        layer(disk or image.disk, self.disk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def console(self) -> Path:
        """The file that has all that was printed on the console."""
        return self.folder / "console"

    @property
    def qmp(self) -> Qmp:
        assert self._qmp, "the host is off"
        return self._qmp

    def boot(self) -> None:
        """Switch the host on; return when systemd has started everything."""
        self.start()
        command = ("systemctl", "is-system-running", "--wait")
        state = self.run(*command, check=False, timeout=BOOT).stdout.strip()
        if state != "running":
            failed = self.run("systemctl", "--failed", "--no-legend").stdout
            raise RuntimeError(f"the host's state after its boot is {state}:\n{failed}")

    def boot_bare(self) -> None:
        """Switch the host on with `init.sh` in place of systemd, and without udev.

        Debian's kernel, the repair of the file system and all files are those of a
        whole boot. For tests that boot often.
        """
        self.start("-append", f"{self._arguments()} init={BARE} panic=-1")
        self.run("true", timeout=BOOT)

    def start(self, *options: str) -> None:
        """Switch the host on, with further options of QEMU; do not wait for it."""
        assert self._qemu is None, "the host is on"
        for name in ("agent", "qmp"):
            (self.folder / name).unlink(missing_ok=True)
        interactive = not self._console.startswith("file:")
        with (
            self._listen("agent") as agent,
            self._listen("qmp") as control,
            (self.folder / "qemu").open("ab") as log,
        ):
            self._qemu = subprocess.Popen(
                [*self._command(), *options],
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=None if interactive else log,
                stderr=log,
                start_new_session=not interactive,
            )
            self._agent = self._accept(agent)
            self._qmp = Qmp(self._accept(control))

    def plug_in(self, end: CableEnd) -> None:
        """Give the running host a network card at this end of a cable, for good."""
        number = len(self._cables)
        self.qmp.command("netdev_add", **end.network(number))
        self.qmp.command("device_add", **end.card(number))
        self._cables.append(end)

    def run(
        self,
        *argv: str,
        input: bytes = b"",
        environment: Mapping[str, str] | None = None,
        folder: str = "/root",
        timeout: float = COMMAND,
        check: bool = True,
        on_output: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Run a command as root. `on_output` gets each piece that it prints, at once.

        Raises Failed if the status is not 0 and `check` is set. A command
        that takes longer than `timeout` ends the host, and TimeoutError is raised.
        """
        deadline = time.monotonic() + timeout
        request = {"argv": argv, "env": dict(environment or {}), "cwd": folder}
        self._send(RUN, json.dumps(request).encode(), deadline)
        for start in range(0, len(input), CHUNK):
            self._send(INPUT, input[start : start + CHUNK], deadline)
        self._send(INPUT, b"", deadline)
        printed = {OUT: b"", ERR: b""}
        while True:
            try:
                kind, payload = self._receive(deadline)
            except TimeoutError:
                self.power_cut()
                said = (printed[OUT] + printed[ERR]).decode(errors="replace")
                late = f"{' '.join(argv)} took longer than {timeout:g} s"
                raise TimeoutError(f"{late}; it printed:\n{said}") from None
            if kind == EXIT:
                break
            printed[kind] += payload
            if on_output:
                on_output(payload)
        out, err = (printed[kind].decode(errors="replace") for kind in (OUT, ERR))
        result = Result(int(payload), out, err)
        if check and result.status:
            raise Failed(argv, result)
        return result

    def sh(self, script: str, **options: object) -> str:
        """Run a script of the shell; what it printed. Raises Failed if it fails."""
        return self.run("bash", "-euc", script, **options).stdout  # type: ignore[arg-type]

    def read(self, path: str) -> str:
        """Return the text of a file in the host."""
        return self.run("cat", path).stdout

    def add_bare(self) -> None:
        """Give the host what `boot_bare` needs."""
        self.write(BARE, Path(__file__).with_name("init.sh").read_bytes())
        self.sh(f"chmod 755 {BARE}")

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file in the host; its folder is made if need be."""
        data = content.encode() if isinstance(content, str) else content
        self.sh(f'mkdir -p "$(dirname "{path}")"; cat > "{path}"', input=data)

    def unpack(self, archive: bytes, folder: str) -> None:
        """Unpack a tar archive in a folder of the host."""
        self.run("mkdir", "-p", folder)
        self.run("tar", "-x", "-C", folder, "--no-same-owner", input=archive)

    def power_cut(self) -> None:
        """Take the power away: what is in the host's memory is lost."""
        if self._qemu:
            self._qemu.kill()
            self._ended()

    def power_off(self) -> None:
        """Shut the host down in good order, and wait until it is off."""
        assert self._qemu
        with suppress(EOFError):  # the host may be off before it answers
            self.run("systemctl", "--no-block", "poweroff")
        try:
            self._qemu.wait(COMMAND)
        finally:
            self.power_cut()

    def wait(self) -> int:
        """Wait until the host is off; QEMU's exit status."""
        assert self._qemu, "the host is off"
        status = self._qemu.wait()
        self._ended()
        return status

    def reboot(self) -> None:
        """Shut the host down in good order, and boot it again."""
        self.power_off()
        self.boot()

    def close(self) -> None:
        """Take the power away, and forget the disk."""
        self.power_cut()
        shutil.rmtree(self.folder, ignore_errors=True)

    def hardware(self) -> list[str]:
        """QEMU's options for all that the host can see of its computer."""
        chosen = accelerator.choose(self._image.kernel)
        return [
            # Without these two features TCG boots a host in less time.
            *("-machine", f"q35,accel={chosen}", "-cpu", "max,svm=off,la57=off"),
            *("-smp", "2"),
            *("-m", MEMORY, "-nodefaults", "-display", "none"),
            *("-append", self._arguments()),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=agent,name=lab"),
            *cable.slots(),
        ]

    def _arguments(self) -> str:
        """Return the kernel's command line."""
        machine_id = cache.digest([self.name]) * 2
        return (
            "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 "
            "mitigations=off "
            f"systemd.hostname={self.name} systemd.machine_id={machine_id}"
        )

    def _command(self) -> list[str]:
        command = [
            *("setpriv", "--pdeathsig=KILL", "qemu-system-x86_64", "-no-reboot"),
            *("-chardev", f"socket,id=agent,path={self.folder}/agent"),
            *("-qmp", f"unix:{self.folder}/qmp", "-serial", self._console),
            *("-drive", f"file={self.disk},if=virtio,format=qcow2"),
            *self.hardware(),
        ]
        for number, end in enumerate(self._cables):
            command += ["-netdev", json.dumps(end.network(number))]
            command += ["-device", json.dumps(end.card(number))]
        return command

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / name))
        listener.listen(1)
        return listener

    def _accept(self, listener: socket.socket) -> socket.socket:
        """Return the connection that QEMU makes at its start."""
        assert self._qemu
        end = os.pidfd_open(self._qemu.pid)
        try:
            ready, _, _ = select.select([listener.fileno(), end], [], [], 30)
        finally:
            os.close(end)
        if listener.fileno() not in ready:
            self.power_cut()
            said = (self.folder / "qemu").read_text(errors="replace")
            raise RuntimeError(f"QEMU did not start: {said}")
        return listener.accept()[0]

    def _send(self, kind: bytes, payload: bytes, deadline: float) -> None:
        assert self._agent, "the host is off"
        self._agent.settimeout(max(0.1, deadline - time.monotonic()))
        self._agent.sendall(HEADER.pack(kind, len(payload)) + payload)

    def _receive(self, deadline: float) -> tuple[bytes, bytes]:
        kind, length = HEADER.unpack(self._read(HEADER.size, deadline))
        return kind, self._read(length, deadline)

    def _read(self, length: int, deadline: float) -> bytes:
        assert self._agent, "the host is off"
        data = b""
        while len(data) < length:
            self._agent.settimeout(max(0.1, deadline - time.monotonic()))
            piece = b""
            with suppress(ConnectionResetError):  # it had read none of the request
                piece = self._agent.recv(length - len(data))
            if not piece:
                last = self.console.read_text(errors="replace")[-2000:]
                raise EOFError(f"the host has ended; its console:\n{last}")
            data += piece
        return data

    def _ended(self) -> None:
        assert self._qemu
        self._qemu.wait()
        self._qemu = None
        for connection in (self._agent, self._qmp):
            if connection:
                connection.close()
        self._agent = self._qmp = None


def layer(below: Path, above: Path) -> None:
    """Make a disk that has what is below, and keeps what is written to itself."""
    kind = below.suffix.removeprefix(".")
    backing = ["-b", str(below), "-F", kind]
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(above)]
    subprocess.run(command, check=True)
