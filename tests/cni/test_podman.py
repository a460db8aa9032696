# SPDX-License-Identifier: Apache-2.0
"""Real podman: a container opens the tap that the plugin made in it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from lab import iproute
from lab.shell import sh
from tapster import Host
from tests.cni.plugin import PLUGINS, Plugin

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

HOLDER = Path(__file__).with_name("holder.c")


class Podman:
    """podman with its CNI backend, and with all its files in one folder."""

    def __init__(self, folder: Path, network: dict[str, object]) -> None:
        plugins, networks = folder / "plugins", folder / "networks"
        self.rootfs = folder / "rootfs"
        for made in (plugins, networks, *self._folders()):
            made.mkdir(parents=True)
        sh(f"gcc -static -Wall -Werror -o {self.rootfs}/bin/holder {HOLDER}")
        for name in ("host-local", "loopback"):
            (plugins / name).symlink_to(f"{PLUGINS}/{name}")
        network = {"cniVersion": "1.0.0", "name": "net", "plugins": [network]}
        (networks / "net.conflist").write_text(json.dumps(network))
        settings = folder / "containers.conf"
        settings.write_text(
            f"""
            [network]
            network_backend = "cni"
            cni_plugin_dirs = ["{plugins}"]
            network_config_dir = "{networks}"
            [engine]
            cgroup_manager = "cgroupfs"
            events_logger = "file"
            """
        )
        self.plugins = plugins
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
        self._command = ["podman", "--storage-driver", "vfs"]
        for option in ("root", "runroot", "tmpdir"):
            self._command += [f"--{option}", str(folder / option)]

    def _folders(self) -> list[Path]:
        return [self.rootfs / name for name in ("bin", "dev", "etc", "proc", "sys")]

    def run(self, *arguments: str) -> str:
        """Run podman; return what it prints. Fails the test if podman fails."""
        done = subprocess.run(
            [*self._command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start podman, with its output in a pipe."""
        return subprocess.Popen(
            [*self._command, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    def has_cni(self) -> bool:
        """Say whether this podman was built with its CNI backend."""
        done = subprocess.run(
            [*self._command, "network", "ls"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or "not enabled in this build" in done.stderr
        return done.returncode == 0


@pytest.fixture
def podman(plugin: Plugin) -> Podman:
    network = plugin.configuration(
        ledger=str(plugin.ledger),
        ipam={
            "type": "host-local",
            "ranges": [[{"subnet": "192.0.2.0/24"}]],
            "dataDir": str(plugin.addresses),
        },
    )
    del network["cniVersion"], network["name"]
    sh("mount -t cgroup2 cgroup2 /sys/fs/cgroup")  # crun looks at it
    # podman wants short paths. This /run is the test's own.
    podman = Podman(Path("/run/podman"), network)
    if not podman.has_cni():
        pytest.skip("this podman has no CNI backend")
    program = podman.plugins / "tapster-cni"
    program.write_text(f'#!/bin/sh\nexec {" ".join(plugin.command)} "$@"\n')
    program.chmod(0o755)
    return podman


def test_a_container_holds_the_tap(plugin: Plugin, podman: Podman) -> None:
    container = podman.start(
        *("run", "--name", "vm", "--network", "net"),
        *("--device", "/dev/net/tun", "--cgroups", "disabled"),
        # The container gets no more than the test has.
        *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
        *("--security-opt", "seccomp=unconfined"),
        *("--rootfs", str(podman.rootfs), "/bin/holder", "eth0"),
    )
    assert container.stdout is not None
    assert container.stdout.readline() == "open\n"
    with Host(plugin.ledger) as host:
        (lease,) = host.leases()
        device = host.device(lease)
        assert device is not None
        assert device.open
    (shown,) = json.loads(podman.run("inspect", "vm"))
    network = shown["NetworkSettings"]["Networks"]["net"]
    assert network["MacAddress"] == lease.mac
    assert network["IPAddress"] == "192.0.2.2"
    netns = shown["NetworkSettings"]["SandboxKey"].rpartition("/")[2]
    assert iproute.links(netns).keys() == {"lo", "eth0"}

    podman.run("rm", "--force", "--time", "0", "vm")
    container.communicate(timeout=60)
    assert not plugin.reserved()
    with Host(plugin.ledger) as host:
        assert not host.leases()
