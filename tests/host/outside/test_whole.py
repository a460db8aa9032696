# SPDX-License-Identifier: Apache-2.0
"""Clock steps, a full disk, suspend: what happens to a host as a whole."""

import json

from lab.host.debian import DebianHost
from tests.host.outside.ground import add_bridge, leases, taps, wait_gone


def test_steps_of_the_clock_change_no_wait(debian_host: DebianHost) -> None:
    host = debian_host
    add_bridge(host)
    for step in ("+1 day", "-2 days"):
        name = host.sh("tapster add --bridge br0 --fin-wait 3").strip()
        host.sh(f"tapster rm {name}; date --set '{step}'")
        wait_gone(host, name)
    host.sh("tapster reap")
    assert leases(host) == {}
    assert json.loads(host.sh("tapster doctor --json"))["problems"] == []


def test_a_full_disk_is_named_and_leaves_nothing(debian_host: DebianHost) -> None:
    host = debian_host
    add_bridge(host)
    first = host.sh("tapster add --bridge br0 --fin-wait 1").strip()
    host.sh("fallocate -l $(df --output=avail -B1 / | tail -1) /fill || :")
    host.sh("dd if=/dev/zero of=/fill2 bs=64k 2>/dev/null || :; sync")
    host.sh("dd if=/dev/zero of=/fill3 bs=1k 2>/dev/null || :")
    refused = []
    for _ in range(200):  # until the file of the ledger has to grow
        done = host.run(
            "tapster", "add", "--bridge", "br0", "--fin-wait", "1", check=False
        )
        if done.status:
            refused.append(done.stderr)
            break
    assert refused, "the disk is full, and 200 leases were recorded"
    assert "Traceback" not in refused[0]
    assert "full" in refused[0], refused
    host.sh("rm /fill /fill2 /fill3; tapster recover")
    assert taps(host) == set(leases(host))
    assert first in taps(host)
    host.sh("tapster add --bridge br0")


def test_devices_and_waits_survive_suspend(debian_host: DebianHost) -> None:
    host = debian_host
    add_bridge(host)
    name = host.sh("tapster add --bridge br0").strip()
    waiting = host.sh("tapster add --bridge br0 --fin-wait 5").strip()
    host.sh(f"tapster rm {waiting}")
    sleep = "echo mem > /sys/power/state"
    host.sh(f"systemd-run --quiet --no-block bash -c '{sleep}'")
    host.qmp.wait_for("SUSPEND")
    host.qmp.command("system_wakeup")
    wait_gone(host, waiting)
    (shown,) = json.loads(host.sh(f"ip -j link show {name}"))
    assert (shown["master"], "UP" in shown["flags"]) == ("br0", True)
    assert set(leases(host)) == {name}
