# SPDX-License-Identifier: Apache-2.0
"""A guest of libvirt's session mode, with a network card on a bridge.

Run by Debian's Python, which has Debian's binding of libvirt's API, as
`/usr/bin/python3 session.py BRIDGE MAC`. It prints "runs" when the guest runs, which it
does until the end of stdin; then it prints "over".
"""

import sys

import libvirt

# It has no disk: its network card's ROM asks for an address as soon as it starts.
GUEST = """
<domain type="qemu">
  <name>guest</name>
  <memory unit="MiB">32</memory>
  <os><type arch="x86_64" machine="pc">hvm</type><boot dev="network"/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type="bridge">
      <mac address="{mac}"/><source bridge="{bridge}"/><model type="rtl8139"/>
    </interface>
    <memballoon model="none"/>
  </devices>
</domain>
"""


def main(bridge: str, mac: str) -> None:
    connection = libvirt.open("qemu:///session")
    guest = connection.createXML(GUEST.format(bridge=bridge, mac=mac))
    print("runs", flush=True)  # noqa: T201 - the test waits for it
    sys.stdin.read()
    guest.destroy()
    print("over", flush=True)  # noqa: T201 - as above
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
