# SPDX-License-Identifier: Apache-2.0
"""I5 with backends: the command is killed at its n-th system call, for every n."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import shell
from lab.crashes import Crashes
from tapster import Rate, Tap

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("world"),
]

OPTIONS = "--bridge br0 --address 192.0.2.5 --outbound 1000:2000"
SPEC = Tap(
    bridge="br0", filter=True, addresses=("192.0.2.5",), outbound=Rate(1000, 2000)
)


@pytest.fixture
def crashes(ledger: Path) -> Iterator[Crashes]:
    crashes = Crashes(ledger)
    with crashes.host:
        yield crashes


def see(crashes: Crashes, where: str) -> None:
    """All is as it should be after recover, and after the end of all leases."""
    crashes.repair(where)
    for lease in crashes.host.leases(all=False):
        assert crashes.host.differences(lease) == {}, where
    assert crashes.host.operations.recover.leftovers() == [], where
    crashes.clear()
    shown = shell.sh("nft list ruleset")
    assert "tapster:" not in shown, where


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (OPTIONS, {"sendmsg": 1, "sendto": 1}),  # libnftables changes with sendmsg
        ("--bridge br0 --inbound 1000:2000", {"sendto": 1}),
    ],
)
def test_add_killed_anywhere_I5(
    crashes: Crashes, options: str, calls: dict[str, int]
) -> None:
    crashes.calls = calls
    for where in crashes.killed("add", *options.split()):
        see(crashes, where)
    assert crashes.kills > 9


@pytest.mark.parametrize("verb", ["rm", "recover"])
def test_rm_and_recover_killed_anywhere_I5(crashes: Crashes, verb: str) -> None:
    crashes.calls = {"sendmsg": 1, "sendto": 3}

    def prepare() -> list[str]:
        name = crashes.acquire(SPEC).name
        if verb == "rm":
            return [verb, name]
        shell.sh("nft flush ruleset")
        return [verb]

    arguments = prepare()
    for where in crashes.killed(*arguments):
        see(crashes, where)
        assert prepare() == arguments, where
    assert crashes.kills > 5
