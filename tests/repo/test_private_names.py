# SPDX-License-Identifier: Apache-2.0
"""No module touches a private name of another."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.tree import PYTHON, short

OF_A_NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
"""Public in spite of the underscore: a named tuple's fields can have any name."""
OF_PYTHON = {
    "os._exit",
    "parser._actions",
    "self._lock._is_owned",
    "sys._getframe",
}
"""Documented, or with no public way to the same."""


def private(code: str) -> Iterator[str]:
    """The private attributes of something other than `self` or `cls`."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        dunder = node.attr.startswith("__") and node.attr.endswith("__")
        own = ast.unparse(node.value) in ("self", "cls", "super()")
        if not dunder and not own and node.attr not in OF_A_NAMED_TUPLE:
            yield ast.unparse(node)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            yield from (
                f"{ast.unparse(node.func)} {argument.value!s}"
                for argument in node.args
                if isinstance(argument, ast.Constant)
                and re.search(r"(^|\.)_[a-z]", str(argument.value))
            )


def test_the_walk_sees_private_names_of_others() -> None:
    code = "self._a; cls._b; super()._c; x._d; self.x._e(); T._fields; x.__doc__"
    assert sorted(private(code)) == ["self.x._e", "x._d"]
    assert list(private("m.setattr(x, '_y', 1); m.setattr('a.b', 2)")) == [
        "m.setattr _y"
    ]


@pytest.mark.parametrize("path", PYTHON, ids=short)
def test_no_file_touches_a_private_name_of_another(path: Path) -> None:
    assert set(private(path.read_text("utf-8"))) <= OF_PYTHON
