# SPDX-License-Identifier: Apache-2.0
"""Each test here has the whole host, and leaves it without devices of Tapster's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.inside import world

LAB = Path("/etc/tapster-lab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = "changes a whole Debian host: make host-test"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            if not LAB.exists():
                item.add_marker(pytest.mark.skip(reason=needs))


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[str]:
    """A bridge with a MAC of its own; it goes, and its ports with it."""
    world.sh("ip link add br0 address 02:00:00:00:00:01 type bridge vlan_filtering 1")
    world.sh("ip link set br0 up")
    yield "br0"
    ends = tmp_path / "ends"
    ends.write_text("\n".join(f"link del {name}" for name in (*world.taps(), "br0")))
    world.run(f"ip -force -batch {ends}")  # a reaper may be faster


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger for commands that root types without the daemon."""
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("TAPSTER_LEDGER", str(path))
    return path


@pytest.fixture(scope="session")
def ann() -> None:
    """A user who may use VMs."""
    world.sh("useradd --groups kvm ann")


@pytest.fixture
def service(bridge: str, ann: None) -> Iterator[None]:
    """tapsterd as its units start it, and a user who may have devices on br0."""
    world.POLICY.write_text(
        "[[allow]]\n"
        'groups = ["kvm"]\n'
        f'bridges = ["{bridge}"]\n'
        'features = ["queues", "vhost", "fin-wait"]\n'
        "devices = 20\n"
    )
    world.sh("systemctl start tapsterd.socket")
    yield
    world.sh("systemctl stop tapsterd.socket tapsterd.service")
    for file in Path("/var/lib/tapster").iterdir():
        file.unlink()
