# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures of pytest for tests that start hosts: `-p lab.host.plugin`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import image, product, snapshot
from lab.host.debian import DebianHost
from lab.host.image import Image


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab")
    group.addoption(
        "--suite", choices=image.CODENAMES, help="the hosts' Debian release"
    )
    group.addoption(
        "--times", type=int, default=1, help="power cuts and reboots a test"
    )


@pytest.fixture(scope="session")
def debian(request: pytest.FixtureRequest) -> Image:
    """The image of the Debian release that the tests are for."""
    return image.build(request.config.getoption("--suite"))


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How often a test repeats what may or may not go wrong."""
    times: int = request.config.getoption("--times")
    return times


@pytest.fixture(scope="session")
def installed(debian: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a host that runs and has Tapster installed, for `resumed`."""
    folder = tmp_path_factory.mktemp("installed")
    with snapshot.resumed(debian) as host:
        product.install(host)
        snapshot.keep(host, folder)
    return folder


@pytest.fixture
def debian_host(debian: Image, installed: Path) -> Iterator[DebianHost]:
    """A running host with Tapster installed."""
    with snapshot.resumed(debian, folder=installed) as host:
        yield host
