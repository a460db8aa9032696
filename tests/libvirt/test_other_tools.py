# SPDX-License-Identifier: Apache-2.0
"""Domains that virt-install and virt-clone make: the commands of docs/libvirt.md."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import iproute, libvirt, shell
from lab.libvirt import qemu_pid, virsh
from tests.libvirt.system import Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]

PAGE = Path(__file__).parents[2] / "docs" / "libvirt.md"


@pytest.fixture
def host() -> Iterator[Place]:
    with place(daemon=False) as made:
        yield made


def commands() -> list[str]:
    """Return the commands that the page shows after virt-install's name."""
    block = PAGE.read_text().partition("**virt-install**")[2].split("```")[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")]


def run(host: Place, command: str) -> str:
    """Run a command of the page; its output."""
    program, *arguments = shlex.split(command)
    if program == "tapster":
        return host.tapster(shlex.join(arguments))
    return shell.sh(shlex.join([program, *arguments]))


def assert_on_the_network(host: Place, name: str, device: str) -> None:
    lease = host.leases()[device]
    assert (lease["state"], lease["pid"]) == ("active", qemu_pid(name))
    assert device in iproute.ports()


def test_what_virt_install_and_virt_clone_make_is_adopted(host: Place) -> None:
    install, adopt, *again = commands()
    assert install.startswith("virt-install ")
    run(host, install)
    (libvirts_own,) = iproute.ports()
    adopted = run(host, adopt)
    found = re.fullmatch(r"web: (tv[0-9a-f]{8}-0) bridge=br0\n", adopted)
    assert found
    device = found[1]
    assert iproute.ports() == {libvirts_own}, "it runs, and changes at its next start"
    for command in again:
        run(host, command)
    assert iproute.ports() == {device}
    assert_on_the_network(host, "web", device)

    virsh("destroy web")
    shell.sh("virt-clone --original web --name copy --auto-clone")
    mac = macs("copy")
    assert mac.isdisjoint(macs("web"))
    virsh("start web")
    assert "if this domain is a clone" in libvirt.refused("start copy")
    host.tapster("libvirt adopt copy")
    assert macs("copy") == mac, "those that virt-clone chose"
    virsh("start copy")
    (other,) = iproute.ports() - {device}
    assert_on_the_network(host, "copy", other)
    assert_on_the_network(host, "web", device)


def macs(name: str) -> set[str]:
    """Return the MACs of a domain's interfaces."""
    return set(re.findall(r"<mac address='(.*?)'", virsh(f"dumpxml {name}")))
