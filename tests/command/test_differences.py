# SPDX-License-Identifier: Apache-2.0
"""Whatever is set at a device is compared: ls, show, doctor and recover report it."""

import fcntl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, shell

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
TUNSETOWNER, TUNSETGROUP = 0x400454CC, 0x400454CE
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
def opened(name: str, flags: int = 0) -> Iterator[int]:
    """A descriptor of a tap, as its VMM has."""
    flags |= IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
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
        ("ip link set vnet0 addrgenmode eui64", "IPv6 of the host is on"),
        ("ip link set vnet0 nomaster", "bridge is None"),
        ("bridge link set dev vnet0 isolated on", "isolated is on"),
        ("sysctl -qw net.ipv4.conf.vnet0.rp_filter=0", "IPv4 of the host is on"),
    ],
)
def test_what_recover_restores(change: str, said: str) -> None:
    tapster("add", "--bridge", "br0", "--owner", "web")
    before = iproute.links()["vnet0"]
    assert not marked()
    shell.sh(change)
    assert marked()
    for words in (("show", "--owner", "web"), ("doctor",)):
        assert said in tapster(*words, status=int(words == ("doctor",)))
    assert tapster("recover").startswith("rewire vnet0")
    assert not marked()
    after = iproute.links()["vnet0"]
    for field in ("address", "ifalias", "mtu", "master", "inet6_addr_gen_mode"):
        assert after[field] == before[field]
    assert tapster("recover") == ""


def test_a_device_that_was_renamed_is_reported_with_the_remedy() -> None:
    tapster("add", "--bridge", "br0", "--owner", "web")
    shell.sh("ip link set vnet0 down")
    shell.sh("ip link set vnet0 name other")
    shell.sh("ip link set other up")
    assert marked()
    assert "it is called 'other', not 'vnet0'" in tapster("show", "--owner", "web")
    _, *remedies = tapster("doctor", status=1).splitlines()
    assert "stays as it is" in tapster("recover")
    assert "other" in iproute.links()
    shell.sh("ip link set other down")
    shell.sh(remedies[0].strip().replace("'", ""))
    shell.sh("ip link set vnet0 up")
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
        said_by_recover = tapster("recover")
        assert said in said_by_recover
        assert "rewire" not in said_by_recover
        fcntl.ioctl(fd, TUNSETPERSIST, 1)


def test_queues_that_were_not_asked_for_are_reported() -> None:
    """The kernel spreads flows over all of them: those that nobody reads are lost."""
    tapster("add", "--queues", "2", "--owner", "web")
    with opened("vnet0", IFF_MULTI_QUEUE), opened("vnet0", IFF_MULTI_QUEUE):
        assert not marked()
        with opened("vnet0", IFF_MULTI_QUEUE):
            assert marked()
            assert "3 open queues, not 2" in tapster("show", "--owner", "web")
        assert not marked()
