# SPDX-License-Identifier: Apache-2.0
"""tapsterd under its own units: started by its socket, restarted, killed, fenced in."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.host.inside import world
from tests.host.inside.world import leases, links, run, sh, state, wait_until

SHOW = """
import subprocess, tapster
with tapster.connect() as client:
    device = client.acquire(tapster.Tap(bridge="br0", queues=2), vhost=True)
    with device:
        fds = device.fds + device.vhost_fds
        subprocess.run(["ls", "-l", "/proc/self/fd"], pass_fds=fds)
"""
AS_ANN = "setpriv --reuid=ann --regid=ann --init-groups"


def test_sysusers_and_tmpfiles_make_the_user_and_folders_of_the_daemon() -> None:
    assert "tapster" in sh("getent group kvm")
    assert sh("getent passwd tapster").split(":")[5] == "/var/lib/tapster"
    shown = sh("stat -c '%n %U %a' /etc/tapster /run/tapster /var/lib/tapster")
    assert shown.splitlines() == [
        "/etc/tapster root 755",
        "/run/tapster root 755",
        "/var/lib/tapster tapster 700",
    ]


def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    units = "/usr/lib/systemd/system/tapsterd.service", "tapsterd.socket"
    verify = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.usefixtures("service")
def test_systemd_computes_no_more_exposure_than_the_unit_states() -> None:
    unit = Path("/usr/lib/systemd/system/tapsterd.service").read_text()
    (stated,) = re.findall(r"exposure of ([0-9]+\.[0-9]+)", unit)
    shown = sh("systemd-analyze security --no-pager tapsterd.service")
    (computed,) = re.findall(r"exposure level for \S+ ([0-9.]+)", shown)
    assert float(computed) <= float(stated)


@pytest.mark.usefixtures("service")
def test_the_first_caller_starts_the_daemon_and_gets_a_device() -> None:
    assert state("tapsterd.service", "ActiveState") == "inactive"
    name = sh(f"{AS_ANN} tapster add --bridge br0 --owner web").strip()
    assert state("tapsterd.service", "ActiveState") == "active"
    shown = links()[name]
    assert shown["master"] == "br0"
    assert "UP" in shown["flags"]
    # The fence of the unit lets the daemon write this.
    assert sh(f"sysctl -n net.ipv6.conf.{name}.disable_ipv6").strip() == "1"
    sh(f"{AS_ANN} tapster rm --owner web {name}")
    wait_until(lambda: name not in links(), f"{name} is reaped")


@pytest.mark.usefixtures("service")
def test_a_broken_policy_is_an_error_of_each_caller_until_it_is_mended() -> None:
    policy = world.POLICY.read_text()
    world.POLICY.write_text("[[allow]\n")
    # With a limit, five quick failures would end the socket, too.
    assert state("tapsterd.service", "StartLimitIntervalUSec") == "0"
    for _ in range(2):
        done = run(f"{AS_ANN} tapster add --bridge br0")
        assert done.returncode == 1
        assert "tapsterd cannot start: its configuration" in done.stderr
    world.POLICY.write_text(policy)
    sh(f"{AS_ANN} tapster add --bridge br0")


@pytest.mark.usefixtures("service")
def test_the_daemon_has_each_capability_that_a_feature_needs() -> None:
    sh(f"{AS_ANN} tapster ls")
    sh("journalctl --sync")
    assert "event=lacking" not in sh("journalctl --unit tapsterd --boot")


@pytest.mark.usefixtures("service")
def test_the_journal_has_each_event_with_its_lease() -> None:
    name = sh(f"{AS_ANN} tapster add --bridge br0 --owner web").strip()
    lease = leases(f"{AS_ANN} tapster ls --json")[name]
    sh("journalctl --sync")
    shown = sh("journalctl --unit tapsterd --output json --boot")
    lines = [json.loads(line)["MESSAGE"] for line in shown.splitlines()]
    assert [line for line in lines if lease["id"] in line], lines


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("how", ["restart", "kill", "stop"])
def test_devices_outlive_the_daemon_and_their_leases_go_on(how: str) -> None:
    name = sh(f"{AS_ANN} tapster add --bridge br0 --fin-wait 1").strip()
    before = links()[name]
    pid = state("tapsterd.service", "MainPID")
    match how:
        case "restart":
            sh("systemctl restart tapsterd.service")
        case "kill":
            sh(f"systemctl kill --signal {signal.SIGKILL.name} tapsterd.service")
        case "stop":
            sh("systemctl stop tapsterd.service")
    # The socket stayed: this caller waits for the daemon, or starts it.
    assert set(leases(f"{AS_ANN} tapster ls --json")) == {name}
    assert state("tapsterd.service", "MainPID") != pid
    after = links()[name]
    assert (after["ifindex"], after["master"]) == (before["ifindex"], "br0")
    sh(f"{AS_ANN} tapster rm {name}")
    wait_until(lambda: name not in links(), f"{name} is reaped")


@pytest.mark.usefixtures("service")
def test_a_caller_gets_descriptors_of_the_taps_queues_and_of_vhost() -> None:
    shown = sh(f"{AS_ANN} python3 -c '{SHOW}'")
    assert shown.count("/dev/net/tun") == 2
    assert shown.count("/dev/vhost-net") == 2


@pytest.mark.usefixtures("service")
def test_filters_and_rates_work_inside_the_fence_of_the_unit() -> None:
    wiring = "--filter --inbound 1000:2000:512 --outbound 1000:2000:512"
    name = sh(f"{AS_ANN} tapster add --bridge br0 {wiring}").strip()
    index = links()[name]["ifindex"]
    assert str(index) in sh("nft list ruleset") or name in sh("nft list ruleset")
    (root,) = (
        qdisc
        for qdisc in json.loads(sh(f"tc -j qdisc show dev {name}"))
        if qdisc.get("root")
    )
    assert root["kind"] == "htb"
    sh(f"{AS_ANN} tapster rm {name}")


@pytest.mark.usefixtures("service")
def test_a_macvtap_is_opened_inside_the_fence_of_the_unit() -> None:
    rule = 'groups = ["kvm"]\nkinds = ["macvtap"]\nlower = ["v0"]\ndevices = 4\n'
    world.POLICY.write_text(f"[[allow]]\n{rule}")
    sh("ip link add v0 up type veth peer name v1")
    try:
        show = "stat -L -c %t /proc/self/fd/{fd}"
        shown = sh(f"{AS_ANN} tapster run --link v0 -- {show}")
        drivers = Path("/proc/devices").read_text()
        (major,) = re.findall(r"(\d+) macvtap", drivers)
        assert shown.strip() == f"{int(major):x}"
    finally:
        sh("ip link del v0")
