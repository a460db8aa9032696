# SPDX-License-Identifier: Apache-2.0
"""The Debian archive, as apt on this computer is configured for it.

The address is read at run time and is written nowhere but into apt's own files.
"""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

HELPER = "/usr/lib/apt/apt-helper"
OPTIONS = (
    *("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"),
    *("-o", "APT::Sandbox::User=root"),  # the target is in a folder of root's
)


class Unreachable(Exception):
    """No image can be built, because Debian's archive is not there."""


def address() -> str:
    """Return the address of Debian's main archive. Raises Unreachable without one."""
    shown = _output(
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"), "Created-By: Packages"
    )
    for uri in sorted(set(shown.split())):
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise Unreachable(
        "apt has no source whose address ends in /debian; add Debian's archive to "
        "/etc/apt/sources.list and run: apt-get update"
    )


def check(codename: str) -> None:
    """Fetch the list of lists of a release. Raises Unreachable if apt cannot."""
    source = f"{address().rstrip('/')}/dists/{codename}/InRelease"
    with TemporaryDirectory() as folder:
        target = str(Path(folder, "InRelease"))
        command = [HELPER, *OPTIONS, "download-file", source, target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = without_addresses(done.stdout + done.stderr).strip()
        raise Unreachable(
            f"apt cannot fetch Debian's release {codename} from the archive that it is "
            f"configured for, so no host can be built; apt said:\n{said}"
        )


def acquire_options() -> str:
    """Return what apt is told about fetching: proxies, checks of dates."""
    return _output("apt-config", "dump", "Acquire")


def without_addresses(text: str) -> str:
    """Return a text in which no address of an archive or proxy can be read."""
    return re.sub(r"\w+://\S+", "(an address)", text)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
