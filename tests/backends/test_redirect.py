# SPDX-License-Identifier: Apache-2.0
"""A tap in the place of a pod's veth, judged by tc and by frames."""

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tapster
from lab import iproute, shell
from lab.daemon import Daemon
from lab.library import no_reaper
from lab.namespaces import inside
from lab.redirect import carried, filters, kernel_redirects, qdiscs, redirections
from lab.shell import sh
from tapster import (
    AnyHost,
    ConflictError,
    Host,
    HostError,
    OpenDevice,
    RequestError,
    Tap,
)
from tapster.errors import NoSuchLink
from tapster.kernel.linux import LinuxNamespace

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

POD = "pod"
MAC = "02:00:00:00:00:05"
PREFERENCE = 0x7A70
KIND = 0x88B5
"""An Ethernet type for experiments: no other program sends it."""
HEADER = bytes(10)

redirecting = pytest.mark.skipif(
    not kernel_redirects(), reason="this kernel has no act_mirred: make host-test"
)


@pytest.fixture
def pod(world: None) -> str:
    """A pod with a veth `eth0`, whose other end is `outside` on the host."""
    sh(f"ip netns add {POD}")
    sh(f"ip link add outside type veth peer name eth0 address {MAC} netns {POD}")
    sh("ip link set outside up")
    sh(f"ip -n {POD} link set eth0 up mtu 1400")
    return f"/run/netns/{POD}"


@pytest.fixture
def host(pod: str, ledger: Path) -> Iterator[Host]:
    with Host(ledger, netns=POD, reaper=no_reaper) as host:
        yield host


def acquire(host: AnyHost, name: str = "tap0", redirect: str = "eth0") -> OpenDevice:
    return host.acquire(Tap(name=name, redirect=redirect, owner="vm", fin_wait=0))


def frame(text: str) -> bytes:
    addresses = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", ""))
    return (addresses + KIND.to_bytes(2, "big") + text.encode()).ljust(60, b"\0")


def packets(device: str) -> socket.socket:
    """Open a socket for the experiment's frames on a device."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND))
    opened.bind((device, KIND))
    opened.settimeout(10)
    return opened


def from_guest(fd: int) -> bytes:
    """Return the next frame of the experiment that the guest gets."""
    while True:
        ready, _, _ = select.select([fd], [], [], 10)
        assert ready, "the guest got no frame"
        data = os.read(fd, 65536)[len(HEADER) :]
        if data[12:14] == KIND.to_bytes(2, "big"):
            return data


def passes(device: OpenDevice) -> None:
    """Check that frames go both ways."""
    with packets("outside") as outside:
        outside.send(frame("in"))
        assert from_guest(device.fds[0]) == frame("in")
        os.write(device.fds[0], HEADER + frame("out"))
        assert outside.recv(2000) == frame("out")


def nothing_is_left() -> None:
    assert not filters("eth0", POD)
    assert not qdiscs("eth0", POD)
    assert iproute.links(POD).keys() == {"lo", "eth0"}


@redirecting
def test_frames_go_both_ways(host: Host) -> None:
    with acquire(host) as device:
        assert device.mac == MAC, "the guest takes the place of the veth"
        assert iproute.links(POD)["tap0"]["mtu"] == 1400
        assert redirections("eth0", POD) == {PREFERENCE: "tap0"}
        assert redirections("tap0", POD) == {PREFERENCE: "eth0"}
        passes(device)
        assert host.differences(device) == {}
        host.release(device)
    nothing_is_left()


@redirecting
def test_release_leaves_what_other_programs_have_there(host: Host) -> None:
    sh(f"tc -n {POD} qdisc add dev eth0 clsact")
    sh(f"tc -n {POD} filter add dev eth0 egress pref 7 matchall action pass")
    with acquire(host) as device:
        host.release(device)
    assert qdiscs("eth0", POD) == {"clsact"}
    shown = sh(f"tc -n {POD} filter show dev eth0 egress")
    assert "pref 7 matchall" in shown


@redirecting
def test_a_device_is_redirected_once(host: Host, tmp_path: Path) -> None:
    with acquire(host):
        with pytest.raises(ConflictError, match="'eth0' is redirected already"):
            acquire(host, "tap1")
        with (
            Host(tmp_path / "other.db", netns=POD, reaper=no_reaper) as other,
            pytest.raises(ConflictError, match="'eth0' is redirected already"),
        ):
            acquire(other, "tap1")
        assert iproute.links(POD).keys() == {"lo", "eth0", "tap0"}
        assert redirections("eth0", POD) == {PREFERENCE: "tap0"}


@redirecting
@pytest.mark.parametrize("device", ["eth0", "tap0"])
def test_recover_restores_what_another_program_deleted(host: Host, device: str) -> None:
    with acquire(host) as opened:
        sh(f"tc -n {POD} qdisc del dev {device} clsact")
        assert "redirections" in host.differences(opened)["redirect"]
        host.recover()
        assert host.differences(opened) == {}
        passes(opened)


@redirecting
@pytest.mark.parametrize("device", ["eth0", "tap0"])
@pytest.mark.parametrize(
    "change",
    [
        "qdisc del dev {} clsact",
        "filter del dev {} ingress",
        f"filter del dev {{}} ingress pref {PREFERENCE}",
    ],
)
def test_the_daemon_restores_a_redirection_at_once(
    pod: str, device: str, change: str
) -> None:
    with Daemon() as daemon:
        daemon.start()
        events = daemon.events()
        with (
            tapster.connect(daemon.socket, netns=POD) as root,
            acquire(root) as opened,
        ):
            assert next(events).event == "acquired"
            sh(f"tc -n {POD} {change.format(device)}")
            restored = next(events)
            assert (restored.event, restored.name) == ("restored", "tap0")
            assert root.differences(opened) == {}
            passes(opened)


@redirecting
def test_recover_follows_a_veth_that_was_made_again(host: Host) -> None:
    with acquire(host) as opened:
        sh("ip link del outside")
        assert host.differences(opened)["redirect"] == "there is no device 'eth0'"
        sh(f"ip link add outside type veth peer name eth0 address {MAC} netns {POD}")
        sh("ip link set outside up")
        sh(f"ip -n {POD} link set eth0 up")
        host.recover()
        passes(opened)


@redirecting
def test_the_veth_is_free_again_when_the_tap_was_deleted(host: Host) -> None:
    with acquire(host) as opened:
        sh(f"ip -n {POD} link del tap0")
        assert redirections("eth0", POD) == {PREFERENCE: "*"}
        host.recover()
        assert not filters("eth0", POD)
        host.release(opened)
    host.reap(now=True)
    nothing_is_left()


@redirecting
@pytest.mark.parametrize("change", ["link del outside", f"-n {POD} link set eth0 down"])
def test_release_works_after_any_change_of_the_veth(host: Host, change: str) -> None:
    with acquire(host) as opened:
        sh(f"ip {change}")
        host.release(opened)
    assert "tap0" not in iproute.links(POD)
    assert not host.leases()


@redirecting
def test_release_finds_a_veth_that_was_renamed(host: Host) -> None:
    with acquire(host) as opened:
        sh(f"ip -n {POD} link set eth0 down")
        sh(f"ip -n {POD} link set eth0 name lan0")  # a message of its own before 6.2
        host.release(opened)
    assert not filters("lan0", POD)
    assert not qdiscs("lan0", POD)


@redirecting
def test_set_moves_a_redirection_and_ends_it(host: Host) -> None:
    sh(f"ip link add out1 type veth peer name eth1 netns {POD}")
    sh("ip link set out1 up")
    sh(f"ip -n {POD} link set eth1 up")
    with acquire(host) as opened:
        host.set(opened, redirect="eth1")
        assert not filters("eth0", POD)
        assert redirections("eth1", POD) == {PREFERENCE: "tap0"}
        assert redirections("tap0", POD) == {PREFERENCE: "eth1"}
        with pytest.raises(NoSuchLink, match="no device 'absent'"):
            host.set(opened, redirect="absent")
        assert redirections("eth1", POD) == {PREFERENCE: "tap0"}
        host.set(opened, redirect=None)
        assert not filters("eth1", POD)
        assert not filters("tap0", POD)
        host.release(opened)
    assert not qdiscs("eth1", POD)


@redirecting
def test_a_change_of_something_else_leaves_a_redirection_alone(host: Host) -> None:
    """Without it, even for a moment, the VM loses frames."""
    with acquire(host) as opened:
        passes(opened)
        before = carried("eth0", POD), carried("tap0", POD)
        assert min(before) > 0
        host.set(opened, mtu=1300)
        assert carried("eth0", POD) >= before[0], "it counts on"
        assert carried("tap0", POD) >= before[1]
        assert iproute.links(POD)["tap0"]["mtu"] == 1300
        passes(opened)


@redirecting
def test_recover_removes_what_belongs_to_no_lease(host: Host, ledger: Path) -> None:
    sh(f"ip link add out1 type veth peer name eth1 netns {POD}")
    sh(f"ip -n {POD} link set eth1 up")
    with acquire(host) as first:
        host.close()
        shutil.copy(ledger, ledger.with_suffix(".old"))
        with inside(POD_PATH), Host(ledger, reaper=no_reaper) as later:
            acquire(later, "tap1", "eth1").close()
        shutil.copy(ledger.with_suffix(".old"), ledger)
        with inside(POD_PATH), Host(ledger, reaper=no_reaper) as restored:
            restored.recover()
            assert filters("eth1", POD), "the VM of the lost lease has its tap"
            sh(f"ip -n {POD} link delete tap1")
            restored.recover()
            assert redirections("eth0", POD) == {PREFERENCE: "tap0"}
            assert not filters("eth1", POD)
            assert restored.differences(first) == {}


POD_PATH = f"/run/netns/{POD}"


@redirecting
def test_a_command_that_is_killed_leaves_nothing(pod: str, ledger: Path) -> None:
    environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}
    options = ["--redirect", "eth0", "--netns", POD, "--fin-wait", "0"]
    command = [shell.TAPSTER, "run", *options, "--", "cat"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"x\n"
        assert len(filters("eth0", POD)) == 1
        process.kill()
    with Host(ledger, reaper=no_reaper) as host:
        host.settle()
        host.reap(now=True)
    nothing_is_left()


@redirecting
@pytest.mark.crash
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_process_killed_while_it_redirects_leaves_nothing_I5(
    pod: str, ledger: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    redirect = LinuxNamespace.redirect
    left = [None] * steps

    def dying(namespace: LinuxNamespace, *arguments: Any) -> None:
        if not left:
            os._exit(0)
        left.pop()
        redirect(namespace, *arguments)
        if steps == 2 and not left:
            os._exit(0)

    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(LinuxNamespace, "redirect", dying)
            acquire(Host(ledger, netns=POD, reaper=no_reaper))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0) == (child, 0)
    assert "tap0" in iproute.links(POD)
    assert len(filters("tap0", POD)) + len(filters("eth0", POD)) == steps
    with Host(ledger, reaper=no_reaper) as host:
        host.settle()
        assert not host.leases()
    nothing_is_left()


def test_what_cannot_be_redirected_is_refused(host: Host) -> None:
    with pytest.raises(NoSuchLink, match="no device 'absent' to redirect"):
        acquire(host, redirect="absent")
    with pytest.raises(RequestError, match="'lo' cannot be redirected"):
        acquire(host, redirect="lo")
    with pytest.raises(RequestError, match="cannot take the place of 'eth0'"):
        host.acquire(Tap(bridge="br0", redirect="eth0"))
    sh(f"ip -n {POD} link add br0 type bridge")
    sh(f"ip -n {POD} link set eth0 master br0")
    with pytest.raises(NoSuchLink, match="'eth0' is a port of a bridge"):
        acquire(host)
    assert iproute.links(POD).keys() == {"lo", "eth0", "br0"}


@pytest.mark.skipif(kernel_redirects(), reason="this kernel has act_mirred")
def test_a_kernel_without_redirections_says_what_is_missing(host: Host) -> None:
    needs = "needs cls_matchall and act_mirred"
    with pytest.raises(HostError, match=f"^redirecting 'eth0': .* {needs}"):
        acquire(host)
    nothing_is_left()
