# SPDX-License-Identifier: Apache-2.0
"""nftables behind the port: all or nothing, by number, in the right namespace."""

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

import tapster
from lab import iproute, shell
from tapster.kernel.linux import LinuxNamespace, LinuxSystem

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def namespace() -> Iterator[LinuxNamespace]:
    namespace = LinuxSystem().netns(None)
    namespace.nft("add table bridge t; add set bridge t ports { typeof iif; }")
    yield namespace
    namespace.close()


def elements(namespace: LinuxNamespace) -> list[str]:
    (found,) = (
        one["set"] for one in namespace.nft_list("set bridge t ports") if "set" in one
    )
    return sorted(found.get("elem", []))


def test_nft_shows_what_the_library_did(namespace: LinuxNamespace) -> None:
    namespace.nft("add element bridge t ports { 7, 1000000000 }")
    assert elements(namespace) == ["1000000000", "7"]
    shown = json.loads(shell.sh("nft -j list set bridge t ports"))["nftables"]
    assert sorted(shown[1]["set"]["elem"]) == ["1000000000", "7"]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("delete element bridge t ports { 8 }", "nftables: .*No such file"),
        ("add element bridge t nosuch { 8 }", "nftables: No such file"),
        ("hokum", "nftables: syntax error"),
    ],
)
def test_commands_are_done_all_or_none(
    namespace: LinuxNamespace, second: str, said: str
) -> None:
    with pytest.raises(tapster.HostError, match=said):
        namespace.nft(f"add element bridge t ports {{ 7 }}\n{second}")
    assert elements(namespace) == []


def test_a_name_is_no_device_and_a_number_no_name(namespace: LinuxNamespace) -> None:
    shell.sh("ip link add 7 type veth peer name other")
    index = iproute.links()["7"]["ifindex"]
    namespace.nft(f"add element bridge t ports {{ 7, {index} }}")
    assert elements(namespace) == sorted(["7", str(index)])
    shown = shell.sh("nft -j list set bridge t ports")
    assert json.loads(shown)["nftables"][1]["set"]["elem"].count("7") == 2
    with pytest.raises(tapster.HostError, match="Interface does not exist"):
        namespace.nft("add element bridge t ports { br0 }")


def test_the_library_works_in_the_namespace_and_nowhere_else(
    namespace: LinuxNamespace,
) -> None:
    shell.sh("ip netns add blue")
    blue = LinuxSystem().netns("blue")
    blue.nft("add table bridge t; add set bridge t ports { typeof iif; }")
    blue.nft("add element bridge t ports { 9 }")
    assert (elements(blue), elements(namespace)) == (["9"], [])
    assert "elements = { 9 }" in shell.sh("ip netns exec blue nft list ruleset")
    blue.close()


def open_fds() -> list[str]:
    """The descriptors that a process has which this one executes."""
    return subprocess.run(
        ["ls", "/proc/self/fd"],
        close_fds=False,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()


def test_its_descriptors_are_not_inherited_and_are_closed_with_it() -> None:
    before, inherited = os.listdir("/proc/self/fd"), open_fds()
    namespace = LinuxSystem().netns(None)
    namespace.nft("add table bridge t")
    namespace.nft_list("chains")
    assert len(os.listdir("/proc/self/fd")) > len(before)
    assert open_fds() == inherited
    namespace.close()
    assert os.listdir("/proc/self/fd") == before
