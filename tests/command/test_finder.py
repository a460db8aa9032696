# SPDX-License-Identifier: Apache-2.0
"""The finder of the command's modules, beside Python's own finders."""

import os
import pkgutil
import py_compile
import subprocess
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import tapster
from tapster import finder

MODULES = [
    module.name
    for module in pkgutil.walk_packages(tapster.__path__, "tapster.")
    if not module.name.endswith("__main__")
]
IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from tapster import finder
finder.install()
from tapster.room import thing
found = type(thing.__loader__).__module__ == "tapster.finder"
print("found" if found else "left", thing.VALUE)
"""


def test_it_finds_what_python_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(MODULES) > 150
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    finder.install()
    own: Any = sys.meta_path[0]
    for name in MODULES:
        folders = import_module(name.rpartition(".")[0]).__path__
        wanted = PathFinder.find_spec(name, folders)
        assert wanted is not None
        assert wanted.origin is not None
        assert wanted.cached is not None
        py_compile.compile(wanted.origin, wanted.cached, doraise=True)
        found = own.find_spec(name, folders)
        assert found.loader.get_code(name) == wanted.loader.get_code(name)  # type: ignore[union-attr]
        assert found.loader.get_data(wanted.origin)
        assert isinstance(found.loader, type(wanted.loader))
        found.loader = wanted.loader
        assert found == wanted
        assert found.cached == wanted.cached


def test_it_finds_modules_of_tapster_alone() -> None:
    text = "import sys; from tapster import finder; finder.install(); import json"
    shown = subprocess.run(
        [sys.executable, "-c", f"{text}; print(type(json.__loader__).__module__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "_frozen_importlib_external\n"


def outcome(place: Path, *options: str) -> str:
    command = [sys.executable, *options, "-c", IMPORT, str(place)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of the same name, with a compiled finder and a compiled module."""
    room = tmp_path / "tapster" / "room"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").touch()
    (room / "__init__.py").touch()
    (room / "thing.py").write_text("VALUE = 1\n")
    (room.parent / "finder.py").write_bytes(Path(finder.__file__).read_bytes())
    for source in tmp_path.rglob("*.py"):
        py_compile.compile(str(source), doraise=True)
    return tmp_path


def test_it_finds_a_compiled_module(package: Path) -> None:
    assert outcome(package) == "found 1"


@pytest.mark.parametrize("text", ["VALUE = 2\n", "VALUE = 22\n"])
def test_a_source_that_was_changed_is_read(package: Path, text: str) -> None:
    source = package / "tapster/room/thing.py"
    before = source.stat()
    source.write_text(text)
    same_size = source.stat().st_size == before.st_size
    time = before.st_mtime + 2 if same_size else before.st_mtime
    os.utime(source, (time, time))
    assert outcome(package) == f"left {text.split()[-1]}"


def test_a_source_without_a_compiled_file_is_read(package: Path) -> None:
    compiled = package / "tapster/room/__pycache__"
    for file in compiled.iterdir():
        file.unlink()
    assert outcome(package) == "left 1"


def test_a_compiled_file_without_its_source_is_not_used(package: Path) -> None:
    (package / "tapster/room/thing.py").unlink()
    with pytest.raises(subprocess.CalledProcessError):
        outcome(package)


def test_a_compiled_file_that_is_compared_otherwise_is_left_to_python(
    package: Path,
) -> None:
    py_compile.compile(
        str(package / "tapster/room/thing.py"),
        invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
    )
    assert outcome(package) == "left 1"


def test_compiled_files_of_an_optimizing_python_are_its_own(package: Path) -> None:
    for source in package.rglob("*.py"):
        py_compile.compile(str(source), optimize=1)
    assert outcome(package, "-O") == "found 1"


def test_compiled_files_elsewhere_are_left_to_python(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert outcome(package, "-X", f"pycache_prefix={elsewhere}") == "left 1"


def test_an_archive_is_left_to_python(package: Path) -> None:
    archive = package / "archive.zip"
    with ZipFile(archive, "w") as file:
        for source in package.rglob("*.py"):
            file.write(source, source.relative_to(package))
    assert outcome(archive) == "left 1"
