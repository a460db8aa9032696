# SPDX-License-Identifier: Apache-2.0
"""doctor finds what is wrong with libvirt's domains, and each remedy helps."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from lab import libvirt
from lab.libvirt import adopted, domain, virsh
from lab.shell import TAPSTER
from tests.libvirt.system import Place, place

pytestmark = [pytest.mark.kernel, pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def host() -> Iterator[Place]:
    """A host with a domain that is off, and one that runs."""
    with place(daemon=False) as made:
        made.libvirt.define(domain("plain"))
        made.libvirt.define(adopted("well", "dev='well0' bridge='br0'"))
        virsh("start --paused well")
        yield made


def problems(host: Place) -> dict[str, str]:
    """Return each problem's remedy, by its description."""
    done = subprocess.run(
        [TAPSTER, "--ledger", str(host.ledger), "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["problems"]
    return {one["description"]: one["remedy"] for one in found}


def only(host: Place, *parts: str) -> str:
    """Return the remedy of the only problem, which mentions these."""
    ((description, remedy),) = problems(host).items()
    for part in parts:
        assert part in description
    return remedy


def undefine(*names: str) -> None:
    for name in names:
        virsh(f"undefine {name}")


def test_nothing_is_wrong_with_a_domain_that_runs(host: Place) -> None:
    assert problems(host) == {}


def test_a_hook_that_libvirt_does_not_call(host: Place) -> None:
    host.libvirt.define(adopted("hooked", "dev='hooked0' bridge='br0'"))
    libvirt.HOOK.chmod(0o644)
    assert only(host, "not executable") == "tapster libvirt install"
    libvirt.HOOK.unlink()
    assert only(host, "is missing") == "tapster libvirt install"
    host.tapster("libvirt install")
    text = libvirt.HOOK.read_text()
    libvirt.HOOK.write_text(text.replace(TAPSTER, "/opt/former/tapster"))
    assert only(host, "/opt/former/tapster") == "tapster libvirt install"
    libvirt.HOOK.unlink()
    log = libvirt.HOOK.with_name("98-log")
    kept = log.read_text()
    log.unlink()
    host.tapster("libvirt install")
    assert only(host, "had no hook") == "systemctl restart libvirtd"
    log.write_text(kept)
    log.chmod(0o755)
    host.libvirt.restart()
    assert problems(host) == {}
    undefine("hooked")


def test_metadata_and_interfaces_that_disagree(host: Place) -> None:
    xml = adopted("torn", "dev='torn0' bridge='br0'")
    host.libvirt.define(xml.replace("<target dev='torn0'", "<target dev='torn1'"))
    assert only(host, "torn0", "no interface") == "virsh edit torn"
    assert "no interface" in libvirt.refused("start torn")
    undefine("torn")


def test_two_domains_with_one_device(host: Place) -> None:
    for name in ("one", "two"):
        host.libvirt.define(adopted(name, "dev='one0' bridge='br0'"))
    only(host, "one, two", "one0")
    undefine("one", "two")


@pytest.mark.parametrize(
    "element",
    [
        "<bandwidth><outbound average='1'/></bandwidth>",
        "<filterref filter='clean'/>",
        "<vlan><tag id='7'/></vlan>",
    ],
)
def test_what_libvirt_does_beside_tapster(host: Place, element: str) -> None:
    nic = "dev='beside0' bridge='br0'"
    host.libvirt.define(adopted("beside", nic, more=element))
    name = element.split()[0].partition(">")[0][1:]
    assert "tapster:nic has" in only(host, f"<{name}>")
    undefine("beside")


@pytest.mark.parametrize(
    ("uuid", "parts"),
    [
        ("00000000-0000-4000-8000-000000000001", ("late", "libvirt lacks")),
        (libvirt.uuid_of("plain"), ("plain", "is off")),
        (libvirt.uuid_of("well"), ("well", "without it")),
    ],
)
def test_leases_that_no_domain_uses(
    host: Place, uuid: str, parts: tuple[str, ...]
) -> None:
    host.tapster(f"add --bridge br0 --owner libvirt:{uuid} --label domain=late")
    host.tapster(only(host, *parts).removeprefix("tapster "))
    assert problems(host) == {}


def test_a_device_that_is_still_on_standby(host: Place) -> None:
    """It is when the process that waits for a VM to arrive was killed."""
    lease = host.leases()["well0"]["id"]
    host.tapster(f"set {lease} --standby")
    assert problems(host) == {}, "the VM may still arrive"
    virsh("resume well")
    host.tapster(only(host, "well0", "standby").removeprefix("tapster "))
    assert problems(host) == {}


def test_a_libvirt_that_does_not_answer(host: Place) -> None:
    host.libvirt.stop()
    assert only(host, "does not answer") == "start its daemon"
    host.libvirt.start()
