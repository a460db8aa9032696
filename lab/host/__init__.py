# SPDX-License-Identifier: Apache-2.0
"""A whole Debian host for tests: Debian's kernel, systemd and udev, in QEMU.

`image` builds a disk from Debian's packages, `snapshot` boots it once and keeps the
memory of the booted host, and `debian` gives a host that starts from that memory in a
second. `agent` runs inside the host and carries out commands; `product` installs
Tapster there. `accelerator` decides between KVM and TCG by booting a kernel. `cable`
joins hosts.

`python -m lab.host` is the command behind `make host` and `make host-test`.
"""
