# SPDX-License-Identifier: Apache-2.0
"""What a host keeps when it is rebooted in good order, and when its power is cut."""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from lab.host.debian import DebianHost
from tests.host.outside.ground import (
    BRIDGE,
    add_bridge,
    enable,
    leases,
    taps,
    wait_output,
)

VM = """\
[Unit]
After=bridge.service
[Service]
ExecStart=/usr/bin/tapster run --bridge br0 --owner vm --name vm%%d -- sleep infinity
[Install]
WantedBy=multi-user.target
"""

STORM = """
next="--bridge br0 --naming next --fin-wait 1"
storm() {
    n=0
    while :; do
        n=$((n + 1))
        name=$(tapster add $next --name 'n%d' --filter)
        echo $name
        test $((n % 3)) = 0 || tapster rm $name
        tapster run $next --name 'r%d' -- echo {name}
    done
}
storm & storm & wait
"""
WHOLE = 5
"""Of so many boots after a power cut one is a whole boot, with systemd and udev."""
INTEGRITY = """
import sqlite3
db = sqlite3.connect("/var/lib/tapster/ledger.db")
print(*db.execute("PRAGMA integrity_check").fetchone())
"""
STABLE = "tapster add --bridge br0 --name 's%d' --naming stable --key web"
NEXT = "tapster add --bridge br0 --name 'n%d' --naming next"


def number(name: str) -> int:
    return int(name[1:])


def test_a_reboot_ends_leases_and_keeps_names_and_counters(
    debian_host: DebianHost,
    times: int,
    record_property: Callable[[str, object], None],
) -> None:
    host = debian_host
    add_bridge(host)
    enable(host, "vm.service", VM)
    stable = host.sh(STABLE).strip()
    last = number(host.sh(NEXT).strip())
    for _ in range(times):
        before = leases(host)
        host.reboot()
        wait_output(host, "tapster ls", "vm0 .*active")
        assert set(leases(host)) == {"vm0"} == taps(host)
        assert leases(host)["vm0"]["id"] != before["vm0"]["id"]
        _assert_ended(host, before[stable])
        assert host.sh(STABLE).strip() == stable
        following = number(host.sh(NEXT).strip())
        assert following > last
        last = following
    record_property("reboots", times)


def test_a_power_cut_in_a_storm_loses_nothing_that_was_written(
    debian_host: DebianHost,
    times: int,
    record_property: Callable[[str, object], None],
) -> None:
    host = debian_host
    add_bridge(host)
    host.add_bare()
    written = {kind: _next(host, kind) for kind in "nr"}
    for turn in range(times):
        before = leases(host)
        # A power cut may lose what the kernel has not written back, and nothing else.
        host.sh("sync")
        _storm(host, names=1 + turn % 5)
        if turn % WHOLE == WHOLE - 1:
            host.boot()
        else:
            host.boot_bare()
            host.sh(BRIDGE)
        assert host.run("python3", "-c", INTEGRITY).stdout == "ok\n"
        host.sh("tapster recover")
        assert leases(host) == {}
        assert taps(host) == set()
        for lease in before.values():
            _assert_ended(host, lease)
        assert json.loads(host.sh("tapster doctor --json"))["problems"] == []
        for kind, last in written.items():
            written[kind] = _next(host, kind)
            assert written[kind] > last, "a name that was given out came again"
    record_property("power cuts in a storm", times)


def _assert_ended(host: DebianHost, lease: Mapping[str, Any]) -> None:
    """The history has the lease, and when it ended."""
    shown = json.loads(host.sh(f"tapster who --json {lease['name']}"))["entries"]
    (entry,) = (entry for entry in shown if entry["lease"] == lease["id"])
    assert entry["ended"]


def _next(host: DebianHost, kind: str) -> int:
    """Return the number that the next name of this kind has."""
    return number(host.sh(NEXT.replace("n%d", f"{kind}%d")).strip())


def _storm(host: DebianHost, *, names: int) -> None:
    """Take the power away after so many names."""
    enough = threading.Event()
    seen: list[bytes] = []

    def on_output(data: bytes) -> None:
        seen.append(data)
        if b"".join(seen).count(b"\n") >= names:
            enough.set()

    def storm() -> None:
        with suppress(EOFError, OSError, AssertionError):  # the host is off
            host.run("bash", "-c", STORM, on_output=on_output, timeout=600)
        enough.set()

    thread = threading.Thread(target=storm)
    thread.start()
    enough.wait()
    host.power_cut()
    thread.join()
    given = b"".join(seen).decode().splitlines()
    assert len(given) >= names, given
