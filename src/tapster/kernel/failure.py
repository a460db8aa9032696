# SPDX-License-Identifier: Apache-2.0
"""Errors of system calls as errors of Tapster."""

import os
from errno import EACCES, ENOSYS, EPERM

from tapster.errors import HostError, KernelError, MissingCapability

CAPABILITIES = {
    "CAP_NET_BROADCAST": 11,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
    "CAP_BPF": 39,
}
"""The numbers in include/uapi/linux/capability.h."""


def failure(
    error: OSError, action: str, capability: str = "CAP_NET_ADMIN"
) -> HostError:
    """Return the error to raise when `action`, which needs `capability`, failed."""
    code = error.errno or 0
    reason = error.strerror or ""
    if code in (EPERM, EACCES):
        if (text := lacks(capability)) is not None:
            return MissingCapability(f"{action} needs {text}", capability=capability)
        if reason == os.strerror(code):  # the kernel gives no other reason
            reason += (
                f", although this process has {capability}: a security module, a "
                "seccomp filter or a device cgroup may forbid it, or the owner or mode "
                "of a file"
            )
    if code == ENOSYS:
        reason += ": the kernel lacks a system call, or a seccomp filter forbids it"
    return KernelError(code, action, reason)


def lacks(capability: str) -> str | None:
    """Say which capability is missing, and how to get it; None if it is not."""
    if not has(capability):
        where = "the container or the unit in which this process runs"
        remedy = f"give it to {where}" if os.geteuid() == 0 else "run as root"
        return f"{capability}: {remedy}"
    if in_user_namespace():
        return f"{capability} outside of this user namespace: run as root of the host"
    return None


def in_user_namespace() -> bool:
    """Return whether this process is in another user namespace than the host's."""
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def has(capability: str) -> bool:
    """Return whether this process has a capability in effect (proc_pid_status(5))."""
    with open("/proc/self/status", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> CAPABILITIES[capability] & 1)
    return False
