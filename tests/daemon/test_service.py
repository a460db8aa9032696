# SPDX-License-Identifier: Apache-2.0
"""What tapsterd does for callers that may do nothing by themselves."""

import fcntl
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster
from lab import iproute, library, shell
from lab.daemon import ALICE, BOB, POLICY, Daemon, as_user, companion
from lab.reapers import wait_for
from tapster import (
    BadName,
    Client,
    ConflictError,
    Host,
    LeaseBusy,
    Macvtap,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    NotAllowed,
    QuotaExceeded,
    RequestError,
    State,
    Tap,
    Wiring,
)
from tapster.daemon.upkeep import MOST_FOREIGN_MACS, TAKEN_OFF

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

TUNGETIFF = 0x800454D2
TUNSETOWNER = 0x400454CC
ARPHRD_ETHER, SIOCSIFHWADDR = 1, 0x8924
BR0 = Tap(bridge="br0")


def shown() -> dict[str, tuple[object, ...]]:
    """The attributes of each device that could hurt its VM, as `ip` shows them."""
    fields = ("ifindex", "master", "ifalias", "address", "mtu")
    return {
        name: (*(link.get(field) for field in fields), "UP" in link["flags"])
        for name, link in iproute.links().items()
    }


def name_behind(fd: int) -> str:
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    name: bytes = struct.unpack("16sH22x", answer)[0]
    return name.rstrip(b"\0").decode()


def test_a_user_without_privileges_gets_an_open_tap_on_a_bridge(alice: Client) -> None:
    opened = alice.acquire(Tap(bridge="br0", owner="vm1", queues=2))
    lease = opened.lease
    assert (lease.state, lease.owner, lease.caller_uid) == (State.ACTIVE, "vm1", ALICE)
    assert [name_behind(fd) for fd in opened.fds] == ["vnet0"] * 2
    assert not any(os.get_inheritable(fd) for fd in opened.fds)
    assert iproute.ports() == {"vnet0"}
    assert alice.leases() == [lease]
    assert alice.look_up("vnet0").id == lease.id
    device = alice.device(lease)
    assert device
    assert device.ifindex == iproute.links()["vnet0"]["ifindex"] == lease.ifindex
    opened.close()
    alice.release(lease.id)
    assert iproute.ports() == set()
    assert alice.leases(all=False) == []
    assert alice.who("vnet0")[0].caller_uid == ALICE
    alice.release(lease.id)


def opened_by(uid: int, name: str) -> str:
    """Let a process of a user open a tap by its name; what the kernel says."""
    attach = (
        "import fcntl, os, struct, sys\n"
        "tun = os.open('/dev/net/tun', os.O_RDWR)\n"
        "request = struct.pack('16sH22x', sys.argv[1].encode(), 0x5002)\n"
        "try: fcntl.ioctl(tun, 0x400454CA, request)\n"
        "except OSError as error: sys.exit(error.strerror)\n"
        "print('opened')\n"
    )
    command = [*as_user(uid), "/usr/bin/python3", "-c", attach, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def test_a_tap_that_is_open_at_its_release_becomes_roots(alice: Client) -> None:
    opened = alice.acquire(BR0, pid=os.getpid())
    alice.release(opened.id)
    opened.close()
    assert opened_by(ALICE, "vnet0") == "Operation not permitted"


def test_recover_of_the_daemon_gives_a_bound_tap_its_owner_back(
    alice: Client, root: Client
) -> None:
    """The daemon is not root: /proc/PID/fd of another user is closed to it."""
    with alice.acquire(BR0, pid=os.getpid()) as opened:
        fcntl.ioctl(opened.fds[0], TUNSETOWNER, BOB)
        root.recover()
        data = iproute.links()["vnet0"]["linkinfo"]["info_data"]
        assert data["user"] == ALICE


def test_a_lasting_tap_is_the_users_until_it_is_released(alice: Client) -> None:
    opened = alice.acquire(BR0)
    opened.close()
    assert opened_by(ALICE, "vnet0") == "opened"
    alice.release(opened.id)
    assert opened_by(ALICE, "vnet0") == "Operation not permitted"


def test_a_tap_of_an_unknown_process_becomes_roots_after_its_close(
    alice: Client,
) -> None:
    """The daemon may not look for the process, and sees the close a moment later."""
    opened = alice.acquire(BR0)
    alice.release(opened.id)
    opened.close()
    denied = "Operation not permitted"
    wait_for(lambda: opened_by(ALICE, "vnet0") == denied, "the tap is nobody's")


def test_a_users_tap_becomes_roots_after_the_vms_end(
    alice: Client, daemon: Daemon
) -> None:
    vm = companion(ALICE)
    events = daemon.events()
    opened = alice.acquire(BR0, pid=vm.pid)
    opened.close()
    assert next(events).event == "acquired"
    vm.communicate()
    assert next(events).event == "released"
    assert opened_by(ALICE, "vnet0") == "Operation not permitted"


def test_several_devices_come_all_or_none(alice: Client) -> None:
    with pytest.raises(NotAllowed):
        alice.acquire_all([BR0, Tap(bridge="br1")])
    shell.sh("ip link add br1 type bridge")
    assert alice.leases() == []
    with alice.holding(BR0, Tap(bridge="br0", queues=3)) as (one, three):
        assert [len(lease.fds) for lease in (one, three)] == [1, 3]
        assert {name_behind(fd) for fd in three.fds} == {three.name}
    assert [lease.state for lease in alice.leases()] == [State.FIN_WAIT] * 2


def test_root_may_do_everything_a_host_does(root: Client) -> None:
    shell.sh("ip link add eth0 type veth peer name eth1")
    shell.sh("ip link set eth0 up")
    tap, macvtap = root.acquire_all([BR0, Macvtap("eth0")])
    assert {link["ifname"] for link in iproute.links().values()} >= {"vnet0", "vnet1"}
    library.close_all(tap, macvtap)
    shell.sh("ip link del vnet0")
    assert [one.lease.id for one in root.recover()] in ([], [tap.id]), "or the watch"
    root.release(macvtap.id)
    assert root.reap(now=True) >= 1
    assert root.examine() == []
    assert root.remove_leftovers("00000000") == []
    root.ping()
    counts = {(one.name, one.label): one.value for one in root.statistics()}
    assert counts["calls", "Acquire"] == 1
    assert counts["acquire_seconds_count", None] == 1


def test_a_namespace_is_made_in_and_left_again(root: Client, daemon: Daemon) -> None:
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add br2 type bridge")
    with tapster.connect(daemon.socket, netns="blue") as blue:
        lease = library.acquire(blue, Tap(bridge="br2"))
        assert "vnet0" in iproute.links("blue")
        assert blue.find("vnet0").netns.path == "/run/netns/blue"
    assert "vnet0" not in iproute.links()
    root.release(lease.id)
    root.reap(now=True)
    shell.sh("ip netns del blue")
    found = [os.readlink(fd) for fd in Path(f"/proc/{daemon.pid}/fd").iterdir()]
    assert len([one for one in found if one.startswith("/run/netns")]) == 0


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (Tap(bridge="br9"), NoSuchLink),
        (Tap(name="a/b"), BadName),
        (Tap(name="br0"), NameTaken),
        (Tap(mtu=3), RequestError),
    ],
)
def test_errors_are_those_of_a_host(
    root: Client, spec: Tap, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        root.acquire(spec)
    assert type(caught.value) is kind
    assert root.leases() == []


def test_a_second_descriptor_is_had_when_the_first_is_closed(root: Client) -> None:
    (lease,) = root.acquire_all([BR0])
    with pytest.raises(LeaseBusy, match="close it there first"):
        root.reopen(lease.id)
    lease.close()
    with root.reopen(lease.id) as again:
        assert [name_behind(fd) for fd in again.fds] == ["vnet0"]


# Who may do what


def test_a_refusal_names_the_missing_rule(
    alice: Client, bob: Client, daemon: Daemon
) -> None:
    shell.sh("ip link add br1 type bridge")
    with pytest.raises(NotAllowed, match=r'(?s)bridges.*\[\[allow\]\].*"br1"') as said:
        alice.acquire(Tap(bridge="br1"))
    assert f'users = ["{ALICE}"]' in str(said.value)
    with pytest.raises(NotAllowed, match='features = \\["queues"\\]'):
        bob.acquire(Tap(bridge="br0", queues=2))
    with pytest.raises(NotAllowed, match="templates"):
        bob.acquire(Tap(bridge="br0", name="eth7"))
    with pytest.raises(NotAllowed, match="macvtap"):
        bob.acquire(Macvtap("br0"))
    with daemon.connect(61003) as stranger, pytest.raises(NotAllowed, match="no rule"):
        stranger.acquire(BR0)
    for forbidden in (bob.recover, bob.reap, bob.examine, bob.statistics):
        with pytest.raises(NotAllowed, match="features"):
            forbidden()
    assert iproute.ports("br1") == set()


def test_no_user_sees_or_ends_leases_of_another(alice: Client, bob: Client) -> None:
    lease = alice.acquire(BR0)
    assert bob.leases() == []
    for look in (lease.id, lease.name):
        with pytest.raises(NoSuchLease):
            bob.find(look)
    with pytest.raises(NoSuchLease):
        bob.release(lease.id)
    with pytest.raises(NoSuchLease):
        bob.reopen(lease.id)
    with pytest.raises(NoSuchLease):
        bob.bind([lease], None)
    assert bob.who(lease.name) == []
    assert iproute.ports() == {"vnet0"}
    lease.close()


def test_who_may_end_leases_of_others_may_not_use_their_devices(
    daemon: Daemon, alice: Client, bob: Client
) -> None:
    """The user of the other device may be bound by stricter rules."""
    daemon.reload(
        POLICY.replace(
            f'users = ["{ALICE}"]', f'users = ["{ALICE}"]\nrequire = ["filter"]'
        )
        + f"""
[[allow]]
users = ["{BOB}"]
features = ["see-others", "end-others", "fin-wait"]
"""
    )
    with alice.acquire(BR0._replace(filter=True)) as opened:
        lease = bob.look_up(opened.id)
        with pytest.raises(NotAllowed, match="another user's"):
            bob.reopen(lease)
        with pytest.raises(NotAllowed, match="another user's"):
            bob.bind([lease], None)
        with pytest.raises(NotAllowed, match="another user's"):
            bob.set(lease, filter=False)
        assert alice.look_up(opened.id) == lease
    bob.release(lease)
    assert bob.reap([lease]) == 1
    assert "vnet0" not in iproute.links()


def test_a_quota_is_clear_and_freed_by_a_release(alice: Client) -> None:
    leases = alice.acquire_all([BR0] * 4)
    with pytest.raises(QuotaExceeded, match=r"has 4 of 4 devices.*release one"):
        alice.acquire(BR0)
    alice.release(leases[0].id)
    leases += (alice.acquire(BR0),)
    library.close_all(*leases)


def test_a_group_is_as_good_as_a_user(daemon: Daemon) -> None:
    daemon.reload('[[allow]]\ngroups = ["61100"]\nbridges = ["br*"]\n')
    with daemon.connect(61003, groups=[61099, 61100]) as member:
        member.ping()
        member.acquire(BR0).close()


@pytest.mark.parametrize("uid", [1 << 31, (1 << 32) - 2])
def test_a_user_id_has_32_bits(daemon: Daemon, uid: int) -> None:
    """In a container whose ids begin high, or of a directory server."""
    daemon.reload(POLICY.replace(f'"{ALICE}"', f'"{uid}"'))
    with daemon.connect(uid) as client, client.acquire(BR0) as opened:
        assert opened.lease.caller_uid == uid
        assert client.set(opened, isolated=True).wiring.isolated
        data = iproute.links()["vnet0"]["linkinfo"]["info_data"]
        assert int(data["user"]) == uid
    assert opened_by(uid, "vnet0") == "opened"


def test_a_broken_policy_keeps_the_old_one_and_says_where(daemon: Daemon) -> None:
    for broken, said in {
        "[[allow]\n": "line 1",
        '[[allow]]\nusers = ["x"]\nbridge = ["br0"]\n': "allow[0].bridge",
        '[[allow]]\nusers = "x"\n': "allow[0].users",
        '[[allow]]\nusers = ["x"]\nvlans = ["a-b"]\n': "'a-b' is not a VLAN",
        "[limits]\nmessage = 0\n": "limits.message",
    }.items():
        daemon.reload(broken)
        with daemon.connect(ALICE) as alice:
            alice.ping()
            lease = library.acquire(alice, BR0)
            alice.release(lease.id)
        assert said in daemon.logged("config-kept")[-1]


def test_a_host_without_room_for_a_thread_keeps_the_policy(world: None) -> None:
    with Daemon() as daemon:
        folder = daemon.programs.parent
        full = folder / "full"
        (folder / "lib" / "sitecustomize.py").write_text(
            "import os, threading\n"
            "start = threading.Thread.start\n"
            "def start_or_fail(thread):\n"
            f"    if os.path.exists({str(full)!r}):\n"
            '        raise RuntimeError("can\'t start new thread")\n'
            "    start(thread)\n"
            "threading.Thread.start = start_or_fail\n"
        )
        daemon.start()
        with daemon.connect(ALICE) as alice:
            alice.ping()  # its own threads have started
        full.touch()
        daemon.reload("")
        assert "start new thread" in daemon.logged("config-kept")[-1]
        with daemon.connect(ALICE) as alice:
            alice.release(library.acquire(alice, BR0).id)
        full.unlink()
        daemon.reload("")
        with daemon.connect(ALICE) as alice, pytest.raises(NotAllowed):
            alice.acquire(BR0)


SLOW_DIRECTORY = """
import os, pwd, time
import tapster.daemon.server
if os.path.exists("FOLDER/often"):
    tapster.daemon.server.REFRESH = 0.2
getpwnam = pwd.getpwnam
def slowly(name):
    if name != "slow":
        return getpwnam(name)
    if os.path.exists("FOLDER/hold"):
        open("FOLDER/held", "w").close()
        while not os.path.exists("FOLDER/go"):
            time.sleep(0.01)
    return pwd.struct_passwd(("slow", "x", USER, USER, "", "/", ""))
import tapster.daemon.config
tapster.daemon.config.getpwnam = slowly
"""


@pytest.mark.parametrize("begun_by", ["a signal", "the look-up of names"])
def test_a_slow_look_up_of_names_never_brings_an_older_policy_back(
    world: None, begun_by: str
) -> None:
    slow = '[[allow]]\nusers = ["slow"]\nbridges = ["br0"]\n'
    quick = f'[[allow]]\nusers = ["{BOB}"]\nbridges = ["br0"]\n'
    with Daemon(policy=slow) as daemon:
        folder = daemon.programs.parent
        code = SLOW_DIRECTORY.replace("FOLDER", str(folder))
        hooked = folder / "lib" / "sitecustomize.py"
        hooked.write_text(code.replace("USER", str(ALICE)))
        if begun_by != "a signal":
            (folder / "often").touch()
        daemon.start()
        with daemon.connect(ALICE) as alice:
            alice.release(library.acquire(alice, BR0).id)
        (folder / "hold").touch()
        if begun_by == "a signal":
            daemon.send_signal(signal.SIGHUP)
        wait_for((folder / "held").exists, "nothing looks the name up")
        daemon.reload(quick)
        logged = daemon.log.stat().st_size
        (folder / "go").touch()
        daemon.wait_logged("config-(outdated|read)", after=logged)
        with daemon.connect(ALICE) as alice, pytest.raises(NotAllowed):
            alice.acquire(BR0)
        with daemon.connect(BOB) as bob:
            bob.release(library.acquire(bob, BR0).id)


UNANSWERED = """
import tapster.daemon.config, tapster.daemon.server
def note(name):
    with open("FOLDER/" + name, "a") as file:
        file.write("x")
refresh, resolve = tapster.daemon.server.Server._refresh, tapster.daemon.config.resolve
def refresh_often(server):
    note("refreshed")
    refresh(server)
def look_up(loaded):
    note("looked-up")
    return resolve(loaded)
tapster.daemon.server.Server._refresh = refresh_often
tapster.daemon.config.resolve = look_up
"""


def test_one_thread_at_most_waits_for_a_directory_server(world: None) -> None:
    with Daemon(policy='[[allow]]\nusers = ["slow"]\nbridges = ["br0"]\n') as daemon:
        folder = daemon.programs.parent
        code = (SLOW_DIRECTORY + UNANSWERED).replace("FOLDER", str(folder))
        hooked = folder / "lib" / "sitecustomize.py"
        hooked.write_text(code.replace("USER", str(ALICE)))
        (folder / "often").touch()
        daemon.start()
        (folder / "hold").touch()
        wait_for((folder / "held").exists, "nothing looks the name up")

        def wait_for_more(file: str, number: int) -> None:
            before = (folder / file).stat().st_size
            wait_for(
                lambda: (folder / file).stat().st_size >= before + number,
                f"{file}: {number} times more",
            )

        begun = (folder / "looked-up").stat().st_size
        wait_for_more("refreshed", 5)
        assert (folder / "looked-up").stat().st_size == begun
        (folder / "go").touch()
        wait_for_more("looked-up", 2)


# Bindings


def test_a_lease_ends_with_the_process_it_was_acquired_by(
    daemon: Daemon, root: Client
) -> None:
    code = (
        "import sys, os, tapster; host = tapster.connect(sys.argv[1]);"
        "lease = host.acquire(tapster.Tap(bridge='br0'), pid=os.getpid());"
        "print(lease.name, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [*as_user(BOB), "/usr/bin/python3", "-c", code, str(daemon.socket)],
        env={**os.environ, "PYTHONPATH": str(daemon.programs.parent / "lib")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == b"vnet0\n"
    events = daemon.events()
    assert root.find("vnet0").process
    process.kill()
    process.communicate()
    said = next(events)
    assert (said.event, said.name, said.caller_uid) == ("released", "vnet0", BOB)
    assert "process" in (said.detail or "")
    assert iproute.ports() == set()


def test_a_lease_can_be_handed_to_a_process_of_the_same_user(
    daemon: Daemon, bob: Client
) -> None:
    lease = library.acquire(bob, BR0)
    theirs, foreign = companion(BOB), companion(ALICE)
    with pytest.raises(NotAllowed, match="is not uid"):
        bob.bind([lease], foreign.pid)
    bob.bind([lease], theirs.pid)
    process = bob.find(lease.id).process
    assert process
    assert process.pid == theirs.pid
    events = daemon.events()
    foreign.communicate()
    theirs.communicate()
    assert next(events).event == "released"


def test_a_lease_ends_with_the_last_close_of_its_tap(
    daemon: Daemon, alice: Client
) -> None:
    events = daemon.events(ALICE)
    (lease,) = alice.acquire_all([Tap(bridge="br0", queues=2)], on_close=True)
    assert next(events).event == "acquired"
    first, second = lease.detach_fds()
    os.close(first)
    alice.ping()
    os.close(second)
    said = next(events)
    assert (said.event, said.lease) == ("released", lease.id)
    assert iproute.ports() == set()
    assert next(events).event == "ended"
    assert "vnet0" not in iproute.links()


def test_an_unbound_lease_outlives_its_caller(daemon: Daemon, alice: Client) -> None:
    alice.acquire(BR0).close()
    alice.close()
    with daemon.connect(ALICE) as again:
        assert [lease.process for lease in again.leases()] == [None]
    assert iproute.ports() == {"vnet0"}


# What others do


def test_foreign_changes_are_noticed_and_the_name_is_kept(
    daemon: Daemon, root: Client
) -> None:
    shell.sh("ip link add br1 type bridge")
    (lease,) = root.acquire_all([Tap(bridge="br0", fin_wait=60)])
    events = daemon.events()
    for command, event in {
        "ip link set vnet0 down": "down",
        "ip link set vnet0 up": "sound",
        "ip link set vnet0 master br1": "moved",
        "ip link set vnet0 master br0": "sound",
        "ip link set vnet0 name other": "renamed",
        "ip link set other name vnet0": "sound",
        "ip link del vnet0": "lost",
    }.items():
        shell.sh(command)
        said = next(events)
        assert (said.event, said.lease) == (event, lease.id)
    assert next(events).event == "held"
    link = iproute.links()["vnet0"]
    assert link["ifalias"].endswith(lease.id)
    assert "UP" not in link["flags"]
    lease.close()


@pytest.fixture
def blue(daemon: Daemon) -> Iterator[Client]:
    """Root in another namespace, with a bridge there."""
    shell.sh("ip netns add blue")
    shell.sh("ip -n blue link add br0 type bridge")
    with tapster.connect(daemon.socket, netns="blue") as blue:
        yield blue


def test_a_device_that_is_moved_keeps_its_lease_and_is_deleted_in_the_end(
    daemon: Daemon, root: Client
) -> None:
    shell.sh("ip netns add blue")
    lease = library.acquire(root, Tap(bridge="br0", fin_wait=0))
    events = daemon.events()
    shell.sh("ip link set vnet0 netns blue name eth0")
    lost = next(events)
    assert lost.event == "lost"
    assert lost.detail
    assert "moved it to another network namespace" in lost.detail
    where = "it is called eth0 in the network namespace /run/netns/blue"
    assert root.differences(lease) == {"device": where}
    assert root.find(lease.id).state is State.ACTIVE
    shell.sh(f"ip -n blue link set eth0 netns {os.getpid()} name vnet0")
    assert next(events).event == "down"
    shell.sh("ip link set vnet0 master br0 up")
    back = next(one for one in events if one.event != "moved")
    assert back.event == "changed"  # the kernel forgot a port's properties
    root.recover()
    assert next(events).event == "sound"
    shell.sh("ip link set vnet0 netns blue")
    assert next(events).event == "lost"
    root.release(lease)
    assert set(iproute.links("blue")) == {"lo"}
    assert root.leases() == []


@pytest.mark.parametrize("again", [False, True])
def test_foreign_changes_in_another_namespace_are_noticed(
    daemon: Daemon, blue: Client, root: Client, again: bool
) -> None:
    (lease,) = blue.acquire_all([Tap(bridge="br0", fin_wait=60)])
    if again:
        daemon.stop()
        daemon.start()
    events = daemon.events()
    for command, event in {
        "ip -n blue link set vnet0 down": "down",
        "ip -n blue link set vnet0 up": "sound",
        "ip -n blue link set vnet0 nomaster": "moved",
        "ip -n blue link del vnet0": "lost",
    }.items():
        shell.sh(command)
        said = next(events)
        assert (said.event, said.lease) == (event, lease.id)
    assert next(events).event == "held"
    assert iproute.links("blue")["vnet0"]["ifalias"].endswith(lease.id)
    lease.close()


def test_a_lease_of_the_command_in_another_namespace_is_watched(
    daemon: Daemon, blue: Client
) -> None:
    events = daemon.events()
    done = subprocess.run(
        [shell.TAPSTER, "--ledger", str(daemon.ledger), "add", "--netns", "blue"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "vnet0\n"
    shell.sh("ip -n blue link del vnet0")
    assert next(one for one in events if one.event == "held").name == "vnet0"


def test_the_daemon_hears_of_its_own_namespace_when_that_has_a_number(
    daemon: Daemon, root: Client
) -> None:
    """Up to Linux 7.0 what happens at home then comes under that number, too."""
    Path("/run/netns").mkdir(exist_ok=True)
    shell.sh(f"ip netns attach home {os.getpid()}")
    shell.sh("ip netns set home auto")
    lease = root.acquire(BR0)
    events = daemon.events()
    shell.sh("ip link set vnet0 down")
    assert next(events).event == "down"
    lease.close()


def test_a_device_whose_bridge_is_gone_is_reported_as_moved(
    daemon: Daemon, root: Client
) -> None:
    lease = root.acquire(BR0)
    events = daemon.events()
    shell.sh("ip link del br0")
    assert next(events).event == "moved"
    # It comes back all the same, and serves.
    daemon.stop()
    daemon.start()
    assert daemon.logged("not-recovered")
    with daemon.connect() as again:
        assert [one.id for one in again.leases()] == [lease.id]
    lease.close()


def test_a_name_that_is_no_text_is_reported_as_far_as_possible(
    daemon: Daemon, root: Client
) -> None:
    lease = root.acquire(BR0)
    events = daemon.events()
    subprocess.run(["ip", "link", "set", "vnet0", "name", b"a\xff"], check=True)
    said = next(events)
    assert (said.event, said.detail) == ("renamed", "the device is called a? now")
    assert (root.device(lease) or lease).name == "a?"
    lease.close()


def test_a_last_close_in_another_namespace_ends_a_lease(
    daemon: Daemon, blue: Client
) -> None:
    (lease,) = blue.acquire_all([Tap(bridge="br0", fin_wait=0)], on_close=True)
    events = daemon.events()
    lease.close()
    assert [next(events).event for _ in range(2)] == ["released", "ended"]
    assert "vnet0" not in iproute.links("blue")


def test_the_end_of_a_namespace_ends_its_leases(
    daemon: Daemon, blue: Client, root: Client
) -> None:
    theirs = blue.acquire_all([Tap(bridge="br0"), Tap(fin_wait=60)])
    library.close_all(*theirs)
    blue.release(theirs[1].id)
    here = root.acquire(BR0)
    # Somebody else knows it by another path.
    Path("/run/netns/also").touch()
    shell.sh("mount --bind /run/netns/blue /run/netns/also")
    with Host(daemon.ledger, netns="also", reaper=library.no_reaper) as host:
        host.acquire(Tap(fin_wait=60)).close()
    shell.sh("umount /run/netns/also")
    # Its number is given to the next one at once.
    events = daemon.events()
    shell.sh("ip netns del blue")
    shell.sh("ip netns add blue")
    shell.sh("ip netns set blue auto")
    said = [next(events) for _ in range(3)]
    assert {one.lease for one in said} >= {lease.id for lease in theirs}
    assert {one.event for one in said} == {"ended"}
    with tapster.connect(daemon.socket, netns="blue") as blue:
        new = blue.acquire(Tap())
    assert next(events).event == "acquired"
    assert {lease.id for lease in root.leases()} == {here.id, new.id}
    shell.sh("ip -n blue link del vnet0")
    assert next(events).event == "lost"
    library.close_all(here, new)


def test_a_device_is_put_back_where_the_policy_says_so(world: None) -> None:
    with Daemon(policy="[watch]\nrepair = true\n") as daemon:
        daemon.start()
        events = daemon.events()
        with daemon.connect() as root:
            lease = root.acquire(Tap(bridge="br0", isolated=True))
            assert next(events).event == "acquired"
            shell.sh("ip link set vnet0 nomaster down")
            assert next(events).event == "down"
            assert next(events).event == "sound"
            assert iproute.ports() == {"vnet0"}
            link = iproute.links()["vnet0"]
            assert link["linkinfo"]["info_slave_data"]["isolated"] is True
            lease.close()


def test_who_takes_anothers_mac_without_end_is_off_the_bridge(
    daemon: Daemon, alice: Client
) -> None:
    """A bridge delivers frames to the MAC of a port to the host, and not to the VM."""
    mallory, victim = alice.acquire(BR0), alice.acquire(BR0)
    events = daemon.events()
    mac = bytes.fromhex(victim.mac.replace(":", ""))
    request = struct.pack("16sH6s16x", mallory.name.encode(), ARPHRD_ETHER, mac)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            fcntl.ioctl(mallory.fds[0], SIOCSIFHWADDR, request)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        while next(events).detail != TAKEN_OFF:
            pass
        wait_for(lambda: "master" not in iproute.links()[mallory.name], "it is off")
        with pytest.raises(ConflictError, match="for a minute"):
            alice.set(mallory.id, isolated=True)
        assert "master" not in iproute.links()[mallory.name]
    finally:
        stop.set()
        changing.join()
    assert "UP" not in iproute.links()[mallory.name]["flags"]
    local = f"{victim.mac} dev {mallory.name}"
    assert local not in shell.sh("bridge fdb show br br0")
    library.close_all(mallory, victim)


def test_who_takes_anothers_mac_with_new_taps_gets_none_for_a_minute(
    daemon: Daemon, alice: Client, bob: Client
) -> None:
    events = daemon.events(ALICE)
    victim = bob.acquire(BR0)
    mac = bytes.fromhex(victim.mac.replace(":", ""))
    changes = 0

    def change_with_new_taps() -> None:
        nonlocal changes
        while changes < 2 * MOST_FOREIGN_MACS:
            mallory = alice.acquire(BR0._replace(fin_wait=0))
            request = struct.pack("16sH6s16x", mallory.name.encode(), ARPHRD_ETHER, mac)
            for _ in range(4):
                fcntl.ioctl(mallory.fds[0], SIOCSIFHWADDR, request)
                changes += 1
                while next(events).event != "sound":
                    pass
            mallory.close()
            alice.release(mallory.id)

    with pytest.raises(ConflictError, match="changed the MACs"):
        change_with_new_taps()
    assert changes <= MOST_FOREIGN_MACS + 4
    library.close_all(victim, bob.acquire(BR0))


@pytest.mark.parametrize("by", ["release", "exit", "close"])
def test_who_takes_anothers_mac_and_ends_the_lease_gets_none_for_a_minute(
    daemon: Daemon, alice: Client, bob: Client, by: str
) -> None:
    """The device may be gone before the daemon looks at it."""
    victim = bob.acquire(BR0)
    mac = bytes.fromhex(victim.mac.replace(":", ""))
    events = daemon.events(ALICE)
    changes = 0

    def change_with_new_taps() -> None:
        nonlocal changes
        while changes < 2 * MOST_FOREIGN_MACS:
            spec = BR0._replace(fin_wait=0)
            mallory = alice.acquire(spec, on_close=by == "close")
            process = companion(ALICE)
            if by == "exit":
                alice.bind([mallory], process.pid)
            request = struct.pack("16sH6s16x", mallory.name.encode(), ARPHRD_ETHER, mac)
            fcntl.ioctl(mallory.fds[0], SIOCSIFHWADDR, request)
            mallory.close()
            changes += 1
            process.communicate()
            if by == "release":
                alice.release(mallory.id)
            while next(events).event != "released":
                pass

    with pytest.raises(ConflictError, match="changed the MACs"):
        change_with_new_taps()
    assert changes <= MOST_FOREIGN_MACS
    victim.close()


def test_users_hear_of_their_own_leases_alone(daemon: Daemon, alice: Client) -> None:
    events = daemon.events(BOB)
    alice.acquire(BR0).close()
    with daemon.connect(BOB) as bob:
        bob.acquire(BR0).close()
    assert next(events).caller_uid == BOB


# Restarts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_changes_nothing_for_vms_and_loses_no_watch(
    daemon: Daemon, number: signal.Signals
) -> None:
    with daemon.connect(ALICE) as alice:
        kept = alice.acquire(BR0)
        (closing,) = alice.acquire_all([BR0], on_close=True)
        bound = alice.acquire(BR0, pid=os.getpid())
        child = companion(ALICE)
        alice.bind([bound], child.pid)
    before = shown()
    daemon.stop(number)
    daemon.start()
    assert shown() == before
    events = daemon.events(ALICE)
    bound.close()
    child.communicate()
    assert next(events).lease == bound.id
    closing.close()
    assert next(events).lease == closing.id
    library.close_all(kept)
    with daemon.connect(ALICE) as alice:
        assert [one.id for one in alice.leases(all=False)] == [kept.id]


def test_leases_that_ended_without_a_daemon_are_released_before_it_answers(
    daemon: Daemon,
) -> None:
    with daemon.connect(ALICE) as alice:
        (closing,) = alice.acquire_all([BR0], on_close=True)
    daemon.stop(signal.SIGKILL)
    closing.close()
    daemon.start()
    with daemon.connect(ALICE) as alice:
        assert alice.leases(all=False) == []
    assert iproute.ports() == set()


def test_a_live_lease_is_changed_within_the_policy(
    alice: Client, bob: Client, daemon: Daemon
) -> None:
    shell.sh("ip link add br1 type bridge")
    lease = alice.acquire(BR0)
    assert alice.set(lease.id, isolated=True).wiring.isolated
    data = iproute.links()["vnet0"]["linkinfo"]["info_slave_data"]
    assert data["isolated"] is True
    assert alice.differences(lease) == {}
    for change in ({"bridge": "br1"}, {"vlan": 7}, {"mtu": 1300}):
        with pytest.raises(NotAllowed):
            alice.set(lease.id, **change)
    with pytest.raises(RequestError, match="owner cannot be changed"):
        alice.set(lease.id, owner="me")  # type: ignore[call-arg]
    with pytest.raises(NoSuchLease):
        bob.set(lease.id, isolated=False)
    with daemon.connect() as root:
        root.set(lease.id, bridge="br1")
    assert iproute.ports("br1") == {"vnet0"}
    lease.close()


def test_a_device_that_moves_lowers_no_bridge(daemon: Daemon) -> None:
    """A device takes its bridge's MTU, and no rule lets it lower another bridge's."""
    for bridge, mtu in (("br1", 600), ("br2", 9000)):
        shell.sh(f"ip link add {bridge} type bridge")
        shell.sh(f"ip link add to-{bridge} mtu {mtu} master {bridge} type veth")

    def mtus(*devices: str) -> list[object]:
        return [iproute.links()[device]["mtu"] for device in devices]

    daemon.reload(POLICY.replace('bridges = ["br0"]', 'bridges = ["br?"]'))
    with daemon.connect(ALICE) as alice, alice.acquire(Tap("br1")) as opened:
        assert mtus("br0", "vnet0") == [1400, 600]
        alice.set(opened, bridge="br0")
        assert mtus("br0", "vnet0") == [1400, 1400]
        alice.set(opened, bridge="br2", standby=True)
        alice.set(opened, standby=False)
        assert mtus("br0", "br1", "br2", "vnet0") == [1400, 600, 9000, 9000]
        alice.set(opened, bridge=None)
        shell.sh("ip link set vnet0 mtu 600")
        alice.set(opened, bridge="br2")
        assert mtus("br2", "vnet0") == [9000, 9000]
        assert alice.differences(opened) == {}
        with pytest.raises(NotAllowed, match="lower-bridge-mtu"):
            alice.set(opened, mtu=1500)


def test_a_name_is_found_to_be_changed_only_with_its_owner(
    alice: Client, root: Client
) -> None:
    """Also where the caller itself has the leases of several VMs."""
    with alice.acquire(BR0._replace(owner="B")) as opened:
        lease = opened.lease
    with pytest.raises(tapster.OwnerRequired, match="owner 'B'"):
        alice.find("vnet0")
    with pytest.raises(NoSuchLease, match="owner 'B', not to 'A'"):
        alice.find("vnet0", owner="A")
    assert alice.find("vnet0", owner="B").id == lease.id
    with pytest.raises(NoSuchLease, match="is a name"):
        alice.call("Release", {"lease": "vnet0"})
    for method, request in (
        ("Set", {"lease": "vnet0", "fields": ["mtu"], "wiring": Wiring(mtu=1400)}),
        ("Bind", {"leases": ["vnet0"]}),
        ("Reopen", {"lease": "vnet0"}),
    ):
        with pytest.raises(NoSuchLease, match="is a name"):
            root.call(method, request)
    assert iproute.ports() == {"vnet0"}


def test_a_user_ends_the_wait_of_its_own_lease_if_a_rule_lets_it_choose_one(
    alice: Client, bob: Client
) -> None:
    leases = [library.acquire(client, BR0) for client in (alice, bob)]
    alice.release(leases[0])
    bob.release(leases[1])
    with pytest.raises(NoSuchLease):
        alice.reap([leases[1]])
    with pytest.raises(NotAllowed, match='"fin-wait"'):
        bob.reap([leases[1]])
    with pytest.raises(NotAllowed, match="maintain"):
        alice.reap(now=True)
    assert alice.reap([leases[0]]) == 1
    assert alice.reap([leases[0]]) == 0
    assert {"vnet0", "vnet1"} & set(iproute.links()) == {"vnet1"}


def test_a_refusal_is_in_the_history_once_a_second(bob: Client, root: Client) -> None:
    for _ in range(20):
        with pytest.raises(NotAllowed):
            bob.acquire(Tap(bridge="br7", owner="mine"))
    refused = [event for event in root.events() if event.event == "refused"]
    assert 1 <= len(refused) <= 3
    assert {(one.lease, one.owner, one.caller_uid) for one in refused} == {
        ("", "mine", BOB)
    }
    assert refused[0].detail.endswith(" no bridges 'br7'"), "no rule follows"
    assert [event.event for event in bob.events()] == ["refused"] * len(refused)
