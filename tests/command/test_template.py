# SPDX-License-Identifier: Apache-2.0
"""`tapster run --template`: configuration files that end with their VM."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from lab import iproute, shell

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

USER = 61001


class Files:
    """A template and where it goes, for the commands of a test."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output = folder / "in.json", folder / "out.json"
        self.environment = {**os.environ, "TAPSTER_LEDGER": str(folder / "ledger.db")}

    def run(
        self, text: str, *words: str, script: str = "cat {}", status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a script, in which {} is the filled-in file."""
        self.source.write_text(text)
        done = subprocess.run(
            [
                *(shell.TAPSTER, "run", "--bridge", "br0", "--fin-wait", "0"),
                *("--template", f"{self.source}={self.output}", *words),
                *("--", "sh", "-c", script.replace("{}", str(self.output))),
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done
        return done


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_template_is_filled_in_while_the_command_runs(files: Files) -> None:
    text = '{"host_dev_name": "{name}", "guest_mac": "{mac}", "as is": "{{mac}"}'
    done = files.run(text, "--mac", "52:54:00:00:00:07")
    assert json.loads(done.stdout) == {
        "host_dev_name": "vnet0",
        "guest_mac": "52:54:00:00:00:07",
        "as is": "{mac}",
    }
    assert not files.output.exists()
    assert files.source.read_text() == text


def test_it_is_for_the_user_of_the_device_alone(files: Files) -> None:
    done = files.run("", "--user", str(USER), script="stat -c '%a %u' {}")
    assert done.stdout == f"600 {USER}\n"


def test_several_devices_and_several_templates(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{name1} {name}")
    words = ["--nic", "name=a%d", "--nic", "name=b%d"]
    words += ["--template", f"{other}={other}.out"]
    done = files.run("{name0} {name1}", *words, script=f"cat {{}} {other}.out")
    assert done.stdout == "a0 b0b0 a0"
    assert not Path(f"{other}.out").exists()


def test_a_descriptor_that_only_a_template_names_is_open(files: Files) -> None:
    done = files.run("{fd}", script="readlink /proc/self/fd/$(cat {})")
    assert done.stdout == "/dev/net/tun\n"


def test_every_byte_of_a_template_comes_through(files: Files, tmp_path: Path) -> None:
    raw = bytes(range(256)) * 3
    files.run("", script="true")
    source = tmp_path / "raw"
    source.write_bytes(raw)
    copy = tmp_path / "copy"
    files.run("", f"--template={source}={copy}", script=f"cat {copy} >{copy}.kept")
    assert Path(f"{copy}.kept").read_bytes() == raw


@pytest.mark.parametrize("script", ["exit 3", "kill -KILL $$"])
def test_the_file_goes_however_the_command_ends(files: Files, script: str) -> None:
    files.run("x", script=script, status=3 if "exit" in script else 137)
    assert not files.output.exists()


def test_what_another_program_put_there_stays(files: Files) -> None:
    files.run("x", script="rm {}; echo kept >{}")
    assert files.output.read_text() == "kept\n"


def test_what_a_killed_run_left_is_replaced(files: Files) -> None:
    files.output.write_text("old")
    files.output.chmod(0o644)
    done = files.run("new", script="cat {}; stat -c %a {}")
    assert done.stdout == "new600\n"


def test_a_link_is_replaced_and_not_followed(files: Files, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    files.output.symlink_to(target)
    done = files.run("new", script="cat {}")
    assert done.stdout == "new"
    assert target.read_text() == "kept"


def test_a_command_in_the_background_keeps_the_file(files: Files) -> None:
    done = files.run("x", script="sleep 1000 >/dev/null 2>&1 & echo $!")
    assert stat.S_IMODE(files.output.stat().st_mode) == 0o600
    os.kill(int(done.stdout), 9)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("x", "--template 'x' is not IN=OUT"),
        ("=x", "--template '=x' is not IN=OUT"),
        ("/nowhere/x=y", "--template '/nowhere/x': No such file or directory"),
        ("/etc=y", "--template '/etc': Is a directory"),
        ("{source}={source}", "--template would write over itself"),
        ("{source}={output}", "is written twice"),
        ("{source}=/nowhere/x", "writing '/nowhere/x': No such file or directory"),
        ("{numbered}=x", "{name1} in the template of"),
    ],
)
def test_a_wrong_template_makes_no_device(
    files: Files, tmp_path: Path, option: str, reason: str
) -> None:
    numbered = tmp_path / "numbered"
    numbered.write_text("{name1}")
    option = option.replace("{source}", str(files.source))
    option = option.replace("{output}", str(files.output))
    option = option.replace("{numbered}", str(numbered))
    done = files.run("x", "--template", option, status=125)
    assert reason in done.stderr
    assert not files.output.exists()
    assert not iproute.ports()
