# SPDX-License-Identifier: Apache-2.0
"""Tapster installed in each way of README, used, and removed without a trace."""

import io
import json
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import product, snapshot
from lab.host.debian import DebianHost
from lab.host.image import Image
from lab.packages import later_version
from tests.host.outside.ground import add_bridge, leases, taps, wait_gone

POLICY = '[[allow]]\ngroups = ["kvm"]\nbridges = ["br0"]\nfeatures = ["fin-wait"]\n'
AS_ANN = "setpriv --reuid=ann --regid=ann --init-groups"
DEB = "/srv/tapster.deb"
QUESTION = "tapster/purge-devices"

FILES = """
find / -xdev ! -type d \\
    ! -path '/proc/*' ! -path '/run/*' ! -path '/srv/*' ! -path '/tmp/*' \\
    ! -path '/var/cache/*' ! -path '/var/log/*' ! -path '/var/lib/dpkg/*' \\
    ! -path '/var/lib/systemd/*' ! -path '/usr/src/*' ! -path "$HOME/*" | sort
"""
"""What is on the host, but for what other programs write at any time."""
ACCOUNTS = {"/etc/group-", "/etc/gshadow-", "/etc/passwd-", "/etc/shadow-"}
"""Copies that systemd-sysusers makes. The daemon's user stays: files may be its own."""


@pytest.fixture
def bare_host(debian: Image) -> Iterator[DebianHost]:
    """A running host with a bridge and a user, without Tapster."""
    with snapshot.resumed(debian) as host:
        add_bridge(host)
        host.sh("useradd --groups kvm ann")
        yield host


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this tree."""
    built = list((product.TREE / "dist" / "deb").glob("tapster_*_all.deb"))
    assert built, "there is no package in dist/deb; build it with: make deb"
    return built[0]


def files(host: DebianHost) -> set[str]:
    return set(host.sh(FILES).splitlines()) - ACCOUNTS


def use(host: DebianHost, path: str = "/usr/bin") -> None:
    """Follow README's quick start, first as root, then as a user of the daemon."""
    root = f"export PATH={path}:$PATH"
    name = host.sh(f"{root}; tapster add --bridge br0 --owner web --fin-wait 1").strip()
    (shown,) = json.loads(host.sh(f"ip -j link show {name}"))
    assert (shown["master"], "UP" in shown["flags"]) == ("br0", True)
    seen = "ip -j link show {name}"
    run = f"tapster run --bridge br0 --owner db --fin-wait 1 -- {seen}"
    assert '"master":"br0"' in host.sh(f"{root}; {run}")
    host.sh(f"{root}; tapster rm --owner web")
    wait_gone(host, name)

    host.write("/etc/tapster/tapster.toml", POLICY)
    host.sh("systemctl enable --quiet --now tapsterd.socket")
    name = host.sh(f"{root}; {AS_ANN} tapster add --bridge br0").strip()
    assert name in taps(host)
    refused = host.run(
        "bash", "-c", f"{root}; {AS_ANN} tapster add --bridge br1", check=False
    )
    assert "the policy allows uid 1000 no bridges 'br1'" in refused.stderr
    assert f"\n{name} " in host.sh(f"{root}; {AS_ANN} tapster ls")
    host.sh(f"{root}; {AS_ANN} tapster rm {name}")
    wait_gone(host, name)
    shown = host.sh(f"{root}; tapster doctor --json")
    assert json.loads(shown)["problems"] == []


def test_a_debian_package_from_its_installation_to_its_purge(
    bare_host: DebianHost, package: Path, tmp_path: Path
) -> None:
    host = bare_host
    before = files(host)
    host.write(DEB, package.read_bytes())
    host.sh(f"dpkg --install {DEB}", timeout=300)
    assert host.sh("systemctl is-enabled tapsterd.socket").strip() == "enabled"
    assert host.sh("systemctl is-active tapsterd.socket").strip() == "active"
    use(host)

    # An upgrade restarts the daemon; the VM's device and its lease go on.
    name = host.sh(f"{AS_ANN} tapster add --bridge br0 --fin-wait 1").strip()
    lease = leases(host)[name]
    main_pid = "systemctl show --value --property MainPID tapsterd.service"
    pid = host.sh(main_pid)
    host.write(DEB, later_version(package, tmp_path).read_bytes())
    host.sh(f"dpkg --install {DEB}", timeout=300)
    assert host.sh(main_pid) != pid
    assert host.read("/etc/tapster/tapster.toml") == POLICY
    assert leases(host)[name] == {**leases(host)[name], "id": lease["id"]}
    (shown,) = json.loads(host.sh(f"ip -j link show {name}"))
    assert (shown["ifindex"], shown["master"]) == (lease["ifindex"], "br0")

    # Without a yes, a purge leaves a VM its device, and says so.
    host.sh("dpkg --remove tapster")
    assert name in taps(host)
    purge = "DEBIAN_FRONTEND=noninteractive dpkg --purge tapster"
    kept = host.run("bash", "-c", purge)
    assert name in taps(host), kept
    assert "kept /var/lib/tapster" in kept.stderr

    # With a yes, it deletes the device and the ledger. debconf knows the question
    # although the removal, which comes first, deletes the package's templates.
    host.sh(f"dpkg --install {DEB}", timeout=300)
    assert name in leases(host)
    host.sh("dpkg --remove tapster")
    assert f"{QUESTION}: false" in host.sh("debconf-show tapster")
    host.sh(f"echo tapster {QUESTION} boolean true | debconf-set-selections")
    host.sh(purge)
    assert taps(host) == set()
    assert host.sh("debconf-show tapster") == ""
    assert files(host) - before == set()
    assert before - files(host) == set()


def test_make_install_and_uninstall_leave_nothing(bare_host: DebianHost) -> None:
    host = bare_host
    before = files(host)
    product.install(host)
    assert host.sh("find /usr/lib/python3 -path '*tapster*/host.*.pyc'"), "not compiled"
    use(host)
    host.sh("systemctl disable --quiet --now tapsterd.socket; systemctl stop tapsterd")
    uninstall = [part.replace("install", "uninstall") for part in product.INSTALL[3:]]
    host.run(
        *("python3", "-m", "tapster.install", *uninstall),
        environment={"PYTHONPATH": f"{product.THERE}/src"},
    )
    host.sh("rm -r /etc/tapster /var/lib/tapster")  # the policy and the ledger
    assert files(host) - before == set()
    assert before - files(host) == set()


def test_the_wheel_in_a_bare_venv_and_its_units(
    bare_host: DebianHost, tmp_path: Path
) -> None:
    host = bare_host
    before = files(host)
    _unpack_pip(host)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", tmp_path, product.TREE),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("tapster-*.whl")
    host.write(f"/srv/{wheel.name}", wheel.read_bytes())
    host.sh("python3 -m venv --without-pip /srv/venv")
    host.run(
        *("/srv/venv/bin/python", "-m", "pip", "install", "--quiet", "--no-index"),
        f"/srv/{wheel.name}",
        environment={"PYTHONPATH": "/srv/pip"},
        timeout=300,
    )
    # Root has a ledger before the daemon's user exists.
    host.sh("/srv/venv/bin/tapster add --bridge br0 --owner first")
    host.sh("/srv/venv/bin/tapster install-service")
    use(host, "/srv/venv/bin")
    host.sh("/srv/venv/bin/tapster rm --owner first")
    host.sh("systemctl disable --quiet --now tapsterd.socket; systemctl stop tapsterd")
    host.sh("/srv/venv/bin/tapster install-service --remove")
    host.sh("rm -r /etc/tapster /var/lib/tapster /srv/venv")
    assert files(host) - before == set()
    assert before - files(host) == set()


def _unpack_pip(host: DebianHost) -> None:
    """Copy this computer's pip to the host, which has none."""
    site = Path(sysconfig.get_path("purelib"))
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(site / "pip", arcname="pip")
        host.unpack(buffer.getvalue(), "/srv/pip")
