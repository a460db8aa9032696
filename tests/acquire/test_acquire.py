# SPDX-License-Identifier: Apache-2.0
"""What acquire promises, on the real kernel."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

import tapster
from lab import iproute, library, shell, strangers
from tapster import Host, Naming, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


def test_no_ipv6_link_local_address_appears_on_a_port(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    assert "inet6" not in shell.sh("ip -6 addr show dev vnet0")
    lease.close()


def test_an_mtu_below_what_ipv6_needs_is_no_obstacle(host: Host) -> None:
    library.acquire(host, Tap(bridge="br0", mtu=576))
    assert iproute.links()["vnet0"]["mtu"] == 576


def test_a_bridge_with_a_port_of_its_own_keeps_its_mac(host: Host) -> None:
    shell.sh("ip link add uplink type veth peer name other")
    shell.sh("ip link set uplink master br0")
    before = iproute.links()["br0"]["address"]
    for _ in range(3):
        host.acquire(Tap(bridge="br0")).close()
    assert iproute.links()["br0"]["address"] == before


def test_an_isolated_port_is_isolated_before_it_is_up(host: Host) -> None:
    library.acquire(host, Tap(bridge="br0", isolated=True))
    assert iproute.links()["vnet0"]["linkinfo"]["info_slave_data"]["isolated"] is True


def test_every_queue_of_a_tap_is_a_descriptor(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0", queues=4))
    assert len(lease.fds) == 4
    data = iproute.links()["vnet0"]["linkinfo"]["info_data"]
    assert data["numqueues"] == 4
    assert not any(os.get_inheritable(fd) for fd in lease.fds)
    lease.close()


def test_a_user_and_a_group_may_open_the_tap_by_name(host: Host) -> None:
    host.acquire(Tap(uid=1234, gid=5678)).close()
    data = iproute.links()["vnet0"]["linkinfo"]["info_data"]
    assert (data["user"], data["group"]) == (1234, 5678)


def test_many_nics_are_acquired_together_or_not_at_all(host: Host) -> None:
    before = set(iproute.links())
    with pytest.raises(tapster.NoSuchLink, match="no bridge 'br9'"):
        host.acquire_all([Tap(bridge="br0"), Tap(bridge="br9")])
    fd = strangers.foreign_tap("taken")
    with pytest.raises(tapster.NameTaken, match="taken"):
        host.acquire_all([Tap(bridge="br0"), Tap(name="taken")])
    os.close(fd)
    assert set(iproute.links()) == before
    assert host.leases() == []
    leases = host.acquire_all([Tap(bridge="br0"), Tap(bridge="br0", queues=2)])
    assert [lease.name for lease in leases] == ["vnet0", "vnet1"]
    assert [len(lease.fds) for lease in leases] == [1, 2]
    for lease in leases:
        lease.close()


def test_holding_ends_each_lease_even_if_another_cannot_be_closed(host: Host) -> None:
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(tapster.RequestError, match="closed already"))
        holding = host.holding(Tap(bridge="br0"), Tap(bridge="br0"))
        fd, other = (opened.fds[0] for opened in stack.enter_context(holding))
        os.close(other)
    assert iproute.ports() == set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(fd)


def test_holding_releases_and_closes(host: Host) -> None:
    with host.holding(Tap(bridge="br0")) as (opened,):
        assert iproute.ports() == {opened.name}
        (fd,) = opened.fds
    assert iproute.ports() == set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(fd)


@pytest.mark.parametrize(
    ("bridge", "error"),
    [("br9", "there is no bridge 'br9'"), ("lo", "'lo' is not a bridge")],
)
def test_a_bridge_that_is_none_is_refused_before_anything_is_made(
    host: Host, bridge: str, error: str
) -> None:
    with pytest.raises(tapster.NoSuchLink, match=error):
        host.acquire(Tap(bridge=bridge))
    assert host.who("vnet0") == []


@pytest.mark.parametrize("name", ["verylongbridge0X", "br0:1", "br0 ", ""])
def test_the_name_of_a_bridge_is_not_cut(host: Host, name: str) -> None:
    shell.sh("ip link add verylongbridge0 type bridge")
    with pytest.raises((tapster.BadName, tapster.NoSuchLink)):
        host.acquire(Tap(bridge=name))
    assert host.leases() == []


def test_policies_may_be_given_as_plain_text(host: Host) -> None:
    names = []
    for _ in range(2):
        lease = host.acquire(Tap(naming="next", fin_wait=0))  # type: ignore[arg-type]
        lease.close()
        host.release(lease.id)
        names.append(lease.name)
    assert names == ["vnet0", "vnet1"]
    with pytest.raises(tapster.RequestError, match="naming must be one of"):
        host.acquire(Tap(naming="highest"))  # type: ignore[arg-type]


def test_a_device_that_cannot_be_configured_never_comes_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapster.kernel.linux import LinuxNamespace
    from tapster.kernel.port import LinkChange

    seen = []
    delete = LinuxNamespace.delete_links

    def look_first(namespace: LinuxNamespace, ifindexes: list[int]) -> set[int]:
        seen.append(iproute.links()["vnet0"])
        return delete(namespace, ifindexes)

    monkeypatch.setattr(LinuxNamespace, "delete_links", look_first)
    real = LinuxNamespace.set_links

    def spoil(namespace: LinuxNamespace, changes: list[LinkChange]) -> None:
        real(namespace, [changes[0]._replace(mtu=1 << 30), *changes[1:]])

    monkeypatch.setattr(LinuxNamespace, "set_links", spoil)
    with pytest.raises(tapster.KernelError, match="mtu"):
        host.acquire(Tap(bridge="br0"))
    assert "UP" not in seen[0]["flags"]
    assert "master" not in seen[0]
    assert host.leases() == []


def test_a_full_bridge_is_refused_and_nothing_stays_I6(
    host: Host, tmp_path: Path
) -> None:
    batch = tmp_path / "batch"
    batch.write_text(
        "".join(
            f"tuntap add p{n} mode tap\nlink set p{n} master br0\n" for n in range(1023)
        )
    )
    shell.sh(f"ip -batch {batch}")
    with pytest.raises(tapster.BridgeFull, match="'br0' is full"):
        host.acquire(Tap(bridge="br0"))
    assert host.leases() == []
    assert "vnet0" not in iproute.links()
    shell.sh("ip link set p0 nomaster")
    host.acquire(Tap(bridge="br0")).close()


def test_two_macs_made_up_differ_and_are_local(host: Host) -> None:
    leases = [host.acquire(Tap()) for _ in range(8)]
    assert len({lease.mac for lease in leases}) == 8
    assert all(lease.mac.startswith("52:54:00:") for lease in leases)
    for lease in leases:
        lease.close()


def test_next_goes_on_where_it_was_and_lowest_takes_the_hole(host: Host) -> None:
    names = []
    for naming in (Naming.NEXT, Naming.NEXT, Naming.LOWEST):
        lease = host.acquire(Tap(naming=naming, fin_wait=0))
        names.append(lease.name)
        lease.close()
        host.release(lease.id)
    assert names == ["vnet0", "vnet1", "vnet0"]


def test_without_the_tun_device_the_error_says_so(host: Host) -> None:
    shell.sh("mount -t tmpfs tmpfs /dev")
    with pytest.raises(tapster.HostError, match="modprobe tun"):
        host.acquire(Tap(bridge="br0"))
    shell.sh("umount /dev")
    assert host.leases() == []
