# SPDX-License-Identifier: Apache-2.0
"""The files of the tree, and what each imports."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import tapster

ROOT = Path(__file__).parents[2]
SOURCE = Path(tapster.__file__).parent
FOLDERS = ("tests", "lab", "demo", "bench", "soak", "explorer")


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(code: str) -> set[str]:
    """What a file imports: at its top, inside functions, and for typing."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, "a relative import hides the room"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


IMPORTS = {module: imports(path.read_text()) for module, path in MODULES.items()}


def inside(module: str, *rooms: str) -> bool:
    """Whether a module is one of these, or in one of these packages."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


PYTHON = sorted(
    [
        *MODULES.values(),
        *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
    ]
)


def short(path: Path) -> str:
    base = ROOT if path.is_relative_to(ROOT) else SOURCE.parent
    return str(path.relative_to(base))


def repository() -> Iterator[Path]:
    """Every file that is kept: not what tools leave behind."""
    for top, folders, files in os.walk(ROOT):
        folders[:] = sorted(set(folders) - {"__pycache__", "dist", "htmlcov"})
        for names in (folders, files):
            hidden = {name for name in names if name.startswith(".")}
            names[:] = [n for n in names if n not in hidden - {".ci", ".gitignore"}]
        yield from (Path(top, name) for name in sorted(files))
