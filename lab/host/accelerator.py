# SPDX-License-Identifier: Apache-2.0
"""KVM or TCG: KVM where a guest really boots on it.

That /dev/kvm can be opened proves nothing: inside some VMs it opens, and the guest
stops at its first instructions. So a kernel without a root file system is booted. It
panics and restarts at once, which ends QEMU.
"""

import os
import subprocess
from pathlib import Path

from lab.host import cache

BOOTS = 10.0
"""Seconds in which a kernel on a working KVM has certainly reached its panic."""

PANIC = b"Kernel panic"


def choose(kernel: Path) -> str:
    """Return QEMU's name of the accelerator: "kvm" or "tcg"."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def probe(folder: Path) -> None:
        answer = "kvm" if _boots(kernel) else "tcg"
        (folder / "accelerator").write_text(answer)

    probed = cache.made("accelerator", cache.digest([boot]), probe)
    return (probed / "accelerator").read_text()


def _boots(kernel: Path) -> bool:
    command = [
        *(
            "qemu-system-x86_64",
            "-machine",
            "q35,accel=kvm",
            "-cpu",
            "max",
            "-m",
            "256",
        ),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=BOOTS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return PANIC in done.stdout
