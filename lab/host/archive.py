# SPDX-License-Identifier: Apache-2.0
"""The Debian archive, as apt on this computer is configured for it.

The address is read at run time and is written nowhere but into apt's own files.
"""

import subprocess


def address() -> str:
    """Return the address of Debian's main archive. Raises LookupError without one."""
    shown = _output(
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"), "Created-By: Packages"
    )
    for uri in sorted(set(shown.split())):
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise LookupError(
        "apt has no source whose address ends in /debian; add Debian's archive to "
        "/etc/apt/sources.list and run: apt-get update"
    )


def acquire_options() -> str:
    """Return what apt is told about fetching: proxies, checks of dates."""
    return _output("apt-config", "dump", "Acquire")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
