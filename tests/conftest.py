# SPDX-License-Identifier: Apache-2.0
"""Fixtures that tests of several subjects share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import fake_and_real, library, shell
from lab.fake_and_real import ContractLab
from lab.inheritance import disinherit
from lab.namespaces import namespaces
from lab.strangers import RealStranger
from tapster import Host
from tapster.kernel.port import Namespace
from tapster.testing import Stranger

disinherit()  # before any test module is imported


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the test a network and a mount namespace of its own, with a bridge."""
    marks = {mark.name for mark in request.node.iter_markers()}
    assert marks & {"kernel", "crash", "e2e"}, "mark the test: it needs root"
    with namespaces():
        shell.sh("ip link set lo up")
        shell.sh("ip link add br0 address 02:00:00:00:00:01 type bridge")
        shell.sh("ip link set br0 up mtu 1400")
        yield


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def host(world: None, ledger: Path) -> Iterator[Host]:
    """A Host that reaps only when told to."""
    with Host(ledger, reaper=library.no_reaper) as host:
        yield host


@pytest.fixture(
    params=[
        pytest.param(fake_and_real.fake, id="fake"),
        pytest.param(fake_and_real.real, id="real", marks=pytest.mark.kernel),
    ]
)
def lab(request: pytest.FixtureRequest) -> Iterator[ContractLab]:
    """Run the test on the host in memory, and on the real one."""
    with request.param() as lab:
        yield lab


@pytest.fixture
def namespace(lab: ContractLab) -> Iterator[Namespace]:
    namespace = lab.system.netns(None)
    yield namespace
    namespace.close()


@pytest.fixture
def others(lab: ContractLab) -> Stranger | RealStranger:
    return lab.others()


@pytest.fixture
def lab_host(lab: ContractLab, others: Stranger, ledger: Path) -> Iterator[Host]:
    """A Host on the fake kernel and on the real one, with devices br0 and low."""
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    others.set_by_name("br0", mtu=1400)
    others.add_veth("low", "far")
    with Host(ledger, system=lab.system, reaper=library.no_reaper) as host:
        yield host


@pytest.fixture
def contract_host(lab: ContractLab, others: Stranger, ledger: Path) -> Iterator[Host]:
    """A Host that reaps only when told to, on a host with br0 and low."""
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    others.add_veth("low", "far")
    with Host(ledger, system=lab.system, reaper=library.no_reaper) as host:
        yield host
