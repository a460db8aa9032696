# SPDX-License-Identifier: Apache-2.0
"""Each way does what its row says, judged by iproute2."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.floor import ALIAS, compile_floor
from bench.measurements.startstop import make
from bench.ways import Way
from bench.ways.cni import Cni
from bench.ways.floor import Recording, Releasing, ReleasingWithoutIpv6
from bench.ways.tapster import Library
from bench.world import BenchWorld, world
from lab import iproute

pytestmark = pytest.mark.kernel

TITLES = (
    "floor",
    "floor, no IPv6",
    "floor, recorded",
    "Tapster",
    "ip -batch",
    "ip, by hand",
    "pyroute2",
    "qemu-bridge-helper",
    "CNI bridge",
    "libvirt",
    "floor, deleting",
)
OPEN = ("qemu-bridge-helper", "libvirt")
"""These keep the tap open, and it goes when they close it."""
NO_DEVICE = "libvirt, nothing on the host"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_floor(tmp_path_factory.mktemp("floor"))


# One for all tests: libvirt's guest takes some seconds to start.
@pytest.fixture(scope="module")
def place(program: Path) -> Iterator[BenchWorld]:
    with world(program) as place:
        yield place


@pytest.fixture(scope="module")
def ways(place: BenchWorld) -> Iterator[dict[str, Way]]:
    with ExitStack() as stack:
        yield {way.title: way for way in make(place, stack, ports=2)}


def test_every_way_is_tested_here(ways: dict[str, Way]) -> None:
    assert set(ways) == {*TITLES, NO_DEVICE}


@pytest.mark.parametrize("title", TITLES)
def test_a_way_starts_and_stops_a_device(ways: dict[str, Way], title: str) -> None:
    before, ports = iproute.links(), iproute.ports()
    taken = ways[title].start()
    (name,) = iproute.ports() - ports
    made = iproute.links()[name]
    assert taken > 0
    assert "UP" in made["flags"]
    _check_what_else_it_does(title, made)
    assert ways[title].stop() > 0
    assert iproute.ports() == ports
    ways[title].tidy()
    assert iproute.links().keys() == before.keys()


def test_libvirts_share_of_the_guest_has_nothing_on_the_host(
    ways: dict[str, Way],
) -> None:
    before = iproute.links().keys()
    assert ways[NO_DEVICE].start() > 0
    assert iproute.links().keys() == before
    assert ways[NO_DEVICE].stop() > 0


def _check_what_else_it_does(title: str, made: dict[str, Any]) -> None:
    """What the notes say that a way does, and does not."""
    info = made["linkinfo"]
    if title == Cni.title:
        assert info["info_kind"] == "veth"
        return
    assert info["info_kind"] == "tun"
    assert info["info_data"]["persist"] == (title not in OPEN)
    if title in OPEN:
        assert "ifalias" not in made
        return
    if title == Library.title:
        assert made["ifalias"].startswith("tapster:")
        assert len(made["ifalias"]) == len(ALIAS)
    else:
        assert made["ifalias"] == ALIAS
    assert made["address"].startswith("fe:")
    quiet = title in (Library.title, ReleasingWithoutIpv6.title, Recording.title)
    assert (made["inet6_addr_gen_mode"] == "none") == quiet


@pytest.mark.parametrize("title", ["floor", "floor, recorded", "Tapster"])
def test_a_released_device_is_there_until_it_is_reaped(
    ways: dict[str, Way], title: str
) -> None:
    way = ways[title]
    assert isinstance(way, Releasing | Library)
    before = iproute.links()
    way.start()
    way.stop()
    (left,) = iproute.links().keys() - before.keys()
    assert "UP" not in iproute.links()[left]["flags"]
    assert way.reap() > 0
    assert iproute.links().keys() == before.keys()


def test_a_bridge_has_the_ports_that_were_asked_for(place: BenchWorld) -> None:
    place.bridge("br7", ports=5)
    assert len(iproute.ports("br7")) == 5


def test_the_floor_says_when_the_kernel_refuses(place: BenchWorld) -> None:
    place.floor.make("tap7")
    with pytest.raises(RuntimeError, match="Device or resource busy"):
        place.floor.make("tap7")
