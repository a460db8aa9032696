# SPDX-License-Identifier: Apache-2.0
"""What each file has, and what belongs in no file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.tree import MODULES, PYTHON, ROOT, inside, repository, short

FIRST_LINE = "SPDX-License-Identifier: Apache-2.0"


def calls(path: Path) -> Iterator[str]:
    """The functions that a file calls or takes from a module, as they are written."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_daemons_serving_thread_sleeps() -> None:
    """It does so while the worker is busy for longer anyway."""
    sleepers = {m for m, path in MODULES.items() if "time.sleep" in calls(path)}
    assert sleepers == {"tapster.daemon.worker"}


def test_only_the_command_prints() -> None:
    printers = {m for m, path in MODULES.items() if "print" in calls(path)}
    assert printers
    assert all(inside(printer, "tapster.cli") for printer in printers)


@pytest.mark.parametrize("path", PYTHON, ids=short)
def test_every_python_file_has_its_licence_and_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(f"# {FIRST_LINE}\n")
    assert ast.get_docstring(ast.parse(text))


OTHERS = [
    path
    for path in repository()
    if path.suffix
    in (
        ".sql",
        ".nft",
        ".1",
        ".8",
        ".service",
        ".socket",
        ".conf",
        ".bash",
        ".zsh",
        ".fish",
        ".toml",
        ".in",
    )
    or path.name in ("Makefile", "_tapster")
    or path.read_bytes().startswith(b"#!")
]


@pytest.mark.parametrize("path", OTHERS, ids=short)
def test_every_other_source_file_has_its_licence(path: Path) -> None:
    assert FIRST_LINE in "".join(path.read_text("utf-8").splitlines()[:2])


# A home, the place of this very tree, and where packages come from. The place is
# looked for only as a whole path: "/src" alone says nothing.
# No pattern matches itself in this file.
MACHINE = [r"/home/\w", r"/Users/\w", r"/roo[t]/"]
if len(ROOT.parts) > 2:
    MACHINE.append(rf"(?<![\w./-]){re.escape(str(ROOT))}(?![\w.-])")
REGISTRY = [
    r"pypi\.",
    r"pythonhoste[d]",
    r"index[-_.]url",
    r"find-link[s]",
    r"trusted-hos[t]",
    r"/simpl[e]\b",
]


@pytest.mark.parametrize("pattern", MACHINE + REGISTRY)
def test_no_file_names_a_developers_machine_or_a_registry(pattern: str) -> None:
    found = [
        short(path)
        for path in repository()
        if re.search(pattern, path.read_bytes().decode("utf-8", "replace"))
    ]
    assert found == []
