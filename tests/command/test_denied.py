# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses is named: the operation, the privilege, and how to get it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from lab import iproute, shell

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.usefixtures("world", "own_ledger"),
]

BARE = ("Operation not permitted", "Permission denied", "Function not implemented")
VERBS = [
    "add --bridge br0",
    "add --link low",
    "add --bridge br0 --filter",
    "add --bridge br0 --inbound 1000",
    "add --netns pod",
    "run --bridge br0 -- true {fd}",
    "run --link low -- true {fd}",
    "open --owner mac vnet1 -- true",
    "set --owner web --mtu 1400 vnet0",
    "ls",
    "show --owner web",
    "recover",
    "doctor",
    "reap --now",
    "rm --owner web",
]
IN_USER_NAMESPACE = "unshare --user --map-root-user"


@pytest.fixture(autouse=True)
def leases(world: None, own_ledger: None) -> None:
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    shell.sh("ip link set far up")  # or doctor says that the cable is out
    shell.sh("ip netns add pod")
    shell.sh(f"{shell.TAPSTER} add --bridge br0 --owner web")
    shell.sh(f"{shell.TAPSTER} add --link low --owner mac")


def say(wrapper: str, verb: str) -> subprocess.CompletedProcess[str]:
    command = [*wrapper.split(), shell.TAPSTER, *verb.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("capability", ["net_admin", "sys_admin", "mknod"])
def test_a_missing_capability_is_named_by_every_verb(capability: str) -> None:
    wrapper = f"setpriv --bounding-set -{capability}"
    for verb in VERBS:
        done = say(wrapper, verb)
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert not any(text in done.stderr for text in BARE), (verb, done.stderr)
        if done.returncode and verb != "doctor":
            named = f"CAP_{capability.upper()}: give it to the container or the unit"
            assert named in done.stderr, (verb, done.stderr)


def test_no_other_capability_is_needed() -> None:
    others = "-dac_override,-net_raw,-sys_ptrace,-bpf,-chown,-kill,-ipc_lock"
    for verb in VERBS:
        done = say(f"setpriv --bounding-set {others}", verb)
        said = done.stderr.replace("nothing is wrong\n", "")
        assert (done.returncode, said) == (0, ""), verb


@pytest.mark.parametrize("network", ["", " --net"])
def test_a_user_namespace_is_named_as_what_lacks_the_privilege(network: str) -> None:
    if network:  # its own network namespace has nothing of the other one
        make = "ip link add low up type veth peer name far"
        wrapper = f"{IN_USER_NAMESPACE}{network} --mount"
        new = Path("/run/new.db")
        script = f"{make} && exec {shell.TAPSTER} --ledger {new}"
        for verb, named in (
            ("add --link low", "CAP_MKNOD outside of this user namespace"),
            ("doctor", "CAP_MKNOD outside of this user namespace is missing"),
        ):
            command = [*wrapper.split(), "sh", "-c", f"{script} {verb}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 1, done
            assert named in done.stdout + done.stderr
            assert not any(text in done.stderr for text in BARE), done.stderr
        return
    for verb in VERBS:
        done = say(IN_USER_NAMESPACE, verb)
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert not any(text in done.stderr for text in BARE), (verb, done.stderr)
        if done.returncode and verb != "doctor":
            assert "of this user namespace" in done.stderr, (verb, done.stderr)
    assert "vnet0" in iproute.ports()


@pytest.mark.parametrize(
    ("call", "verb", "named"),
    [
        ("fsopen", "add --link low", "opening macvtap"),
        ("setns", "add --netns pod", "entering network namespace"),
    ],
)
def test_an_error_tells_a_forbidden_system_call_from_a_missing_privilege(
    call: str, verb: str, named: str
) -> None:
    """As a container's seccomp profile does, with EPERM or ENOSYS."""
    for errno, said in (
        ("EPERM", "a security module, a seccomp filter"),
        ("ENOSYS", "the kernel lacks a system call, or a seccomp filter forbids it"),
    ):
        done = say(f"strace -f -qq -o /dev/null -e inject={call}:error={errno}", verb)
        assert done.returncode == 1, done
        assert named in done.stderr
        assert said in done.stderr


def test_no_device_of_a_refused_start_is_left() -> None:
    before = set(iproute.links())
    done = say("setpriv --bounding-set -mknod", "add --link low")
    assert done.returncode == 1
    assert set(iproute.links()) == before
    leases = json.loads(say("", "ls --all --json").stdout)["leases"]
    assert {lease["name"] for lease in leases} == {"vnet0", "vnet1"}
    assert os.path.exists("/dev/net/tun")
