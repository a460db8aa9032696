# SPDX-License-Identifier: Apache-2.0
"""A QEMU guest of libvirt, whose network devices are attached and detached by orders on
stdin.

Run by Debian's Python, which has Debian's binding of libvirt's API, as
`/usr/bin/python3 guest.py BRIDGE`. It prints "ready" when the guest runs, and then the
seconds that each order took:

    attach bridge MAC   a device with a tap on the bridge
    attach user MAC     the same device, with nothing on the host: QEMU is its network
    detach ...          the end of it
"""

import sys
import time

import libvirt

# It needs no disk and boots nothing. A USB device can be unplugged without the guest.
GUEST = """
<domain type="qemu">
  <name>guest</name>
  <memory unit="MiB">32</memory>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type="usb" model="qemu-xhci"/>
    <memballoon model="none"/>
  </devices>
</domain>
"""


def device(kind: str, mac: str, bridge: str) -> str:
    """Return the XML of a network device."""
    source = f'<source bridge="{bridge}"/>' if kind == "bridge" else ""
    return (
        f'<interface type="{kind}"><mac address="{mac}"/>{source}'
        '<model type="usb-net"/></interface>'
    )


def main(bridge: str) -> None:
    connection = libvirt.open("qemu:///system")
    guest = connection.createXML(GUEST)
    print("ready", flush=True)
    for line in sys.stdin:
        verb, kind, mac = line.split()
        call = guest.attachDevice if verb == "attach" else guest.detachDevice
        before = time.perf_counter()
        call(device(kind, mac, bridge))
        print(time.perf_counter() - before, flush=True)
    guest.destroy()
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
