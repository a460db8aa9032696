# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one network: a VM that moves is found where it is."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.host import snapshot
from lab.host.cable import CableEnd, cable
from lab.host.debian import DebianHost
from lab.host.image import Image
from tests.host.outside.ground import add_bridge, wait_output

MAC = "52:54:00:12:34:56"
SPEAK = """
import os, sys
header = bytes(10)  # of virtio, in front of each frame
mac = bytes.fromhex(sys.argv[2].replace(":", ""))
os.write(int(sys.argv[1]), header + b"\\xff" * 6 + mac + b"\\x88\\xb5" + bytes(46))
"""


def _prepare(host: DebianHost, end: CableEnd) -> None:
    add_bridge(host)
    host.plug_in(end)
    wait_output(host, "ls /sys/class/net", "^en")
    host.sh("ip link set $(basename /sys/class/net/en*) master br0 up")
    host.write("/srv/speak.py", SPEAK)


@pytest.fixture
def hosts(
    debian: Image, installed: Path, tmp_path: Path
) -> Iterator[tuple[DebianHost, DebianHost]]:
    """Two hosts with a bridge each, whose network cards a cable joins."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        left = stack.enter_context(snapshot.resumed(debian, folder=installed))
        right = stack.enter_context(snapshot.resumed(debian, folder=installed))
        list(pool.map(_prepare, (left, right), cable(tmp_path)))
        yield left, right


def test_a_vm_that_moves_is_found_on_its_new_host(
    hosts: tuple[DebianHost, DebianHost],
) -> None:
    left, right = hosts
    vm = f"tapster run --bridge br0 --mac {MAC} -- python3 /srv/speak.py {{fd}} {{mac}}"
    for here, there in ((left, right), (right, left)):
        here.sh(vm)
        behind_the_cable = f"^{MAC} dev en"
        wait_output(there, "bridge fdb show br br0", behind_the_cable)
