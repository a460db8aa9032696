# SPDX-License-Identifier: Apache-2.0
"""The schema of the metadata accepts what adopt writes, and knows each attribute."""

import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tapster.cli import nic_attributes
from tapster.libvirt import domain
from tapster.libvirt.adoption import nics_element
from tapster.libvirt.domain import NicRequest
from tests.libvirt.test_domain import DOMAINS, adopt

SCHEMA = Path(__file__).parents[2] / "docs/libvirt.rng"
PAGE = SCHEMA.with_suffix(".md")


def complaint(metadata: str) -> str:
    """Return what xmllint says against a piece of metadata; "" if it is valid."""
    done = subprocess.run(
        ["xmllint", "--noout", "--relaxng", str(SCHEMA), "-"],
        input=metadata,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def nics(attributes: str) -> str:
    return (
        f"<t:nics xmlns:t='{domain.NAMESPACE}'><t:nic dev='web0' {attributes}/>"
        "</t:nics>"
    )


def test_it_accepts_what_adopt_writes() -> None:
    found = []
    for name in DOMAINS:
        root = ElementTree.fromstring(adopt(name).xml)
        found += root.findall(f"./metadata/{{{domain.NAMESPACE}}}nics")
    assert len(found) > 20
    for element in found:
        assert complaint(ElementTree.tostring(element, encoding="unicode")) == ""


def test_it_knows_the_attributes_that_the_hook_knows() -> None:
    known = set(re.findall(r'<attribute name="([\w-]+)"', SCHEMA.read_text()))
    assert known - {"dev", domain.PLUGGED} == nic_attributes.allowed_attributes()


@pytest.mark.parametrize(
    "attributes",
    [
        {"bridge": "br0"},
        {"link": "eth0", "mode": "private", "mtu": "1400"},
        {"bridge": "br0", "address": "192.0.2.7,fe80::1", "filter": "yes"},
        {"bridge": "br0", "inbound": "9::7", "outbound": "5", "outbound-pps": "6"},
        {"ovs": "ovs0", "external-id": "iface-id=a=b x=y", "vlan": "7"},
        {"bridge": "br0", "trunk": "5,6,9", "isolated": "yes", "learning": "no"},
        {"bridge": "br0", "up": "no", "vnet-hdr": "no", "fin-wait": "60s"},
    ],
)
def test_it_accepts_what_attach_writes_which_asks_for_the_same(
    attributes: dict[str, str],
) -> None:
    spec = nic_attributes.request("web0", attributes)
    written = nic_attributes.attributes_of(spec)
    assert nic_attributes.request("web0", written) == spec
    element = nics_element([NicRequest("web0", {**written, domain.PLUGGED: "yes"})])
    assert complaint(element.decode()) == ""


@pytest.mark.parametrize(
    "attributes",
    [
        "switch='br0'",
        "bridge='br0' ovs='ovs0'",
        "bridge='br0' filter='true'",
        "bridge='br0' vlan='seven'",
        "bridge='br0' inbound='fast'",
        "bridge=''",
    ],
)
def test_it_refuses_what_the_hook_would(attributes: str) -> None:
    assert complaint(nics("bridge='br0'")) == ""
    assert complaint(nics(attributes))


def test_the_command_of_the_page_checks_a_domain() -> None:
    (command,) = re.findall(r"(?s)virsh dumpxml web \|\n(.*?)```", PAGE.read_text())
    program = command.replace("docs/libvirt.rng", str(SCHEMA))
    for attribute, status in (("", 0), ("color='red' ", 3)):
        xml = adopt("bridge").xml.replace(b"bridge=", attribute.encode() + b"bridge=")
        done = subprocess.run(
            ["sh", "-c", program], input=xml, capture_output=True, check=False
        )
        assert done.returncode == status


def test_the_example_of_the_page_is_valid() -> None:
    pattern = r"(?s)<tapster:nics.*?</tapster:nics>"
    (example,) = re.findall(pattern, PAGE.read_text())
    assert complaint(example) == ""
