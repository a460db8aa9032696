# SPDX-License-Identifier: Apache-2.0
"""Compute the parts of pages that describe the tree.

`python -m tests.repo.pages` writes them into the pages.
"""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

from tapster import errors, model
from tapster.light import StrEnum, fields
from tests.repo import fish
from tests.repo.tree import IMPORTS, MODULES, inside

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ARCHITECTURE.md"
PACKAGE = ROOT / "src/tapster"

LAYERS = (
    ("__main__", "the start of the command"),
    ("cli", "the command"),
    ("daemon", "tapsterd"),
    ("install", "where the files of an installation go"),
    ("cni", "the CNI plugin: devices in pods"),
    ("integrate", "stand-ins for parts of other programs"),
    ("libvirt", "devices of libvirt's domains"),
    ("testing", "a host in memory, for tests"),
    ("reaper", "the process that reaps"),
    ("", "`tapster` itself: the public names"),
    ("rpc", "the wire protocol and its client"),
    ("host", "the facade that users call"),
    ("doctor", "problems on a host"),
    ("hazards", "what other programs and settings may do to VMs"),
    ("api", "what Host and Client both do"),
    ("open_device", "a lease and its open descriptors"),
    ("operations", "acquire, release, set, reap, recover"),
    ("gate", "one thread at a time, and no signal handler"),
    ("backends", "Open vSwitch, filters, rates"),
    ("fleet", "MACs and an inventory that hosts share"),
    ("ledger", "the records"),
    ("kernel", "the only room that makes system calls"),
    ("defaults", "what the defaults of options may be"),
    ("model", "requests, leases, identities"),
    ("checks", "types of values, by annotations"),
    ("names", "what a device may be called"),
    ("errors", "every error"),
    ("light", "named tuples, and names of types without `typing`"),
    ("finder", "finds the modules of the command"),
)
"""The rooms, from the top, and what each is."""


def first_line(path: Path) -> str:
    """Return what a file says of itself: the first line of its docstring or comment."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    if path.suffix == ".html":
        return "A page of `tapster report`, without its data."
    comment = re.search(r"SPDX.*\n((?:(?:#|--) ?.+\n)+)", text)
    words = re.sub(r"\n?(?:#|--) ?", " ", comment[1]) if comment else ""
    return f"{words.partition('. ')[0].strip().rstrip('.')}."


def sources(folder: Path) -> list[Path]:
    """Return the files of a folder that the map lists."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in (".html", ".py", ".sh", ".sql", ".nft")
    ]


def map_of_the_tree() -> str:
    """Return one line for each file of the package, with its description."""
    rooms = [PACKAGE, *sorted(path for path in PACKAGE.rglob("*/") if sources(path))]
    lines = []
    for room in rooms:
        lines.append(f"{room.relative_to(ROOT)}/")
        lines += [
            f"  {path.name:<22} {first_line(path)}".rstrip() for path in sources(room)
        ]
    return "\n".join(["```", *lines, "```"])


def layer_of(module: str) -> str:
    """Return the room in `LAYERS` that a module is in."""
    return module.partition(".")[2].partition(".")[0]


def imports_of_the_rooms() -> dict[str, set[str]]:
    """Return which other rooms each room imports."""
    return {
        layer: {
            layer_of(name)
            for module in MODULES
            if layer_of(module) == layer
            for name in IMPORTS[module]
            if inside(name, "tapster")
        }
        - {layer}
        for layer, _ in LAYERS
    }


def table_of_imports() -> str:
    """Return the table of the rooms and what each imports."""
    imported = imports_of_the_rooms()
    order = [layer for layer, _ in LAYERS]
    lines = ["| room | content | imports |", "| --- | --- | --- |"]
    for layer, content in LAYERS:
        names = ", ".join(
            name or "`tapster`" for name in order if name in imported[layer]
        )
        lines.append(f"| {layer or '`tapster`'} | {content} | {names} |")
    return "\n".join(lines)


def tests_of_promises() -> dict[str, set[str]]:
    """Return the test files that have tests of each promise, by its number."""
    files: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"def test_\w+?((?:_I\d)+)\(", path.read_text("utf-8")):
            for promise in re.findall(r"I\d", name):
                files.setdefault(promise, set()).add(
                    str(path.relative_to(ROOT / "tests"))
                )
    return files


def table_of_promises() -> str:
    """Return the table of the promises with the files whose tests hold them."""
    explored = re.findall(
        r"^def ((i\d)_\w+)",
        (ROOT / "explorer/invariants.py").read_text("utf-8"),
        re.MULTILINE,
    )
    lines = ["| | tests | in the explorer |", "| --- | --- | --- |"]
    for promise, files in sorted(tests_of_promises().items()):
        invariants = [name for name, number in explored if number == promise.lower()]
        tests, functions = (
            ", ".join(f"`{name}`" for name in names)
            for names in (sorted(files), invariants)
        )
        lines.append(f"| {promise} | {tests} | {functions} |".replace("  ", " "))
    return "\n".join(lines)


SCHEMA = ROOT / "docs/tapster.schema.json"


def tables_of_json() -> str:
    """Return a table for each definition of the schema of `--json`."""
    lines = []
    for name, definition in json.loads(SCHEMA.read_text("utf-8"))["$defs"].items():
        lines += [f"## {name}", "", definition["description"], ""]
        lines += ["| field | type | meaning |", "| --- | --- | --- |"]
        for field, kind in definition["properties"].items():
            lines.append(f"| `{field}` | {type_of(kind)} | {kind['description']} |")
        lines.append("")
    return "\n".join(lines).strip()


def type_of(kind: dict[str, Any]) -> str:
    """Return the type of a field, for people."""
    if "anyOf" in kind:
        return " or ".join(type_of(one) for one in kind["anyOf"])
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "const" in kind:
        return str(kind["const"])
    if "enum" in kind:
        return ", ".join("null" if one is None else f"`{one}`" for one in kind["enum"])
    types = kind["type"] if isinstance(kind["type"], list) else [kind["type"]]
    words = ["time" if "format" in kind and one == "string" else one for one in types]
    if "items" in kind:
        words[words.index("array")] = f"list of {type_of(kind['items'])}"
    return " or ".join(words)


VALUES = {
    "Wiring": "",
    "Tap": "Wiring",
    "Macvtap": "Tap",
    "Rate": "",
    "Vm": "",
    "Lease": "",
}
"""The values of the library whose fields have a table in docs/values.md, and the value
that describes the fields which the value itself does not describe."""


def tables_of_values() -> str:
    """Return a table of the fields of each value."""
    lines = []
    for name, other in VALUES.items():
        record = getattr(model, name)
        found = fields(record)
        defaults = record._field_defaults
        text = inspect.cleandoc(vars(record)["__doc__"])  # without the fields
        lines += [f"## {name}", "", text, ""]
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        for field, (kind, meaning) in found.items():
            default = f"`{shown(defaults[field])}`" if field in defaults else ""
            if meaning:
                kind = kind.replace(" | ", " or ")
                lines.append(f"| `{field}` | {kind} | {default} | {meaning} |")
        elsewhere = [
            f"`{field}`" for field, (_, meaning) in found.items() if not meaning
        ]
        assert bool(other) == bool(elsewhere), (name, elsewhere)
        if elsewhere:
            link = f"[{other}](#{other.lower()})"
            lines += ["", f"As in {link}: {', '.join(elsewhere)}."]
        lines.append("")
    return "\n".join(lines).strip()


def shown(value: object) -> str:
    """Return a default value as a program writes it."""
    text = str(value) if isinstance(value, StrEnum) else value
    return f'"{text}"' if isinstance(text, str) else repr(text)


def table_of_errors() -> str:
    """Return a table of the attributes of errors."""
    lines = ["| error | attribute | type | meaning |", "| --- | --- | --- | --- |"]
    for name, error in vars(errors).items():
        if not (isinstance(error, type) and issubclass(error, errors.TapsterError)):
            continue
        for field, (kind, meaning) in fields(error).items():
            if field == "fields":  # the names of the others
                continue
            assert meaning, (name, field)
            kind = kind.removesuffix(" | None")
            lines.append(f"| `{name}` | `{field}` | {kind} | {meaning} |")
    return "\n".join(lines)


BLOCKS = {
    "map": map_of_the_tree,
    "imports": table_of_imports,
    "promises": table_of_promises,
    "json": tables_of_json,
    "values": tables_of_values,
    "errors": table_of_errors,
}
PAGES = {
    "json": ROOT / "docs/json.md",
    "values": ROOT / "docs/values.md",
    "errors": ROOT / "docs/library.md",
}
"""The pages of blocks that are not in ARCHITECTURE.md."""


def block(name: str) -> str:
    """Return what stands between the two comments of a block."""
    text = PAGES.get(name, PAGE).read_text("utf-8")
    _, _, rest = text.partition(f"<!-- {name} -->\n")
    content, end, _ = rest.partition(f"\n<!-- /{name} -->")
    assert end, f"no block {name}"
    return content


def main() -> None:
    """Write every block, and the completion of fish."""
    for name, compute in BLOCKS.items():
        page = PAGES.get(name, PAGE)
        text = re.sub(
            rf"(?s)(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found: f"{found[1]}{compute()}\n{found[2]}",  # noqa: B023
            page.read_text("utf-8"),
        )
        page.write_text(text, "utf-8")
    fish.PAGE.write_text(fish.text(), "utf-8")


if __name__ == "__main__":
    main()
