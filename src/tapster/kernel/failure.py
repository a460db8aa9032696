# SPDX-License-Identifier: Apache-2.0
"""Errors of system calls as errors of Tapster."""

from errno import EACCES, EPERM

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
    if code in (EPERM, EACCES) and not has(capability):
        return MissingCapability(
            f"{action} needs {capability}: run as root", capability=capability
        )
    return KernelError(code, action, error.strerror or "")


def has(capability: str) -> bool:
    """Return whether this process has a capability in effect (proc_pid_status(5))."""
    with open("/proc/self/status", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> CAPABILITIES[capability] & 1)
    return False
