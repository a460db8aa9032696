# SPDX-License-Identifier: Apache-2.0
"""What a verb loads when it starts: a VM waits for it."""

import subprocess
import sys

from tests.repo.tree import SOURCE

# Each of these costs as much as acquiring several devices, or more.
SLOW = {
    "argparse",
    "asyncio",
    "ctypes",
    "dataclasses",
    "hashlib",
    "inspect",
    "json",
    "logging",
    "ovs",
    "random",
    "subprocess",
    "typing",
    "typing_extensions",
}

# A verb does without these, too: each takes a tenth of Python's start, or more.
HEAVY = {"array", "collections", "contextlib", "enum", "functools", "re", "socket"}


def loaded_by(*modules: str) -> set[str]:
    """What a fresh Python has loaded after it imported these."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r})\n"
    code += "".join(f"import {module}\n" for module in modules)
    code += "print(*sys.modules, sep='\\n')"
    # -S and -E: modules that the host's Python imports at its start are not ours.
    command = [sys.executable, "-S", "-E", "-c", code]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(shown.stdout.split())


def test_a_verb_in_the_start_path_of_vms_loads_nothing_slow() -> None:
    verb = (
        "tapster.cli.add",
        "tapster.operations.acquire",
        "tapster.operations.release",
    )
    loaded = loaded_by("tapster.cli", "tapster.host", *verb)
    assert "_sqlite3" in loaded
    assert sorted(loaded & (SLOW | HEAVY)) == []


def test_a_verb_that_asks_the_daemon_loads_nothing_slow() -> None:
    loaded = loaded_by("tapster.cli", "tapster.cli.add", "tapster.rpc.client")
    rooms = {"tapster.ledger", "tapster.kernel.linux", "tapster.kernel.rtnl"}
    types = {"tapster.rpc.interface", "tapster.rpc.description"}
    assert sorted(loaded & {*SLOW, *HEAVY, *rooms, *types, "_sqlite3"}) == []


def test_libvirts_hook_loads_nothing_slow() -> None:
    parts = (
        "tapster.cli.nic_attributes",
        "tapster.libvirt.domain",
        "tapster.libvirt.hook",
    )
    loaded = loaded_by("tapster.cli", "tapster.cli.libvirt", *parts)
    slow = {*SLOW, "shutil", "urllib.request", "xml.sax"} - {"argparse"}
    assert sorted(loaded & slow) == []
