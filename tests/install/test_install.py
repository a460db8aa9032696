# SPDX-License-Identifier: Apache-2.0
"""`make install`, the wheel and install-service place the same files."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from tapster.errors import RequestError
from tapster.install import place
from tapster.install.manifest import (
    CONFIGURATION,
    PROGRAMS,
    service_files,
    shared_files,
)

ROOT = Path(__file__).parents[2]


def files_below(directory: Path) -> set[str]:
    return {
        f"/{path.relative_to(directory)}"
        for path in directory.rglob("*")
        if not path.is_dir()
    }


def make(target: str, **variables: object) -> None:
    """Run the installer as the Makefile does, with the Python of this test."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--silent", target, f"PYTHON={sys.executable}", *settings]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_programs_start_at_the_same_place_however_they_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {
        name: f"{module}:{function}" for name, (module, function) in PROGRAMS.items()
    }


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/opt/tapster"])
def test_uninstall_removes_exactly_what_install_placed(
    tmp_path: Path, prefix: str
) -> None:
    foreign = tmp_path / prefix[1:] / "bin" / "other"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("a program of somebody else")
    policy = tmp_path / CONFIGURATION[1:]
    policy.parent.mkdir(parents=True)
    policy.write_text("the administrator's")
    before = files_below(tmp_path)
    make("install", DESTDIR=tmp_path, PREFIX=prefix)
    added = files_below(tmp_path) - before
    listed = {file.destination for file in shared_files(prefix) + service_files(prefix)}
    assert listed | {f"{prefix}/bin/{name}" for name in PROGRAMS} <= added
    make("uninstall", DESTDIR=tmp_path, PREFIX=prefix)
    assert files_below(tmp_path) == before
    assert (foreign.read_text(), policy.read_text()) == (
        "a program of somebody else",
        "the administrator's",
    )


def test_an_installed_program_runs_in_any_environment(
    tmp_path: Path,
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "argparse.py").write_text("raise SystemExit('the caller was imported')")
    make("install", DESTDIR=tmp_path, PREFIX="/usr")
    program = tmp_path / "usr/bin/tapster"
    library = place.library_directory("/usr")
    program.write_text(
        program.read_text().replace(f"'{library}'", f"'{tmp_path}{library}'")
    )
    shown = subprocess.run(
        [program, "--version"],
        cwd=trap,
        env={**os.environ, "PYTHONPATH": str(trap), "PYTHONSTARTUP": "nonsense"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("tapster ")


def test_installing_over_an_earlier_release_leaves_none_of_its_modules(
    tmp_path: Path,
) -> None:
    package = tmp_path / place.library_directory("/usr")[1:] / "tapster"
    package.mkdir(parents=True)
    (package / "removed_since.py").write_text("")
    make("install", DESTDIR=tmp_path, PREFIX="/usr")
    assert (package / "host.py").exists()
    assert not (package / "removed_since.py").exists()


def test_units_start_the_programs_of_their_own_installation(tmp_path: Path) -> None:
    place.place(service_files("/opt/venv"), "/opt/venv/bin", str(tmp_path))
    unit = (tmp_path / "etc/systemd/system/tapsterd.service").read_text()
    assert "ExecStart=/opt/venv/bin/tapsterd\n" in unit
    assert "/usr/bin/tapster" not in unit


def test_a_policy_is_made_once_and_never_overwritten(tmp_path: Path) -> None:
    assert place.place_configuration(str(tmp_path)) == CONFIGURATION
    path = tmp_path / CONFIGURATION[1:]
    path.write_text("mine")
    assert place.place_configuration(str(tmp_path)) is None
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("prefix", "destdir", "wrong"),
    [("usr", "", "PREFIX is 'usr'"), ("", "", "empty"), ("/usr", "x/", "DESTDIR")],
)
def test_a_relative_path_is_refused_before_anything_is_written(
    prefix: str, destdir: str, wrong: str
) -> None:
    with pytest.raises(RequestError, match=wrong):
        place.install(prefix, destdir, sys.executable)


@pytest.mark.slow
def test_the_wheel_carries_manual_pages_completions_and_units(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    build += ["--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    for path in (
        "data/share/man/man1/tapster.1",
        "data/share/man/man8/tapsterd.8",
        "data/share/man/man8/tapster-cni.8",
        "data/share/man/man8/tapster-qemu-bridge-helper.8",
        "data/share/bash-completion/completions/tapster",
        "data/share/fish/vendor_completions.d/tapster.fish",
        "data/share/zsh/site-functions/_tapster",
        "data/share/tapster/units/tapsterd.service",
    ):
        assert any(name.endswith(path) for name in names), path
    code = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith(("tapster/", "tapster-")) for name in code)


def test_the_alert_rules_fire_when_they_should() -> None:
    units = ROOT / "units"
    subprocess.run(["promtool", "check", "rules", "alerts.yml"], cwd=units, check=True)
    subprocess.run(
        ["promtool", "test", "rules", "alerts.test.yml"], cwd=units, check=True
    )
