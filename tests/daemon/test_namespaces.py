# SPDX-License-Identifier: Apache-2.0
"""Namespaces that a rule lists by a path in a folder that its user may change."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster
from lab import iproute, library, shell
from lab.daemon import ALICE, Daemon, user
from tapster import NotAllowed, Tap, TapsterError
from tapster.daemon.methods.call import Call
from tapster.daemon.policy import Rule
from tapster.kernel import netns
from tapster.rpc import interface
from tests.daemon import parts as parts_of_daemon

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

AT = Path("/run/test/alice/net")
POLICY = f"""
[[allow]]
users = ["{ALICE}"]
bridges = ["br0"]
features = ["fin-wait"]
netns = ["{AT}"]
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        AT.parent.mkdir()
        os.chown(AT.parent, ALICE, ALICE)
        for name in ("blue", "red"):
            shell.sh(f"ip netns add {name}")
            shell.sh(f"ip -n {name} link add br0 type bridge")
        yield daemon


def acquire(daemon: Daemon) -> None:
    with user(ALICE):
        client = tapster.connect(daemon.socket, netns=str(AT), timeout=10)
    with client:
        client.release(library.acquire(client, Tap(bridge="br0", fin_wait=0)).id)


def test_a_namespace_is_used_if_it_is_at_the_path_itself(daemon: Daemon) -> None:
    AT.touch()
    subprocess.run(["mount", "--bind", "/run/netns/blue", AT], check=True)
    acquire(daemon)
    subprocess.run(["umount", AT], check=True)
    assert "vnet0" not in iproute.links("red")


@pytest.mark.parametrize(
    "kind", ["link", "folder of a link", "fifo", "file", "nothing"]
)
def test_what_is_no_namespace_at_the_path_is_refused(daemon: Daemon, kind: str) -> None:
    if kind == "link":
        AT.symlink_to("/run/netns/red")
    elif kind == "folder of a link":
        AT.parent.rmdir()
        AT.parent.symlink_to("/run/netns")
        shell.sh("ip netns add net")
    elif kind == "fifo":
        os.mkfifo(AT)
    elif kind == "file":
        AT.write_text("x")
    with pytest.raises(TapsterError):
        acquire(daemon)
    with daemon.connect() as root:
        assert root.leases() == []


def test_a_link_that_comes_after_the_look_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.sh("ip netns add red")
    at = tmp_path / "net"
    at.symlink_to("/run/netns/red")
    monkeypatch.setattr(netns, "leads_elsewhere", lambda _: False)
    with parts_of_daemon.parts(tmp_path) as made:
        rule = Rule(users=("1000",), bridges=("br0",), netns=(str(at),))
        made.access.loaded = made.access.loaded._replace(rules=(rule,))
        request = interface.Acquire((interface.nic(Tap()),), netns=str(at))
        with pytest.raises(NotAllowed, match="led elsewhere"):
            made.service.call(
                "Acquire", Call(parts_of_daemon.ALICE._replace(pid=1), -1, request, ())
            )


def test_a_namespace_is_at_a_path_only_itself(tmp_path: Path) -> None:
    for name in ("blue", "red"):
        shell.sh(f"ip netns add {name}")
    cookies = {}
    for name in ("blue", "red"):
        fd = netns.open_netns(f"/run/netns/{name}")
        with netns.inside(fd):
            cookies[name] = netns.cookie()
        os.close(fd)
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to("/run/netns/blue")
    os.mkfifo(fifo)
    assert netns.is_at("/run/netns/blue", cookies["blue"])
    assert not netns.is_at("/run/netns/blue", cookies["red"])
    for path in (link, fifo, tmp_path / "nothing"):
        assert not netns.is_at(str(path), cookies["blue"])
