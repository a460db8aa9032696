# SPDX-License-Identifier: Apache-2.0
"""Finder: finds Tapster's compiled modules with few looks at files, for the command.

The command sits in the start path of VMs, and imports 50 modules. Python's own finders
take 245 thousand instructions to find, open and enter an empty module; most of them
come before they look for its compiled file. This finder looks there first, and takes
130 thousand.

It uses a compiled file by Python's own rule: if the time and the size in it are those
of the source. In every other case it finds nothing, and Python's finders do the work.
"""

import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

_BEGIN = MAGIC_NUMBER + bytes(4)
"""How a compiled file begins that holds the time and the size of its source."""


def install() -> None:
    """Let the finder look for Tapster's modules before all others do."""
    folder = os.path.dirname(__file__)
    own = f"{folder}/__pycache__/finder"
    compiled = __spec__.cached or ""
    # Python may be told to keep compiled files elsewhere. An archive has none.
    if compiled.startswith(own):
        sys.meta_path.insert(0, _Finder(compiled.removeprefix(own)))


class _Finder:
    """Finds modules whose compiled files end in `suffix`, such as .cpython-311.pyc."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None",
        target: "ModuleType | None" = None,
    ) -> ModuleSpec | None:
        if path is None or not name.startswith("tapster."):
            return None
        folder, stem = path[0], name.rpartition(".")[2]
        if spec := self._find(name, folder, stem):
            return spec
        folder = f"{folder}/{stem}"
        if spec := self._find(name, folder, "__init__"):
            spec.submodule_search_locations = [folder]
        return spec

    def _find(self, name: str, folder: str, stem: str) -> ModuleSpec | None:
        source = f"{folder}/{stem}.py"
        compiled = f"{folder}/__pycache__/{stem}{self._suffix}"
        try:
            with open(compiled, "rb", buffering=0) as file:
                data = file.read()
            there = os.stat(source)
        except OSError:
            return None
        if data[:16] != _BEGIN + _bytes(int(there.st_mtime)) + _bytes(there.st_size):
            return None
        spec = ModuleSpec(name, _Loader(name, source, data), origin=source)
        spec.has_location = True
        spec.cached = compiled
        return spec


def _bytes(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "little")


class _Loader(SourceFileLoader):
    """Python's own loader; but the compiled file has been read."""

    def __init__(self, name: str, source: str, data: bytes) -> None:
        super().__init__(name, source)
        self._data = data

    def get_code(self, fullname: str) -> "CodeType":
        code: CodeType = loads(memoryview(self._data)[16:])
        return code
