# SPDX-License-Identifier: Apache-2.0
"""Install Tapster as users do: compiled, in a folder that holds nothing else.

The environment of a developer has more in it, which every Python there reads at its
start; and it may be told to keep no bytecode.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def install(directory: Path, tree: Path = ROOT) -> Path:
    """Install a tree into a new environment; the directory of its programs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    wheels = directory / "wheels"
    build = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run([*pip, *build, str(tree)], check=True)
    made = directory / "environment"
    venv = [sys.executable, "-m", "venv", "--without-pip", str(made)]
    subprocess.run(venv, check=True)
    (wheel,) = wheels.iterdir()
    programs = made / "bin"
    into = ["--python", str(programs / "python"), "install", *offline, str(wheel)]
    subprocess.run([*pip, *into], check=True)
    return programs
