# SPDX-License-Identifier: Apache-2.0
"""Whatever is set at a device is compared: ls, show, doctor and recover report it."""

import fcntl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lab import iproute, shell
from lab.library import no_reaper
from lab.namespaces import inside
from tapster import Host, Lease, NoSuchLease, Tap
from tapster.cli import main

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
TUNSETOWNER, TUNSETGROUP = 0x400454CC, 0x400454CE
TUNSETIFINDEX = 0x400454DA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 2, 0x1000, 0x4000, 0x100


@pytest.fixture(autouse=True)
def environment(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_LEDGER", str(ledger))


def tapster(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [shell.TAPSTER, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    return done.stdout


@contextmanager
def opened(name: str, flags: int = 0, ifindex: int = 0) -> Iterator[int]:
    """A descriptor of a tap, as its VMM has."""
    flags |= IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        if ifindex:
            fcntl.ioctl(tun, TUNSETIFINDEX, struct.pack("I", ifindex))
        request = struct.pack("16sH22x", name.encode(), flags)
        fcntl.ioctl(tun, TUNSETIFF, request)
        yield tun.fileno()


def marked() -> bool:
    """Whether ls marks a lease, and the other verbs agree."""
    differs = "differs" in tapster("ls")
    assert differs == ("differs" in tapster("show", "--owner", "web"))
    assert differs == ("not as requested" in tapster("doctor", status=int(differs)))
    return differs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ip link set vnet0 address 02:00:00:00:00:01", "MAC of the host's side is 02"),
        ("ip link set vnet0 alias mine", "alias is mine, not tapster:"),
        ("ip link set vnet0 mtu 1300", "mtu is 1300"),
        ("ip link set vnet0 down", "up is off"),
        (
            "ip link set vnet0 addrgenmode eui64;"
            "sysctl -qw net.ipv6.conf.vnet0.disable_ipv6=0",
            "IPv6 of the host is on",
        ),
        ("ip link set vnet0 nomaster", "bridge is None"),
        ("bridge link set dev vnet0 isolated on", "isolated is on"),
        ("sysctl -qw net.ipv4.conf.vnet0.rp_filter=0", "IPv4 of the host is on"),
    ],
)
def test_what_recover_restores(change: str, said: str) -> None:
    tapster("add", "--bridge", "br0", "--owner", "web")
    before = iproute.links()["vnet0"]
    assert not marked()
    for command in change.split(";"):
        shell.sh(command)
    assert marked()
    for words in (("show", "--owner", "web"), ("doctor",)):
        assert said in tapster(*words, status=int(words == ("doctor",)))
    assert tapster("recover").startswith("rewire vnet0")
    assert not marked()
    after = iproute.links()["vnet0"]
    for field in ("address", "ifalias", "mtu", "master", "inet6_addr_gen_mode"):
        assert after[field] == before[field]
    assert tapster("recover") == ""


def rename(old: str, new: str) -> None:
    """Rename a device, as every kernel allows."""
    shell.sh(f"ip link set {old} down")
    shell.sh(f"ip link set {old} name {new}")


def test_a_renamed_device_is_reported_and_gets_its_name_back() -> None:
    tapster("add", "--bridge", "br0", "--owner", "web")
    before = iproute.links()["vnet0"]
    rename("vnet0", "other")
    assert marked()
    assert "it is called 'other', not 'vnet0'" in tapster("show", "--owner", "web")
    assert "ip link set dev 'other' down" in tapster("doctor", status=1)
    assert tapster("recover").startswith("rewire vnet0")
    after = iproute.links()["vnet0"]
    for field in ("ifindex", "address", "ifalias", "master"):
        assert after[field] == before[field]
    assert "UP" in after["flags"]
    assert not marked()
    assert tapster("recover") == ""


def test_a_name_that_another_device_has_by_now_is_left_to_it() -> None:
    tapster("add", "--bridge", "br0", "--owner", "web")
    rename("vnet0", "other")
    shell.sh("ip link set other up")
    shell.sh("ip link add vnet0 type bridge")
    stranger = iproute.links()["vnet0"]
    said = tapster("recover")
    assert "stays as it is" in said
    assert "rewire" not in said
    assert iproute.links()["vnet0"] == stranger
    assert iproute.links()["other"]["master"] == "br0"
    shell.sh("ip link del vnet0")
    tapster("recover")
    if "other" in iproute.links():  # before Linux 6.2, while it is up
        shell.sh("ip link set other down")
        tapster("recover")
    assert not marked()


@pytest.mark.parametrize(
    ("call", "value", "said"),
    [
        (TUNSETOWNER, 61001, "the user id that may open it is 61001, not 0"),
        (TUNSETGROUP, 61001, "the group id that may open it is 61001, not None"),
        (TUNSETPERSIST, 0, "it is not persistent"),
    ],
)
def test_what_a_vmm_can_change_through_its_descriptor_is_reported(
    call: int, value: Any, said: str
) -> None:
    """None of these calls needs a privilege."""
    tapster("add", "--bridge", "br0", "--owner", "web")
    with opened("vnet0") as fd:
        assert not marked()
        fcntl.ioctl(fd, call, value)
        assert marked()
        assert said in tapster("show", "--owner", "web")
        if said_again := "not None" in said:  # the kernel cannot take a group away
            assert said in tapster("recover")
        else:
            assert tapster("recover").startswith("rewire vnet0")
        assert marked() == said_again
        assert "rewire" not in tapster("recover")


def test_the_owner_of_a_tap_that_no_process_has_open_stays() -> None:
    """To open it would keep a VMM that starts now from opening it."""
    tapster("add", "--bridge", "br0", "--owner", "web")
    with opened("vnet0") as fd:
        fcntl.ioctl(fd, TUNSETOWNER, 61001)
    said = tapster("recover")
    assert "stays as it is: the user id that may open it is 61001, not 0" in said
    assert iproute.links()["vnet0"]["linkinfo"]["info_data"]["user"] == 61001


@pytest.mark.parametrize("queues", [1, 2])
def test_only_the_tap_of_the_lease_gets_its_owner_back(queues: int) -> None:
    """Beside it are another tap, and one of the same index and name elsewhere."""
    flags = IFF_MULTI_QUEUE if queues > 1 else 0
    tapster("add", "--bridge", "br0", "--owner", "web", "--queues", str(queues))
    ifindex = iproute.links()["vnet0"]["ifindex"]
    shell.sh("ip netns add pod")
    with ExitStack() as open_taps:
        with inside("/run/netns/pod"):
            twin = open_taps.enter_context(opened("vnet0", ifindex=ifindex))
        other = open_taps.enter_context(opened("other"))
        ours = open_taps.enter_context(opened("vnet0", flags))
        for fd in (twin, other, ours):
            fcntl.ioctl(fd, TUNSETOWNER, 61001)
        tapster("recover")
        assert iproute.links("pod")["vnet0"]["ifindex"] == ifindex
        owners = [
            iproute.links(netns)[name]["linkinfo"]["info_data"].get("user")
            for netns, name in ((None, "vnet0"), (None, "other"), ("pod", "vnet0"))
        ]
        assert owners in ([0, 61001, 61001], ["root", 61001, 61001])


def test_queues_that_were_not_asked_for_are_reported() -> None:
    """The kernel spreads flows over all of them: those that nobody reads are lost."""
    tapster("add", "--queues", "2", "--owner", "web")
    with opened("vnet0", IFF_MULTI_QUEUE), opened("vnet0", IFF_MULTI_QUEUE):
        assert not marked()
        with opened("vnet0", IFF_MULTI_QUEUE):
            assert marked()
            assert "3 open queues, not 2" in tapster("show", "--owner", "web")
        assert not marked()


@pytest.mark.parametrize("verb", [["recover"], ["show", "--owner", "web"]])
def test_a_lease_that_ends_while_it_is_looked_at_is_no_error(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tapster("add", "--bridge", "br0", "--owner", "web")
    rename("vnet0", "other")
    shell.sh("ip link add vnet0 type bridge")  # so recover has something to report

    def ended(_: Host, lease: Lease) -> NoReturn:
        raise NoSuchLease(f"no lease has the id {lease.id!r}")

    monkeypatch.setattr(Host, "differences", ended)
    assert main(verb) == 0
    assert capsys.readouterr().err == ""


def test_no_name_that_somebody_chose_controls_the_terminal(ledger: Path) -> None:
    """The user of a network namespace may rename a device in it as it likes."""
    escape = "\x1b[31m\x07"
    with Host(ledger, reaper=no_reaper) as host, host.acquire(Tap(bridge="br0")):
        subprocess.run(["ip", "netns", "add", f"a{escape}"], check=True)
        subprocess.run(
            ["ip", "link", "add", f"b{escape}", "type", "bridge"], check=True
        )
        alias = ["alias", "tapster:0123456789abcdef:0123456789abcdef"]
        subprocess.run(["ip", "link", "set", f"b{escape}", *alias], check=True)
        shell.sh("ip link set vnet0 down")
        subprocess.run(["ip", "link", "set", "vnet0", "name", f"v{escape}"], check=True)
        with Host(ledger, netns=f"a{escape}", reaper=no_reaper) as there:
            there.acquire(Tap(name="t0")).close()
        for words, shown, status in (
            (("ls",), r"a\x1b[31m\x07", 0),
            (("show", "vnet0"), r"v\x1b[31m\x07", 0),
            (("doctor",), r"b\x1b[31m\x07", 1),
            (("who",), r"a\x1b[31m\x07", 0),
        ):
            output = tapster(*words, status=status)
            assert shown in output
            assert output.replace("\n", "").isprintable()
