# SPDX-License-Identifier: Apache-2.0
"""Install Tapster as users do: compiled, in a folder that holds nothing else.

The environment of a developer has more in it, which every Python there reads at its
start; and it may be told to keep no bytecode.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCHER = """
import os, sys, tapster
from tapster.install.manifest import program
library = os.path.dirname(os.path.dirname(tapster.__file__))
sys.stdout.write(program("tapster", sys.executable, library))
"""
"""Prints the program that `make install` and the Debian package place. The one that pip
makes searches the site directories, and imports `re`."""


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
    if (tree / "src/tapster/install/manifest.py").exists():
        written = [str(programs / "python"), "-c", LAUNCHER]
        text = subprocess.run(written, check=True, capture_output=True, text=True)
        (programs / "tapster").write_text(text.stdout)
    return programs
