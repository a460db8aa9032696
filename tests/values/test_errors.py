# SPDX-License-Identifier: Apache-2.0
"""The tree of errors, and what the package shows the world."""

import ast
import errno
import re
from pathlib import Path

import pytest

import tapster
from tapster import errors
from tapster.errors import KernelError, RequestError, TapsterError

CLASSES: dict[str, type[TapsterError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, TapsterError)
}


def drawn_tree() -> dict[str, str | None]:
    """Each class that the module's docstring draws, with its parent."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.fullmatch(r"    ((?:[| ]   )*(?:\+-- )?)([A-Z]\w+)( .*)?", line):
            depth, name = len(found[1]), found[2]
            while above and above[-1][0] >= depth:
                above.pop()
            parents[name] = above[-1][1] if above else None
            above.append((depth, name))
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    tree = drawn_tree()
    assert tree.pop("TapsterError") is None
    assert tree == {
        name: kind.__bases__[0].__name__
        for name, kind in CLASSES.items()
        if kind is not TapsterError
    }


def test_one_clause_catches_everything() -> None:
    assert all(issubclass(kind, TapsterError) for kind in CLASSES.values())
    assert issubclass(TapsterError, Exception)


def test_a_wrong_request_is_a_value_error_too() -> None:
    assert issubclass(RequestError, ValueError)


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_says_what_it_is_for(name: str) -> None:
    assert CLASSES[name].__doc__


def test_a_kernel_error_says_what_was_tried_and_how_it_failed() -> None:
    error = KernelError(errno.EBUSY, "make tap 'vnet0'")
    assert error.errno == errno.EBUSY
    assert str(error) == "make tap 'vnet0': Device or resource busy"
    said = KernelError(errno.EINVAL, "make tap 'vnet0'", "the kernel's own words")
    assert str(said) == "make tap 'vnet0': the kernel's own words"


def test_every_error_is_public() -> None:
    assert set(CLASSES) <= set(tapster.__all__)


def calls() -> list[tuple[str, int, str, set[str | None]]]:
    """Return where the package makes an error that has fields, and which it gives."""
    return [
        (path.name, call.lineno, name, {keyword.arg for keyword in call.keywords})
        for path in Path(tapster.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and (name := ast.unparse(call.func).rpartition(".")[2]) in CLASSES
        and CLASSES[name].fields
    ]


def test_every_error_is_raised_with_a_field() -> None:
    found = calls()
    assert {name for _, _, name, _ in found} == {
        name for name, kind in CLASSES.items() if kind.fields
    }
    assert [call for call in found if not call[3]] == []
