# SPDX-License-Identifier: Apache-2.0
"""The completions, tried out in real shells.

Fish says what it would offer; its file is computed from the parser of the command. Bash
and zsh type on a terminal of their own.

A key puts everything that the shell would offer into the line at once; then the
line is run, and what is called `tapster` there says which words it was given.
"""

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.reapers import kill_reapers
from tapster import cli
from tapster.cli import nic
from tapster.cli.parser import Parser
from tests.repo import fish
from tests.repo.test_manual import options_of

pytestmark = pytest.mark.kernel

COMPLETIONS = Path(__file__).parents[2] / "completions"

# The shells' way to insert all matches: insert-completions in readline(3),
# _all_matches in zshcompsys(1).
START = {
    "bash": f"""
        source {shlex.quote(str(COMPLETIONS))}/tapster.bash
        bind '"\\C-t": insert-completions'
        PS1='ready> '
    """,
    "zsh": f"""
        fpath=({shlex.quote(str(COMPLETIONS))} $fpath)
        autoload -Uz compinit
        compinit -u -D
        zle -C all-matches complete-word _generic
        zstyle ':completion:all-matches:*' completer _all_matches _complete
        zstyle ':completion:all-matches:*' insert yes
        bindkey '^T' all-matches
        PROMPT='ready> '
    """,
}
COMMAND = {
    "bash": ["bash", "--noprofile", "--rcfile", "start", "-i"],
    "zsh": ["zsh", "--no-globalrcs", "-i"],
}
TAPSTER = r"""
tapster() { printf '\1'; printf '%s\2' "$@"; printf '\3'; }
"""

WORLD = """
mount -t tmpfs tmpfs /run
for bridge in br0 br1; do ip link add $bridge type bridge; done
ip link add near type veth peer name far
ip link set near up
ip link set far up
ip netns add blue
ip -n blue link add br2 type bridge
tapster add --bridge br0 --owner web
tapster add --link near
tapster rm $(tapster add --id --fin-wait 1h)
mkfifo running
tapster run --owner db -- sh -c 'exec cat running' {fd} &
exec 8>running
tapster ls --all --json >leases
touch 'some file'
mkdir bin
install -m 755 /dev/null bin/some-vm
PATH=$PWD/bin:$PATH
exec "$@"
"""


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a shell."""
    return {
        "HOME": str(home),
        "INPUTRC": "/dev/null",
        "LC_ALL": "C",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TAPSTER_LEDGER": str(home / "ledger.db"),
        "TERM": "dumb",
    }


IN_WORLD = ["unshare", "--net", "--mount", "sh", "-euc", WORLD, "sh"]


FISH = r"""
printf '\3'
while read line
    complete -C "tapster $line" 2>&1
    printf '\3'
end
"""


class Fish:
    """A fish in the world above, asked what it would offer."""

    shown = ""

    def __init__(self, home: Path, *wrapper: str) -> None:
        self.home = home
        page = shlex.quote(str(fish.PAGE))
        self.process = subprocess.Popen(
            [
                *IN_WORLD,
                *wrapper,
                "fish",
                "--no-config",
                "-c",
                f"source {page}; {FISH}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=environment(home),
        )
        self._answer()

    def offers(self, line: str) -> set[str]:
        """Return what fish offers for the last word of `tapster LINE`."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        *_, last = shlex.split(f"{line}''")
        found = self._answer().splitlines()
        return {candidate.partition("\t")[0] for candidate in found} - {last}

    def _answer(self) -> str:
        assert self.process.stdout
        answer = ""
        while not answer.endswith("\3"):
            letter = self.process.stdout.read(1)
            assert letter, answer
            answer += letter
        return answer[:-1]

    def close(self) -> None:
        """Let the shell end."""
        self.process.communicate()


class Shell:
    """An interactive shell in the world above."""

    shown: str
    """What the terminal showed between the typing of a line and its running."""

    def __init__(self, name: str, home: Path, *wrapper: str) -> None:
        start = START[name] + TAPSTER
        (home / "start").write_text(start)
        (home / ".zshrc").write_text(start)
        self.home = home
        self.screen = ""
        self.terminal, end = pty.openpty()
        self.process = subprocess.Popen(
            [*IN_WORLD, *wrapper, *COMMAND[name]],
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            cwd=home,
            env=environment(home),
        )
        os.close(end)

    def offers(self, line: str) -> set[str]:
        """What the shell offers for the last word of `tapster LINE`."""
        self._read_to("ready> ")
        os.write(self.terminal, f"tapster {line}\x14\r".encode())
        self.shown = self._read_to("\1")
        *given, _ = self._read_to("\3").split("\2")
        *typed, last = shlex.split(f"{line}''")
        assert given[: len(typed)] == typed
        return set(given[len(typed) :]) - {last}

    def close(self) -> None:
        """Kill the shell."""
        os.close(self.terminal)
        self.process.kill()
        self.process.wait()

    def _read_to(self, mark: str) -> str:
        while mark not in self.screen:
            try:
                self.screen += os.read(self.terminal, 4096).decode("ascii", "replace")
            except OSError as error:  # that is how a terminal ends
                raise AssertionError(self.screen) from error
        before, _, self.screen = self.screen.partition(mark)
        return before


@contextmanager
def running(name: str, home: Path, *wrapper: str) -> Iterator[Shell | Fish]:
    if name == "fish":
        shell: Shell | Fish = Fish(home, *wrapper)
    else:
        shell = Shell(name, home, *wrapper)
    try:
        yield shell
    finally:
        shell.close()
        kill_reapers(home / "ledger.db")


def leases(shell: Shell | Fish) -> list[dict[str, str]]:
    """Return the leases of the world, when the shell is ready."""
    shell.offers("ls")
    found: list[dict[str, str]]
    found = json.loads((shell.home / "leases").read_text())["leases"]
    return found


@pytest.fixture(scope="module", params=[*COMMAND, "fish"])
def shell(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shell | Fish]:
    with running(request.param, tmp_path_factory.mktemp("home")) as shell:
        yield shell


def test_every_verb_is_offered(shell: Shell | Fish) -> None:
    assert shell.offers("") == set(cli.VERBS)
    assert shell.offers("rec") == {"recover"}
    assert shell.offers("--ledger x rec") == {"recover"}


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_every_option_of_a_verb_is_offered(shell: Shell | Fish, verb: str) -> None:
    declared = {one for one in options_of(verb) if one.startswith("--")}
    assert shell.offers(f"{verb} --") == declared
    if verb:
        assert shell.offers(f"--ledger x {verb} --led") == {"--ledger"}


def test_the_values_of_an_option_are_offered(shell: Shell | Fish) -> None:
    """Of options that take one of a few; after any other, no options are offered.

    Fish itself offers options for every word that begins with a dash.
    """
    for verb in cli.VERBS:
        for option, action in options_of(verb).items():
            choices = set(action.choices or ())
            if choices:
                assert shell.offers(f"{verb} {option} ") == choices
                equal = shell.offers(f"{verb} {option}=")
                assert {one.removeprefix(f"{option}=") for one in equal} == choices
            if isinstance(shell, Shell) and action.nargs is None and option != "-h":
                assert shell.offers(f"{verb} {option} --") == set()


def test_the_properties_of_a_nic_are_offered(shell: Shell | Fish) -> None:
    parser = Parser(add_help=False)
    nic.declare(parser)
    assert shell.offers("run --nic ") == {
        action.option_strings[0].removeprefix("--") + ("" if action.nargs == 0 else "=")
        for action in parser._actions
    }
    assert shell.offers("run --nic mac=52:54:00:00:00:01,qu") == {
        "mac=52:54:00:00:00:01,queues="
    }
    assert shell.offers("run --nic isolated,naming=n") == {"isolated,naming=next"}
    assert shell.offers("run --nic=mtu=1400,bridge=br0,kind=m") == {
        "--nic=mtu=1400,bridge=br0,kind=macvtap"
    }


def test_only_devices_to_build_on_are_offered(shell: Shell | Fish) -> None:
    assert shell.offers("add --bridge ") == {"br0", "br1"}
    up = {"near", "far", "vnet0", "vnet1", "vnet3"}
    assert shell.offers("add --link ") == up
    assert shell.offers("add --netns blue --bridge ") == {"br2"}
    assert shell.offers("add --netns=blue --bridge=b") == {"--bridge=br2"}


def test_network_namespaces_are_offered(shell: Shell | Fish) -> None:
    assert shell.offers("rm --netns ") == {"blue"}
    assert shell.offers("rm --netns bin/some") == {"bin/some-vm"}  # or any path


def test_leases_are_offered_where_a_lease_is_meant(shell: Shell | Fish) -> None:
    found = {lease["name"]: lease["id"] for lease in leases(shell)}
    names, ids = set(found), set(found.values())
    assert names == {"vnet0", "vnet1", "vnet2", "vnet3"}
    assert shell.offers("show ") == names | ids
    assert shell.offers("ls vnet1 vnet") == names
    assert shell.offers("who ") == shell.offers("events ") == names


@pytest.mark.parametrize("verb", ["rm", "set", "take", "open", "reap"])
def test_leases_that_a_verb_would_refuse_are_not_offered(
    shell: Shell | Fish, verb: str
) -> None:
    """Of an owner without the owner, in another state, open where that matters."""
    found = {lease["name"]: lease["id"] for lease in leases(shell)}
    if verb == "reap":
        accepted = {"vnet2", found["vnet2"]}
        owned = set()
    else:
        accepted = {"vnet1", *(found[name] for name in ("vnet0", "vnet1", "vnet3"))}
        owned = {"vnet0", found["vnet0"]}
    if verb == "open":
        accepted.remove(found["vnet3"])
    assert shell.offers(f"{verb} ") == accepted
    assert shell.offers(f"{verb} --owner web ") == owned
    assert shell.offers(f"{verb} --owner=web ") == owned
    assert shell.offers(f"{verb} --owner nobody ") == set()
    assert shell.offers(f"{verb} --netns blue ") == set()
    assert shell.offers(f"--ledger new.db {verb} ") == set()
    assert not (shell.home / "new.db").exists()
    assert shell.offers(f"--ledger ledger.db {verb} ") == accepted


def test_users_and_groups_are_offered(shell: Shell | Fish) -> None:
    assert "root" in shell.offers("add --user roo")
    assert "root" in shell.offers("run --group roo")


def test_files_are_offered_where_a_file_is_meant(shell: Shell | Fish) -> None:
    assert shell.offers("ls --ledger some") == {"some file"}
    assert shell.offers("--ledger=some") == {"--ledger=some file"}


def test_commands_are_offered_where_a_command_is_meant(shell: Shell | Fish) -> None:
    assert shell.offers("run -- some") == {"some-vm"}
    assert shell.offers("run --bridge=br0 -- some-vm some") == {"some file"}
    assert shell.offers("run --bridge br0 -- some-vm --led") == set()
    assert shell.offers("open vnet0 --owner=x -- some") == {"some-vm"}


def test_bash_completion_takes_over_for_the_command() -> None:
    """Its _command_offset is told where the command is, however words were split."""
    script = r"""
        source "$1"
        _command_offset() { COMPREPLY=("from $1"); }
        COMP_WORDS=(tapster run --bridge = br0 -- some-vm '') COMP_CWORD=7
        _tapster tapster
        printf %s "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", COMPLETIONS / "tapster.bash"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("from 6", "")


@pytest.mark.parametrize("name", [*COMMAND, "fish"])
def test_completion_needs_no_privilege(name: str, tmp_path: Path) -> None:
    """And what cannot be found without is passed over in silence."""
    unprivileged = ("setpriv", "--bounding-set", "-net_admin,-sys_admin")
    with running(name, tmp_path, *unprivileged) as shell:
        assert shell.offers("ls vnet") == {f"vnet{number}" for number in range(4)}
        assert shell.offers("rm ") == set()
        assert shell.offers("add --bridge ") == {"br0", "br1"}
        assert shell.offers("add --netns blue --bridge ") == set()
        assert "failed" not in shell.shown
