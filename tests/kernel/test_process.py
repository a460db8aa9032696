# SPDX-License-Identifier: Apache-2.0
"""Whether a process lives is told from anywhere on the host, or not at all."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.mallory import with_a_long_path
from tapster.errors import RequestError
from tapster.kernel import boot, process
from tapster.kernel.linux import LinuxSystem
from tapster.model import Life, Process

pytestmark = pytest.mark.kernel

ASK = """
import sys
from tapster.kernel import process
from tapster.model import Process
print(process.life(Process(*map(int, sys.argv[1:]))))
"""
HIDE = 'mount -t proc -o hidepid=%s proc /proc && exec setpriv --reuid 65534 \
    --regid 65534 --clear-groups "$@"'
NO_PRIVILEGE = "--inh-caps=-all --bounding-set=-all"
ZOMBIE = """
import ctypes, os, threading
begun = threading.Event()
def live():
    begun.set()
    os.read(0, 1)
threading.Thread(target=live).start()
begun.wait()
os.write(1, b"!")
ctypes.CDLL(None).pthread_exit(None)
"""
"""Its main thread ends, another one goes on until its input ends."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, *command: str) -> "subprocess.Popen[bytes]":
    """Start a process that says when it runs; it ends with the test."""
    pipe = subprocess.PIPE
    started = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
    stack.callback(started.communicate)
    assert started.stdin
    assert started.stdout
    if command[-1] == "cat":
        started.stdin.write(b"!")
    assert started.stdout.read(1) == b"!"
    return started


def known(pid: int) -> Process:
    found = process.process(pid)
    assert found is not None
    return found


def ask(about: Process, *within: str) -> str:
    """What a process says that was started by the command `within`."""
    command = [*within, sys.executable, "-c", ASK, *map(str, about)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


TIMES = ["--boottime=100000", "--boottime=-100", "--boottime=7"]


@pytest.mark.parametrize("offset", TIMES)
def test_a_time_namespace_changes_no_answer(stack: ExitStack, offset: str) -> None:
    here = start(stack, "cat")
    about = known(here.pid)
    within = ["unshare", "--time", offset]
    assert ask(about, *within) == Life.LIVES
    here.communicate()
    assert ask(about, *within) == Life.ENDED


@pytest.mark.parametrize("offset", TIMES)
def test_a_process_has_one_start_time_in_all_time_namespaces(
    stack: ExitStack, offset: str
) -> None:
    here = start(stack, "cat")
    tell = f"from tapster.kernel import process; print(process.process({here.pid}))"
    shifted = ["unshare", "--time", offset, sys.executable, "-c", tell]
    done = subprocess.run(shifted, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(known(here.pid))


@pytest.mark.parametrize("offset", TIMES)
def test_a_time_namespace_does_not_shift_the_clock(offset: str) -> None:
    tell = "from tapster.kernel import boot; print(boot.boottime())"
    shifted = ["unshare", "--time", offset, sys.executable, "-c", tell]
    before = boot.boottime()
    done = subprocess.run(shifted, capture_output=True, text=True, check=True)
    assert before <= float(done.stdout) <= boot.boottime()


def test_a_process_lives_until_its_last_thread_has_ended(stack: ExitStack) -> None:
    here = start(stack, sys.executable, "-c", ZOMBIE)
    about = known(here.pid)
    # Its stat says that the main thread is a zombie as soon as that has ended.
    while (state := _state(here.pid)) != "Z":
        assert state in "SRD"
    assert process.life(about) is Life.LIVES
    pidfd = process.open_process(about)
    assert pidfd is not None
    assert not process.over(pidfd)
    os.close(pidfd)
    here.communicate()
    assert process.life(about) is Life.ENDED


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_zombie_has_ended(stack: ExitStack) -> None:
    here = start(stack, "cat")
    about = known(here.pid)
    os.kill(here.pid, signal.SIGKILL)
    os.waitid(os.P_PID, here.pid, os.WEXITED | os.WNOWAIT)
    assert process.life(about) is Life.ENDED
    assert process.open_process(about) is None


@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_a_hidden_process_is_not_taken_for_an_ended_one(
    stack: ExitStack, hidepid: str
) -> None:
    here = start(stack, "cat")
    about = known(here.pid)
    within = ["unshare", "--mount", "--propagation=private", "sh", "-c", HIDE % hidepid]
    blind = [*within, "sh", *NO_PRIVILEGE.split()]
    assert ask(about, *blind) == Life.CANNOT_TELL
    here.communicate()
    # No process has the pid any more: nothing can hide that.
    assert ask(about, *blind) == Life.ENDED


def test_without_proc_nothing_is_taken_for_ended(stack: ExitStack) -> None:
    about = known(start(stack, "cat").pid)
    # The program is loaded while there is a /proc.
    lost = ASK.replace(
        "print", "import os; os.system('mount -t tmpfs t /proc')\nprint", 1
    )
    command = ["unshare", "--mount", "--propagation=private", sys.executable, "-c"]
    done = subprocess.run(
        [*command, lost, *map(str, about)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == Life.CANNOT_TELL


class Container:
    """A pid namespace with a /proc of its own, and a process in it."""

    def __init__(self, stack: ExitStack) -> None:
        script = 'cat & echo "$!"; exec cat'
        container = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        pipe = subprocess.PIPE
        self.outside = subprocess.Popen(
            [*container, "sh", "-c", script], stdin=pipe, stdout=pipe, bufsize=0
        )
        stack.callback(self.outside.communicate)
        assert self.outside.stdout
        self.pid = int(self.outside.stdout.readline())
        (self.init,) = _children(self.outside.pid)
        self.pidns = os.stat(f"/proc/{self.init}/ns/pid").st_ino

    def ask(self, about: Process) -> str:
        inside = ["nsenter", "-t", str(self.init), "--pid", "--mount"]
        return ask(about, *inside)

    def process(self, pid: int) -> Process:
        """A process as one of the container sees it."""
        tell = f"from tapster.kernel import process; print(*process.process({pid}))"
        inside = ["nsenter", "-t", str(self.init), "--pid", "--mount"]
        done = subprocess.run(
            [*inside, sys.executable, "-c", tell],
            capture_output=True,
            text=True,
            check=True,
        )
        return Process(*map(int, done.stdout.split()))


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [*map(int, file.read().split())]


def test_the_host_sees_the_processes_of_containers(stack: ExitStack) -> None:
    container = Container(stack)
    about = container.process(1)
    assert about.pidns == container.pidns != known(os.getpid()).pidns
    assert process.life(about) is Life.LIVES
    pidfd = process.open_process(about)
    assert pidfd is not None
    assert not process.over(pidfd)
    container.outside.communicate()
    assert process.over(pidfd)
    os.close(pidfd)
    # The whole pid namespace is gone.
    assert process.life(about) is Life.ENDED
    assert process.open_process(about) is None


def test_the_host_sees_the_end_of_one_process_of_a_container(stack: ExitStack) -> None:
    container = Container(stack)
    about = container.process(1)
    assert process.life(about._replace(pid=container.pid)) is Life.ENDED
    assert process.life(about._replace(start=about.start - 9)) is Life.ENDED
    assert process.life(about) is Life.LIVES


def test_a_container_cannot_tell_of_the_host_s_processes(stack: ExitStack) -> None:
    container = Container(stack)
    here = start(stack, "cat")
    about = known(here.pid)
    assert container.ask(about) == Life.CANNOT_TELL
    here.communicate()
    assert container.ask(about) == Life.CANNOT_TELL
    assert process.life(about) is Life.ENDED


def test_a_name_that_is_no_text_prevents_no_judgement(stack: ExitStack) -> None:
    """Any user may give a process such a name."""
    script = r"printf '\377' >/proc/self/comm; cat"
    named = start(stack, "sh", "-c", script, "cat")
    # The host looks at each process that began at the same time.
    of_a_container = known(named.pid)._replace(pid=1 << 22, pidns=1)
    assert process.life(of_a_container) is not Life.LIVES


def test_a_process_recorded_without_a_pid_namespace_is_not_judged() -> None:
    nowhere = Process(1, 1, 0)
    assert process.life(nowhere) is Life.CANNOT_TELL
    with pytest.raises(OSError, match="not seen here"):
        process.open_process(nowhere)
    with pytest.raises(Exception, match="opening process 1"):
        LinuxSystem().open_process(nowhere)


def test_of_what_is_no_pidfd_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """About an epoll the kernel writes a line for each file that is in it."""
    with ExitStack() as closing:
        many = closing.enter_context(select.epoll())
        fds = [many.fileno(), *os.pipe(), os.memfd_create("x"), with_a_long_path()]
        many.register(fds[1])
        for fd in fds[1:]:
            closing.callback(os.close, fd)
        monkeypatch.setattr("builtins.open", None)
        for fd in fds:
            assert not process.is_pidfd(fd)
            with pytest.raises(RequestError, match="is no pidfd"):
                process.pid_of(fd)
        own = os.pidfd_open(os.getpid())
        closing.callback(os.close, own)
        assert process.is_pidfd(own)
        monkeypatch.undo()
        assert process.pid_of(own) == os.getpid()
