# SPDX-License-Identifier: Apache-2.0
"""`tapster open` gives a command further descriptors of a device; `add --pid` binds."""

import fcntl
import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lab import iproute, shell
from lab.reapers import Monitor

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world", "own_ledger")]

TUNGETIFF = 0x800454D2


def tapster(line: str, status: int = 0) -> str:
    """Run the command; return what it printed, with errors."""
    done = subprocess.run(
        [shell.TAPSTER, *shlex.split(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    return done.stdout


def name_behind(fd: int) -> str:
    name: bytes = struct.unpack("16sH22x", fcntl.ioctl(fd, TUNGETIFF, bytes(40)))[0]
    return name.rstrip(b"\0").decode()


def queues(name: str) -> int:
    """How many descriptors a multi-queue tap has, as ip sees it."""
    return int(iproute.links()[name]["linkinfo"]["info_data"]["numqueues"])


# add --pid


def test_a_lease_ends_with_the_process_that_it_is_bound_to() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process, Monitor() as monitor:
        tapster(f"add --bridge br0 --fin-wait 0.2 --pid {process.pid}")
        assert f'"pid": {process.pid}' in tapster("ls --json")
        assert iproute.ports() == {"vnet0"}
        process.kill()
        monitor.wait_deleted("vnet0")  # no command was typed


def test_a_process_that_has_ended_is_refused_before_anything_is_made() -> None:
    with subprocess.Popen(["true"]) as gone:
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
        zombie = tapster(f"add --pid {gone.pid}", 2)
    for text in (zombie, tapster(f"add --pid {gone.pid}", 2)):
        assert f"there is no process {gone.pid}" in text
    for nothing in ("0", "-1", "4194305"):
        assert f"there is no process {nothing}" in tapster(f"add --pid={nothing}", 2)
    assert tapster("who --json").count('"name"') == 0
    assert set(iproute.links()) == {"lo", "br0"}


def test_a_thread_is_no_process_to_bind_to() -> None:
    code = (
        "import threading, sys; t = threading.Thread(target=sys.stdin.read); t.start();"
        "print(t.native_id, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        thread = int(process.stdout.readline())
        assert "a thread" in tapster(f"add --pid {thread}", 2)
        process.communicate("")
    assert set(iproute.links()) == {"lo", "br0"}


# open

SHOW = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.command.test_open import name_behind
fds = [int(fd) for fd in sys.argv[2].split(":")]
print(json.dumps({
    "pid": os.getpid(), "words": sys.argv[3:], "names": [*map(name_behind, fds)],
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGPIPE)],
    "tapster": {k: v for k, v in os.environ.items() if k.startswith("TAPSTER_")},
    "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
}))
"""


def test_the_command_takes_tapsters_place_with_the_device_open(ledger: Path) -> None:
    id = tapster("add --bridge br0 --owner web --mac 52:54:00:00:00:01 --id").strip()
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SHOW, root, "{fds}"]
    with subprocess.Popen(
        [
            *(shell.TAPSTER, "open", id, "--", *command),
            *("{fd}", "{fdlist}", "{name}", "{mac}", "{ifindex}", "{{fd}", "${fd}"),
        ],
        stdout=subprocess.PIPE,
    ) as process:
        shown = json.loads(process.communicate()[0])
    assert process.returncode == 0
    assert shown["pid"] == process.pid, "it is no child"
    index = str(iproute.links()["vnet0"]["ifindex"])
    (fd,) = (int(shown["tapster"]["TAPSTER_FD"]),)
    mac = "52:54:00:00:00:01"
    assert shown["words"] == [
        *(str(fd), f"[{fd}]", "vnet0", mac, index, "{fd}", "${fd}")
    ]
    assert shown["names"] == ["vnet0"]
    assert fd in shown["open"]
    expected = {"NAME": "vnet0", "MAC": mac, "IFINDEX": index, "LEASE": id, "FD": fd}
    for field, value in expected.items():
        for key in (f"TAPSTER_{field}", f"TAPSTER_{field}0"):
            assert shown["tapster"][key] == str(value)
    default = str(signal.default_int_handler)
    assert shown["signals"][0].startswith(default[:20])
    assert iproute.ports() == {"vnet0"}, "the lease goes on"


def test_a_device_of_several_queues_gets_further_ones() -> None:
    script = "echo {fds}; read end"
    with subprocess.Popen(
        [shell.TAPSTER, "run", "--queues", "2", "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as vm:
        assert vm.stdout
        assert vm.stdout.readline().count(":") == 1
        ip = "ip -d -j link show vnet0"
        shown = json.loads(tapster(f"open vnet0 -- sh -c ': {{fds}}; {ip}'"))
        assert shown[0]["linkinfo"]["info_data"]["numqueues"] == 4
        assert queues("vnet0") == 2
        vm.communicate("")


def test_a_tap_of_one_queue_is_opened_once() -> None:
    with subprocess.Popen(
        [shell.TAPSTER, "run", "--", "sh", "-c", "echo {fd}; read end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as vm:
        assert vm.stdout
        vm.stdout.readline()
        said = tapster("open vnet0 -- true", 125)
        assert "a process has it open; close it there first" in said
        vm.communicate("")
    assert "is released" in tapster("open vnet0 -- true", 125)


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("open vnet0 -- sh -c 'exit 7'", 7, ""),
        ("open vnet0 -- sh -c 'kill -TERM $$'", -signal.SIGTERM, ""),
        ("open vnet0 -- nothing-here", 127, "cannot start 'nothing-here'"),
        ("open vnet0 -- /etc/passwd", 126, "Permission denied"),
        ("open vnet0", 125, "needs a COMMAND"),
        ("open vnte0 -- true", 125, "did you mean 'vnet0'?"),
        ("open vnet0 -- true {fd1}", 125, "numbered 0 to 0"),
        ("open vnet1 -- true", 125, "tapster open --owner web vnet1 -- true"),
        ("open vnet1 --owner web -- true --owner x", 0, ""),
        ("open vnet0 --frob -- true", 125, "no option '--frob'"),
    ],
)
def test_exit_codes_are_the_commands_or_say_what_failed(
    line: str, status: int, said: str
) -> None:
    tapster("add")
    tapster("add --owner web")
    output = tapster(line, status)
    assert said in output
    assert output.count("\n") == bool(said)


PLUG = """
import json, socket, sys
path, fd = sys.argv[1], int(sys.argv[2])
qmp = socket.socket(socket.AF_UNIX)
qmp.connect(path)
lines = qmp.makefile()
lines.readline()
def call(name, fds=(), **arguments):
    text = json.dumps({"execute": name, "arguments": arguments}).encode()
    socket.send_fds(qmp, [text], fds)
    while not {"return", "error"} & (answer := json.loads(lines.readline())).keys():
        pass
    assert "return" in answer, answer
call("qmp_capabilities")
call("getfd", [fd], fdname="tap")
call("netdev_add", type="tap", id="n0", fd="tap")
call("device_add", driver="virtio-net-pci", netdev="n0", mac=sys.argv[3])
"""


@pytest.mark.slow
def test_a_device_is_plugged_into_a_qemu_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        fd = listening.fileno()
        machine = ["-machine", "pc,accel=tcg", "-m", "16", "-S", "-nodefaults"]
        chardev = f"socket,id=m,fd={fd},server=on,wait=off"
        more = ["-display", "none", "-chardev", chardev, "-mon", "m,mode=control"]
        vm = subprocess.Popen(
            ["qemu-system-x86_64", "-no-user-config", *machine, *more], pass_fds=[fd]
        )
    try:
        tapster(f"add --bridge br0 --owner web --pid {vm.pid}")
        assert "LOWER_UP" not in iproute.links()["vnet0"]["flags"]
        python = shlex.join([sys.executable, "-c", PLUG, str(path)])
        tapster(f"open --owner web vnet0 -- {python} {{fd}} {{mac}}")
        assert "LOWER_UP" in iproute.links()["vnet0"]["flags"], "QEMU has it open"
        assert os.path.exists(f"/proc/{vm.pid}")
    finally:
        vm.kill()
        vm.wait()
