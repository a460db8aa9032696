# SPDX-License-Identifier: Apache-2.0
"""What is sent about VLANs is what bridge(8) sends, also where no kernel takes it."""

import re
import subprocess
import sys

import pytest

from lab import shell

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

SENT = re.compile(r"nlmsg_type=(RTM_(?:SET|DEL)LINK).*ifi_family=AF_BRIDGE(.*)")
ENTRY = re.compile(r"\{flags=([^,]*), vid=(\d+)\}")
OURS = """
from contextlib import suppress
from tapster.errors import KernelError
from tapster.kernel import rtnl
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.port import LinkChange, Vlans
kernel = LinuxSystem().netns(None)
change = LinkChange(kernel.ifindex("vnet0"), vlans={})
for message in rtnl.set_messages(change):
    with suppress(KernelError):
        kernel._execute([message], "")
"""


def sent(*command: str) -> list[tuple[str, tuple[str, ...]]]:
    """What a command asks of the VLANs of ports, as strace shows it."""
    traced = ["strace", "-e", "trace=sendmsg,sendto", "-s", "4096", *command]
    shown = subprocess.run(traced, capture_output=True, text=True, check=False).stderr
    return [
        (type_, (*(f"{vid} {flags}" for flags, vid in ENTRY.findall(rest)),))
        for type_, rest in SENT.findall(shown)
    ]


@pytest.mark.parametrize(
    ("vlans", "added", "deleted"),
    [
        ("Vlans(7, ())", ["7 pvid untagged"], ["1-6", "8-4094"]),
        ("Vlans(1, (3,))", ["1 pvid untagged", "3"], ["2", "4-4094"]),
        ("Vlans(None, (1, 4094))", ["1", "4094"], ["2-4093"]),
    ],
)
@pytest.mark.usefixtures("host")
def test_one_message_adds_and_one_deletes_as_bridge_does(
    vlans: str, added: list[str], deleted: list[str]
) -> None:
    shell.sh("ip tuntap add vnet0 mode tap")
    shell.sh("ip link set vnet0 master br0")
    wanted = []
    # Deleted first: at no moment is the port in more VLANs than before or after.
    for verb, vids in (("del", deleted), ("add", added)):
        each = [
            sent("bridge", "vlan", verb, "dev", "vnet0", "vid", *vid.split())
            for vid in vids
        ]
        types = {type_ for ((type_, _),) in each}
        wanted.append((*types, sum((entries for ((_, entries),) in each), ())))
    assert sent(sys.executable, "-c", OURS.format(vlans)) == wanted
