# SPDX-License-Identifier: Apache-2.0
"""Namespaces: devices are made inside, names are counted apart, ends are noticed."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster
from lab import iproute, library, shell
from lab.reapers import wait_for
from tapster import (
    Action,
    Host,
    Lease,
    Link,
    Macvtap,
    NoSuchLease,
    NoSuchLink,
    State,
    Tap,
)
from tapster.kernel import all_namespaces, netns
from tapster.operations.look import Look

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def blue(world: None) -> None:
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add br0 type bridge")


def test_a_device_is_made_inside(blue: None, ledger: Path) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as host:
        for spec in (Tap(bridge="br9"), Macvtap(lower="br9")):
            with pytest.raises(NoSuchLink, match="'br9' in network namespace 'blue'"):
                host.acquire(spec)
        lease = library.acquire(host, Tap(bridge="br0"))
    assert lease.netns.path == "/run/netns/blue"
    assert iproute.links("blue")["vnet0"]["master"] == "br0"
    assert "vnet0" not in iproute.links()


def test_a_namespace_that_lost_its_name_is_found_by_its_processes(
    blue: None, ledger: Path
) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as there:
        lease = library.acquire(there, Tap(bridge="br0"))
    inhabitant = subprocess.Popen(
        ["ip", "netns", "exec", "blue", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert inhabitant.stdin
    assert inhabitant.stdout
    inhabitant.stdin.write(b"!")
    inhabitant.stdin.flush()
    assert inhabitant.stdout.read(1) == b"!", "it is inside now"
    shell.sh("ip netns del blue")
    with Host(ledger, reaper=library.no_reaper) as host:
        assert host.recover() == []
        host.release(lease.id)
        inside = ["nsenter", f"--net=/proc/{inhabitant.pid}/ns/net", "ip", "link"]
        assert "master" not in subprocess.check_output(inside, text=True)
        assert host.reap(now=True) == 1
        assert "vnet0" not in subprocess.check_output(inside, text=True)
    inhabitant.communicate()


def test_a_namespace_that_was_entered_is_known_by_its_name(
    blue: None, ledger: Path
) -> None:
    add = f"ip netns exec blue {shell.TAPSTER} add --bridge br0 --ledger {ledger}"
    assert shell.sh(add) == "vnet0\n"
    with Host(ledger, reaper=library.no_reaper) as host:
        (lease,) = host.leases()
        assert lease.netns.path == "/run/netns/blue"
        assert host.recover() == []


def test_a_path_that_leads_nowhere_hinders_no_other_namespace(
    blue: None, ledger: Path
) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as there:
        there.acquire(Tap(bridge="br0")).close()
    shell.sh("umount /run/netns/blue")  # an empty file stays
    with Host(ledger, reaper=library.no_reaper) as host:
        host.acquire(Tap(bridge="br0")).close()
        found: list[Action] = []

        def closes() -> bool:
            found.extend(one.action for one in host.recover())
            return bool(found)

        # A process that looks at all namespaces may be in this one at this moment.
        wait_for(closes, "the namespace ends")
        assert found == [Action.CLOSE]
        assert [lease.name for lease in host.leases()] == ["vnet0"]
        assert iproute.ports() == {"vnet0"}


@pytest.mark.parametrize("name", ["itself", "nowhere", "folder", "fifo", "socket"])
def test_a_name_that_is_no_namespace_hinders_nothing(
    blue: None, ledger: Path, name: str
) -> None:
    odd = Path(netns.NAMED, name)
    if name == "folder":
        odd.mkdir()
    elif name == "fifo":
        os.mkfifo(odd)
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(odd))
    else:
        odd.symlink_to(name if name == "itself" else "/nothing")
    with Host(ledger, reaper=library.no_reaper) as host:
        lease = library.acquire(host, Tap(bridge="br0", fin_wait=60))
        shell.sh(f"ip link del {lease.name}")  # recover looks everywhere
        assert [one.action for one in host.recover()] == [Action.HOLD_NAME]
    with pytest.raises(tapster.TapsterError, match=f"{name}|network namespace"):
        Host(ledger, netns=name)


def test_names_that_cannot_be_listed_hinder_no_acquire(ledger: Path) -> None:
    shell.sh(f"rm -rf {netns.NAMED} && touch {netns.NAMED}")
    with Host(ledger, reaper=library.no_reaper) as host:
        library.acquire(host, Tap(bridge="br0"))
    assert iproute.ports() == {"vnet0"}


def test_another_pid_namespace_cannot_tell_that_a_namespace_is_gone(
    ledger: Path,
) -> None:
    elsewhere = f"unshare -n {shell.TAPSTER} add --ledger {ledger}"
    shell.sh(elsewhere)
    recover = f"unshare -p -f --mount-proc {shell.TAPSTER} recover --ledger {ledger}"
    assert "can only be told from the pid namespace" in shell.refused(recover)
    with Host(ledger, reaper=library.no_reaper) as host:
        assert len(host.leases()) == 1
        assert [one.action for one in host.recover()] == [Action.CLOSE]


def test_another_namespace_of_the_same_name_is_not_it(blue: None, ledger: Path) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as there:
        lease = library.acquire(there, Tap(bridge="br0"))
    shell.sh("ip netns del blue")
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add vnet0 type bridge")
    with Host(ledger, reaper=library.no_reaper) as host:
        host.release(lease.id)
        assert host.reap(now=True) == 1
    assert "vnet0" in iproute.links("blue")


def test_a_device_whose_namespace_ends_while_it_is_opened_again_is_gone(
    blue: None, host: Host, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as there:
        lease = library.acquire(there, Tap(bridge="br0"))
    device = Look.device

    def look(self: Look, lease: Lease) -> Link | None:
        link = device(self, lease)
        shell.sh("ip netns del blue")
        return link

    monkeypatch.setattr(Look, "device", look)
    with pytest.raises(NoSuchLease, match="is gone; run: tapster recover"):
        host.reopen(lease)
    assert [one.action for one in host.recover()] == [Action.CLOSE]


def test_an_unknown_namespace_is_refused(ledger: Path) -> None:
    with pytest.raises(tapster.NoSuchLink, match="'green'"):
        Host(ledger, netns="green")


def test_a_thread_elsewhere_makes_devices_where_the_host_is(
    blue: None, ledger: Path
) -> None:
    from tapster.kernel.libc import CLONE_NEWNET, setns
    from tapster.kernel.netns import open_netns

    host = Host(ledger, reaper=library.no_reaper)
    made = []

    def elsewhere() -> None:
        fd = open_netns("/run/netns/blue")
        setns(fd, CLONE_NEWNET)
        library.close([fd])
        made.append(host.acquire(Tap(bridge="br0")))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    made[0].close()
    assert iproute.ports() == {"vnet0"}
    host.close()


class Looks:
    """Counts how namespaces are looked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.listed = self.searched = 0
        open_netns, named = netns.open_netns, netns.named
        everywhere = all_namespaces.everywhere

        def open_(path: str) -> int:
            self.opened.append(path)
            return open_netns(path)

        def list_() -> list[str]:
            self.listed += 1
            return named()

        def search() -> Iterator[int]:
            self.searched += 1
            return everywhere()

        monkeypatch.setattr(netns, "open_netns", open_)
        monkeypatch.setattr(netns, "named", list_)
        monkeypatch.setattr(all_namespaces, "everywhere", search)


def test_a_recover_opens_each_namespace_once_and_looks_once_for_those_that_ended(
    world: None, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"space{number}" for number in range(12)]
    for name in names:
        shell.sh(f"ip netns add {name}")
        with Host(ledger, netns=name, reaper=library.no_reaper) as there:
            library.acquire(there, Tap())
    with Host(ledger, reaper=library.no_reaper) as host:
        looks = Looks(monkeypatch)
        assert host.recover() == []
        paths = [path for path in looks.opened if path != netns.OWN]
        assert sorted(paths) == sorted(f"/run/netns/{name}" for name in names)
        assert looks.listed == looks.searched == 0
        for name in names[:6]:
            shell.sh(f"ip netns del {name}")
        assert [action for _, action in host.recover()] == [Action.CLOSE] * 6
        assert looks.listed == looks.searched == 1


def test_a_process_that_ends_while_it_is_looked_at_hinders_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers EACCES then, as for a process that it may not show."""
    lease = library.acquire(host, Tap(bridge="br0"))
    shell.sh(f"ip link del {lease.name}")  # recover looks everywhere
    process = keep("unshare", "--net", "sh", "-c", "exec cat")
    path = f"/proc/{process.pid}/ns/net"
    opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    open_netns = netns.open_netns

    def end_it(wanted: str) -> int:
        if wanted != path:
            return open_netns(wanted)
        process.communicate()
        os.readlink("", dir_fd=opened)
        raise AssertionError("the process is there")

    monkeypatch.setattr(netns, "open_netns", end_it)
    assert [repair.action for repair in host.recover()] == [Action.HOLD_NAME]
    assert process.returncode == 0, "it was looked at"
    library.close([opened])


def test_a_lease_of_an_earlier_boot_is_closed(host: Host, ledger: Path) -> None:
    lease = library.acquire(host, Tap(bridge="br0"))
    rows = host.operations.context.ledger.file.connection
    rows.execute("UPDATE netns SET boot = 'earlier'")
    (repairs,) = host.recover()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.CLOSE)
    assert "vnet0" in iproute.links(), "whatever has its name and ifindex now"


def test_leases_of_an_earlier_boot_are_closed_before_other_work(host: Host) -> None:
    lease = library.acquire(host, Tap(name="web"))
    host.release(lease.id)
    rows = host.operations.context.ledger.file.connection
    rows.execute("UPDATE netns SET boot = 'earlier'")
    shell.sh("ip link del web")
    assert [one.action for one in host.settle()] == [Action.CLOSE]
    again = library.acquire(host, Tap(name="web"))
    assert host.find("web") == again


def keep(*command: str) -> "subprocess.Popen[bytes]":
    """Start a command that ends with `cat`; return it when that runs."""
    pipe = subprocess.PIPE
    keeper = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
    assert keeper.stdin
    assert keeper.stdout
    keeper.stdin.write(b"!")
    assert keeper.stdout.read(1) == b"!"
    return keeper


KEEPERS = {
    "a descriptor": ["sh", "-c", "exec 9</run/netns/blue; exec cat"],
    "a mount": [
        *("unshare", "--mount", "--propagation=private", "sh", "-c"),
        "mkdir '/run/a b'; touch '/run/a b/c'; "
        "mount --bind /run/netns/blue '/run/a b/c'; umount /run/netns/blue; exec cat",
    ],
}


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_namespace_that_a_process_keeps_is_found(
    blue: None, ledger: Path, kind: str
) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as there:
        lease = library.acquire(there, Tap(bridge="br0"))
    keeper = keep(*KEEPERS[kind])
    shell.sh("ip netns del blue")
    with Host(ledger, reaper=library.no_reaper) as host:
        assert host.recover() == []
        assert host.find(lease.id).state is State.ACTIVE
        assert host.device(lease) is not None
        keeper.communicate()
        assert [one.action for one in host.recover()] == [Action.CLOSE]


def test_a_manager_without_the_names_finds_the_namespace(
    blue: None, ledger: Path
) -> None:
    with Host(ledger, netns="blue", reaper=library.no_reaper) as there:
        lease = library.acquire(there, Tap(bridge="br0"))
    nameless = ["unshare", "--mount", "--propagation=private", "sh", "-c"]
    recover = f"mount -t tmpfs t /run; {shell.TAPSTER} recover --ledger {ledger}"
    keeper = keep("cat")  # it sees the names; this test may be the only other process
    subprocess.run([*nameless, recover], check=True)
    keeper.communicate()
    with Host(ledger, reaper=library.no_reaper) as host:
        assert host.find(lease.id).state is State.ACTIVE
