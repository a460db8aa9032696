# SPDX-License-Identifier: Apache-2.0
"""The pages agree with the tree: files, imports, promises, links and API."""

import ast
import re
from pathlib import Path

import pytest

import tapster
from tests.repo import fish, pages
from tests.repo.pages import BLOCKS, LAYERS, PAGE, ROOT, block
from tests.repo.tree import MODULES

PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PLACES = (ROOT, ROOT / "src/tapster", ROOT / "tests", ROOT / "docs")
"""The folders from which a page may name a file."""


@pytest.mark.parametrize("name", BLOCKS)
def test_the_pages_describe_the_tree(name: str) -> None:
    assert block(name) == BLOCKS[name](), (
        "to update the page: .venv/bin/python -m tests.repo.pages"
    )


def test_every_room_imports_only_rooms_below_it() -> None:
    order = [layer for layer, _ in LAYERS]
    for layer, imported in pages.imports_of_the_rooms().items():
        below = set(order[order.index(layer) + 1 :])
        assert imported <= below, layer


def test_every_room_is_in_the_list() -> None:
    assert {pages.layer_of(module) for module in MODULES} == {
        layer for layer, _ in LAYERS
    }


def test_every_file_says_what_it_is_in_one_line() -> None:
    for path in pages.PACKAGE.rglob("*.py"):
        line = pages.first_line(path)
        assert line.endswith((".", ":")), f"{path}: {line!r} is no sentence"


def test_every_promise_has_a_test_and_every_test_a_promise() -> None:
    promised = re.findall(r"^\| (I\d) \| (?!`)", PAGE.read_text("utf-8"), re.MULTILINE)
    assert set(pages.tests_of_promises()) <= set(promised)
    # I8: descriptors come from acquire alone, so its test is that of I6.
    assert set(promised) - set(pages.tests_of_promises()) <= {"I8"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_and_file_name_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    wrong = [link for link in links if not (page.parent / link).exists()]
    suffixes = r"(?:py|md|sql|nft|json|svg|toml|bash|txt|service|socket|conf)"
    for name in re.findall(rf"`([\w./-]+/[\w.-]+\.{suffixes}|[\w-]+/)`", text):
        if name.startswith("/"):
            continue  # a file of the host
        if not any((place / name).exists() for place in PLACES):
            wrong.append(name)
    assert wrong == []


def definitions(path: Path) -> set[str]:
    """Return the functions, classes and methods of a file."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            for inner in getattr(node, "body", ()):
                if isinstance(inner, ast.FunctionDef):
                    found.add(f"{node.name}.{inner.name}")
    return found


def test_every_hop_of_the_walk_exists() -> None:
    hops = re.findall(
        r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert len(hops) > 20
    for file, function in hops:
        assert function in definitions(pages.PACKAGE / file), (file, function)


def python_of(page: Path) -> list[str]:
    """Return the Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_readme_names_only_what_the_library_has() -> None:
    named = {
        node.attr
        for example in python_of(ROOT / "README.md")
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "tapster"
    }
    assert named
    assert [name for name in named if not hasattr(tapster, name)] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_every_method_of_the_library_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    wrong = [
        f"{kind}.{name}"
        for kind, name in re.findall(r"\b(Host|Client|AnyHost)\.([a-z]\w*)", text)
        if not hasattr(getattr(tapster, kind), name)
    ]
    assert wrong == []


def test_the_completion_of_fish_is_up_to_date() -> None:
    assert fish.PAGE.read_text("utf-8") == fish.text(), (
        "to update it: .venv/bin/python -m tests.repo.pages"
    )
