# SPDX-License-Identifier: Apache-2.0
"""Each module imports what its room may import, and nothing else."""

import importlib.util

import pytest

from tests.repo.rooms import KEEPERS, PUBLIC, PURE, ROOMS, Keeper, room_of
from tests.repo.tree import IMPORTS, MODULES, imports, inside


@pytest.mark.parametrize("module", MODULES)
def test_each_room_imports_only_what_it_may(module: str) -> None:
    room = room_of(module)
    ours = {name for name in IMPORTS[module] if inside(name, "tapster")}
    ours -= {"tapster.light"}  # it stands for Python's own typing
    wrong = {name for name in ours if not inside(name, room.name, *room.may)}
    if room is PUBLIC:
        wrong = ours - set(room.may)
    assert not wrong, f"{module}: {room.why}"


@pytest.mark.parametrize("module", PURE)
def test_pure_rooms_import_nothing_that_has_effects(module: str) -> None:
    python = {name for name in IMPORTS[module] if not inside(name, "tapster")}
    assert python <= PURE[module]


@pytest.mark.parametrize("top", ["tapster.cli", "tapster.testing"])
def test_nothing_imports_what_stands_on_top(top: str) -> None:
    users = {
        module
        for module, names in IMPORTS.items()
        if any(inside(name, top) for name in names)
    }
    assert users
    assert all(inside(user, top, "tapster.__main__") for user in users)


@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda keeper: keeper.name)
def test_a_rooms_own_modules_are_imported_nowhere_else(keeper: Keeper) -> None:
    users = {
        module
        for module, names in IMPORTS.items()
        if any(inside(name, keeper.name) for name in names)
    }
    assert all(inside(user, *keeper.rooms) for user in users), keeper.why


def test_the_tables_name_only_what_exists() -> None:
    rooms = {room.name for room in ROOMS} | {name for r in ROOMS for name in r.may}
    keepers = {name for keeper in KEEPERS for name in keeper.rooms}
    for name in rooms | keepers | set(PURE) | set(PUBLIC.may):
        assert any(inside(module, name) for module in MODULES), name
    assert all(importlib.util.find_spec(keeper.name) for keeper in KEEPERS)


def test_every_allowance_is_used() -> None:
    for room in [*ROOMS, PUBLIC]:
        used = {name for m in MODULES if room_of(m) == room for name in IMPORTS[m]}
        for allowed in room.may:
            assert any(inside(name, allowed) for name in used), (room.name, allowed)
    for keeper in KEEPERS:
        for name in keeper.rooms:
            used = {i for m in MODULES if inside(m, name) for i in IMPORTS[m]}
            assert any(inside(one, keeper.name) for one in used), (keeper.name, name)


def test_the_walk_sees_every_kind_of_import() -> None:
    code = """
import os.path, fcntl as f
from tapster.kernel import linux
from tapster.kernel.port import Kernel
def function():
    import socket
    if TYPE_CHECKING:
        from tapster import cli, Host
"""
    assert imports(code) == {
        "os.path",
        "fcntl",
        "tapster.kernel.linux",
        "tapster.kernel.port",
        "socket",
        "tapster.cli",
        "tapster",
    }
