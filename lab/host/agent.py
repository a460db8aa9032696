# SPDX-License-Identifier: Apache-2.0
"""Carry out commands inside the host. This file is copied into the disk image.

The lab and the agent exchange frames through a port of the VM: a kind (one byte), a
length, and the payload. One command runs at a time. The lab sends RUN with a JSON
object, and INPUT until an empty INPUT ends the command's standard input. The agent
sends OUT and ERR as the command prints, and EXIT with its status when it has ended.
Processes that the command leaves behind go on, and are not waited for.
"""

import json
import os
import select
import struct
import subprocess
from tempfile import TemporaryFile
from typing import Any

PORT = "/dev/virtio-ports/lab"
HEADER = struct.Struct(">cI")
RUN, INPUT, OUT, ERR, EXIT = b"r", b"i", b"o", b"e", b"x"
CHUNK = 1 << 16


class Frames:
    """A port, as frames."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> tuple[bytes, bytes]:
        """Wait for the next frame; its kind and payload."""
        kind, length = HEADER.unpack(self._read(HEADER.size))
        return kind, self._read(length)

    def write(self, kind: bytes, payload: bytes) -> None:
        """Send one frame."""
        left = memoryview(HEADER.pack(kind, len(payload)) + payload)
        while left:
            left = left[os.write(self._fd, left) :]

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += os.read(self._fd, min(length - len(data), CHUNK)) or self._wait()
        return data

    def _wait(self) -> bytes:
        # End of file means that the lab has not connected its side yet.
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(100)
        return b""


def main() -> None:
    """Carry out commands until the host goes down."""
    frames = Frames(os.open(PORT, os.O_RDWR | os.O_CLOEXEC))
    while True:
        kind, payload = frames.read()
        if kind == RUN:
            _carry_out(frames, json.loads(payload))


def _carry_out(frames: Frames, request: dict[str, Any]) -> None:
    with TemporaryFile() as stdin:
        while data := frames.read()[1]:
            stdin.write(data)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                request["argv"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=request["cwd"],
                env={**os.environ, **request["env"]},
                start_new_session=True,
            )
        except OSError as error:
            frames.write(ERR, f"{error}\n".encode())
            frames.write(EXIT, b"127")
            return
        with process:
            _pass_on(frames, process)
            status = process.wait()
    frames.write(EXIT, str(status).encode())


def _pass_on(frames: Frames, process: "subprocess.Popen[bytes]") -> None:
    """Send what the process prints until it has ended."""
    assert process.stdout
    assert process.stderr
    kinds = {process.stdout.fileno(): OUT, process.stderr.fileno(): ERR}
    end = os.pidfd_open(process.pid)
    poll = select.poll()
    for fd in kinds:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    poll.register(end, select.POLLIN)
    ended = False
    while not ended:
        ended = end in [fd for fd, _ in poll.poll()]
        # Once the process has ended, all that it printed is in the pipes.
        for fd in list(kinds):
            if not _drain(frames, fd, kinds[fd]):
                poll.unregister(fd)
                del kinds[fd]
    os.close(end)


def _drain(frames: Frames, fd: int, kind: bytes) -> bool:
    """Send what waits in a pipe; whether the pipe is still open."""
    while True:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        frames.write(kind, data)


if __name__ == "__main__":
    main()
