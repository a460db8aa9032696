# SPDX-License-Identifier: Apache-2.0
"""Install Tapster in each way, use it, remove it: nothing is left.

This is the short form of tests/host/packages, in a copy of this system without systemd.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lab import copied, iproute
from lab.copied import Copied
from lab.packages import later_version
from lab.reapers import wait_for

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

TREE = Path(__file__).parents[2]
POLICY = b'[[allow]]\ngroups = ["kvm"]\nbridges = ["br0"]\nfeatures = ["fin-wait"]\n'
AS_ANN = "setpriv --reuid=ann --regid=ann --init-groups"
DEB = "/run/tapster.deb"
QUESTION = "tapster/purge-devices"


@pytest.fixture
def system(world: None) -> Copied:
    """A copy of this system without Tapster, with a user who may use VMs."""
    system = copied.make()
    system.sh("groupadd --force --system kvm; useradd --groups kvm ann")
    return system


def taps() -> set[str]:
    return {name for name in iproute.links() if name.startswith("vnet")}


def wait_gone(name: str) -> None:
    wait_for(lambda: name not in taps(), f"{name} is reaped")


def use(system: Copied, programs: str = "/usr/bin") -> None:
    """Follow README's quick start, first as root, then as a user of the daemon."""
    path = f"export PATH={programs}:$PATH"
    name = system.sh(
        f"{path}; tapster add --bridge br0 --owner web --fin-wait 1"
    ).strip()
    assert iproute.links()[name]["master"] == "br0"
    seen = "ip -j link show {name}"
    run = f"tapster run --bridge br0 --owner db --fin-wait 1 -- {seen}"
    assert '"master":"br0"' in system.sh(f"{path}; {run}")
    system.sh(f"{path}; tapster rm --owner web")
    wait_gone(name)

    system.write("/etc/tapster/tapster.toml", POLICY)
    with system.daemon(f"{programs}/tapsterd"):
        name = system.sh(f"{path}; {AS_ANN} tapster add --bridge br0").strip()
        assert name in taps()
        refused = system.run(f"{path}; {AS_ANN} tapster add --bridge br1")
        assert "no bridges 'br1'" in refused.stderr
        assert f"\n{name} " in system.sh(f"{path}; {AS_ANN} tapster ls")
        system.sh(f"{path}; {AS_ANN} tapster rm {name}")
        wait_gone(name)
    shown = system.sh(f"{path}; tapster doctor --json")
    assert json.loads(shown)["problems"] == []


def test_a_debian_package_from_its_installation_to_its_purge(
    system: Copied, package: Path, tmp_path: Path
) -> None:
    before = system.files()
    system.write(DEB, package.read_bytes())
    system.sh(f"dpkg --install {DEB}")
    use(system)

    # The device of a running VM and its lease outlive an upgrade.
    name = system.sh("tapster add --bridge br0 --owner vm").strip()
    leases = "tapster ls --all --json"
    (lease,) = json.loads(system.sh(leases))["leases"]
    system.write(DEB, later_version(package, tmp_path).read_bytes())
    system.sh(f"dpkg --install {DEB}")
    policy = copied.ROOT / "etc" / "tapster" / "tapster.toml"
    assert policy.read_bytes() == POLICY
    (after,) = json.loads(system.sh(leases))["leases"]
    assert {**after, "age": 0} == {**lease, "age": 0}

    # Without a yes, a purge leaves a VM its device, and says so.
    system.sh("dpkg --remove tapster")
    purge = "DEBIAN_FRONTEND=noninteractive dpkg --purge tapster"
    kept = system.run(purge)
    assert "kept /var/lib/tapster" in kept.stderr
    assert name in taps()
    assert not policy.exists()

    # With a yes, it deletes the device and the ledger.
    system.sh(f"dpkg --install {DEB}; dpkg --remove tapster")
    assert f"{QUESTION}: false" in system.sh("debconf-show tapster")
    system.sh(f"echo tapster {QUESTION} boolean true | debconf-set-selections")
    system.sh(purge)
    assert taps() == set()
    assert system.sh("debconf-show tapster") == ""
    assert system.files() ^ before == set()


def test_make_install_and_uninstall(system: Copied) -> None:
    before = system.files()
    (copied.ROOT / "srv" / "tree").mkdir(parents=True)
    bind = f"mount --bind {TREE} {copied.ROOT}/srv/tree"
    subprocess.run(bind.split(), check=True)
    make = "make -C /srv/tree --silent PREFIX=/usr PYTHON=/usr/bin/python3"
    system.sh(f"{make} install")
    system.sh("systemd-sysusers tapster.conf")
    use(system)
    system.sh(f"{make} uninstall")
    system.sh("rm -r /etc/tapster /var/lib/tapster")  # the policy and the ledger
    assert system.files() ^ before == set()


def test_the_wheel_in_a_bare_venv_and_its_units(system: Copied, tmp_path: Path) -> None:
    before = system.files()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    build += ["--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*build, "--wheel-dir", tmp_path, TREE], check=True)
    (wheel,) = tmp_path.glob("tapster-*.whl")
    system.write(f"/run/{wheel.name}", wheel.read_bytes())
    pip = Path(sysconfig.get_path("purelib"), "pip")
    shutil.copytree(pip, copied.ROOT / "run" / "pip" / "pip")
    system.sh("/usr/bin/python3 -m venv --without-pip /srv/venv")
    install = "python -m pip install --quiet --no-index --disable-pip-version-check"
    system.sh(f"PYTHONPATH=/run/pip /srv/venv/bin/{install} /run/{wheel.name}")
    # The daemon's unit hides homes, so nothing is installed for a program in one.
    system.sh("cp -a /srv/venv ~/venv")
    refused = system.run("~/venv/bin/python -m tapster install-service")
    assert "/venv/bin': its unit hides all homes" in refused.stderr
    system.sh("rm -r ~/venv")
    # Root has a ledger before the daemon's user exists.
    first = system.sh("/srv/venv/bin/tapster add --bridge br0 --owner first").strip()
    system.sh("/srv/venv/bin/tapster install-service; systemd-sysusers tapster.conf")
    use(system, "/srv/venv/bin")
    system.sh("/srv/venv/bin/tapster rm --owner first")
    wait_gone(first)  # a reaper that starts late would make a ledger again
    system.sh("/srv/venv/bin/tapster install-service --remove")
    system.sh("rm -r /etc/tapster /var/lib/tapster /srv/venv")
    assert system.files() ^ before == set()
