# SPDX-License-Identifier: Apache-2.0
"""Install Tapster in each way of README, do all that README shows, remove it again.

Every command is README's own. This is the short form of tests/host/packages, in a copy
of this system without systemd.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import copied, readme, shell
from lab.copied import CLONE, PATH, Copied
from lab.namespaces import namespaces
from lab.packages import later_version

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

QUESTION = "tapster/purge-devices"

WAYS = readme.ways()


@pytest.fixture
def system() -> Iterator[Copied]:
    """A copy of this system without Tapster, and without a bridge."""
    with namespaces():
        shell.sh("ip link set lo up")
        yield copied.make()


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"deb"}))
def test_an_installation_from_the_tree(system: Copied, way: str) -> None:
    before = system.files()
    install, remove, programs = WAYS[way]
    system.path = f"{PATH}:{programs}"
    system.type(*install)
    readme.follow(system, f"{programs}/python3")
    shown = system.sh("tapster doctor --json")
    assert json.loads(shown)["problems"] == []
    system.type(*remove)
    system.sh("rm -rf /opt/pipx /opt/uv")  # what these programs keep for themselves
    assert system.files() ^ before == set()


def test_a_debian_package_from_its_installation_to_its_purge(
    system: Copied, package: Path, tmp_path: Path
) -> None:
    before = system.files()
    (build, install), remove, _ = WAYS["deb"]  # `package` is what the first has built
    _, _, path = build.strip().partition("# ")
    assert Path(path).name == package.name
    system.write(f"{CLONE}/{path}", package.read_bytes())
    system.type(install)
    readme.follow(system, "/usr/bin/python3")
    assert json.loads(system.sh("tapster doctor --json"))["problems"] == []

    # The device of a running VM and its lease outlive an upgrade.
    name = system.sh("tapster add --bridge br0 --owner vm").strip()
    leases = "tapster ls --all --json"
    (lease,) = json.loads(system.sh(leases))["leases"]
    policy = copied.ROOT / "etc" / "tapster" / "tapster.toml"
    text = policy.read_bytes()
    later = later_version(package, tmp_path)
    system.write("/run/later.deb", later.read_bytes())
    system.sh("dpkg --install /run/later.deb")
    assert policy.read_bytes() == text
    (after,) = json.loads(system.sh(leases))["leases"]
    assert {**after, "age": 0} == {**lease, "age": 0}

    # Without a yes, a purge leaves a VM its device, and says so.
    system.sh("dpkg --remove tapster")
    kept = system.run("DEBIAN_FRONTEND=noninteractive dpkg --purge tapster")
    assert "kept /var/lib/tapster" in kept.stderr
    assert name in system.taps()
    assert not policy.exists()

    # With a yes, it deletes the device and the ledger.
    system.type(install)
    system.sh("dpkg --remove tapster")
    assert f"{QUESTION}: false" in system.sh("debconf-show tapster")
    system.type(install)
    system.sh(f"echo tapster {QUESTION} boolean true | debconf-set-selections")
    system.type(*remove)
    assert system.taps() == set()
    assert system.sh("debconf-show tapster") == ""
    assert system.files() ^ before == set()


def test_root_uses_tapster_before_the_daemon_is_installed(system: Copied) -> None:
    (venv, install, *service), *_ = WAYS["pip"]
    system.path = f"{PATH}:/opt/tapster/bin"
    system.type(venv, install, "ip link add br0 type bridge")
    first = system.sh("tapster add --bridge br0 --owner first").strip()
    # The daemon's unit hides homes, so nothing is installed for a program in one.
    system.sh("cp -a /opt/tapster ~/venv")
    refused = system.run("~/venv/bin/python -m tapster install-service")
    assert "/venv/bin': its unit hides all homes" in refused.stderr

    system.type(*service)
    with system.daemon():
        assert f"\n{first} " in system.sh("tapster ls")
        system.sh("tapster rm --owner first")
