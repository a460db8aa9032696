# SPDX-License-Identifier: Apache-2.0
"""The public names, their types, and what the door refuses."""

import copy
import gc
import inspect
import os
import pickle
import pydoc
import re
import subprocess
import sys
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import tapster
from lab.library import no_reaper
from tapster import (
    AnyHost,
    BadName,
    Changes,
    Client,
    EventQuery,
    HistoryQuery,
    Host,
    InternalError,
    Lease,
    MacTaken,
    Macvtap,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    OpenDevice,
    Rate,
    RequestError,
    Tap,
    TapsterError,
    Wiring,
)
from tapster.testing import FakeSystem

NAN = float("nan")
OWN = {"settle", "netns", "operations"}
"""What Host alone has."""
OF_THE_DAEMON = {"call", "explain", "ping", "ready", "statistics", "watch"}
"""What Client alone has."""


@pytest.fixture
def system() -> FakeSystem:
    system = FakeSystem()
    system.stranger().add_bridge("br0")
    return system


@pytest.fixture
def host(system: FakeSystem, tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path / "ledger.db", system=system, reaper=no_reaper) as host:
        yield host


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


# The public names


def test_host_and_client_are_managers() -> None:
    kinds: list[type[AnyHost]] = [Host, Client]  # mypy compares the signatures
    assert all(AnyHost in kind.__mro__ for kind in kinds)
    assert public(Host) - public(AnyHost) == OWN
    assert public(Client) - public(AnyHost) == OF_THE_DAEMON


@pytest.mark.parametrize("kind", [Host, Client])
def test_every_method_of_manager_is_implemented(kind: type) -> None:
    inherited = {
        "acquire",
        "acquire_waiting",
        "find",
        "holding",
        "who",
    }  # made of the others
    for name in public(AnyHost) - inherited:
        assert name in vars(kind), name


@pytest.mark.parametrize("kind", [Host, Client])
def test_help_says_what_each_method_does(kind: type) -> None:
    for name in public(kind):
        assert inspect.getdoc(getattr(kind, name)), name
    assert "Make a device and connect it." in pydoc.render_doc(kind)


def test_dir_shows_what_is_public() -> None:
    shown = {name for name in dir(tapster) if not name.startswith("_")}
    assert shown == set(tapster.__all__)
    assert {"Host", "connect"} <= shown
    assert all(hasattr(tapster, name) for name in shown)
    assert not hasattr(tapster, "whatever")


def names_in(annotation: Any) -> Iterator[Any]:
    """Every class that an annotation is made of."""
    inner = typing.get_args(annotation)
    if not inner and isinstance(annotation, type):
        yield annotation
    for one in inner:
        yield from names_in(one)


def test_every_type_in_a_public_signature_is_public() -> None:
    names = {name: getattr(tapster, name) for name in tapster.__all__}
    exported = {*names.values()}
    for kind in (Host, Client, AnyHost, OpenDevice):
        for name in (public(kind) | {"__init__"}) - {"operations"}:
            function = getattr(kind, name)
            if isinstance(function, property):
                function = function.fget
            if not inspect.isfunction(function):
                continue
            # Some types are imported for type checkers alone; each is public.
            for annotation in get_type_hints(function, localns=names).values():
                for part in names_in(annotation):
                    ours = re.match(r"tapster\.(?!light)", part.__module__)
                    assert not ours or part in exported, (kind, name, part)


def test_every_type_in_a_public_record_is_public() -> None:
    exported = {getattr(tapster, name) for name in tapster.__all__}
    for record in exported:
        if hasattr(record, "_fields"):
            for annotation in get_type_hints(record).values():
                for part in names_in(annotation):
                    ours = re.match(r"tapster\.(?!light)", part.__module__)
                    assert not ours or part in exported, (record, part)


@pytest.mark.parametrize("kind", [Host, Client, AnyHost])
def test_help_shows_the_types_of_each_method(kind: type) -> None:
    for name in public(kind):
        function = getattr(kind, name)
        if inspect.isfunction(function):
            assert "tapster.light" not in str(inspect.signature(function)), name


def test_the_help_of_a_record_lists_each_field_with_its_type() -> None:
    for name in tapster.__all__:
        record = getattr(tapster, name)
        help_ = pydoc.plain(pydoc.render_doc(record))
        for field in getattr(record, "_fields", ()):
            assert f"\n |  {field}: " in help_, (name, field)


def test_changes_are_the_fields_of_a_wiring() -> None:
    assert get_type_hints(Changes) == get_type_hints(Wiring)


def test_an_import_of_the_package_loads_neither_host_nor_client() -> None:
    code = "import tapster, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    loaded = set(shown.stdout.split())
    assert not loaded & {"tapster.host", "tapster.rpc.client", "tapster.model"}


# What the door refuses

tap: Any = Tap
macvtap: Any = Macvtap
rate: Any = Rate
refused: Any = Host


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (tap(bridge=5), "bridge must be a str or None, not 5"),
        (tap(queues="2"), "queues must be an int, not '2'"),
        (tap(queues=True), "queues must be an int, not True"),
        (tap(isolated=1), "isolated must be True or False, not 1"),
        (
            tap(naming="first"),
            "naming must be one of lowest, next, stable, not 'first'",
        ),
        (tap(fin_wait="5"), "fin_wait must be a number, not '5'"),
        (tap(trunks=[5]), "trunks must be a tuple"),
        (tap(trunks=("5",)), "trunks must be a tuple"),
        (tap(inbound=1000), "inbound must be a Rate or None, not 1000"),
        (tap(inbound=rate("fast")), "average must be an int, not 'fast'"),
        (tap(external_ids=(("a", "b", "c"),)), "external_ids must be a tuple"),
        (macvtap(lower=None), "lower must be a str, not None"),
        (macvtap(lower="low", mode="none"), "mode must be one of bridge, vepa"),
        ("vnet0", "spec must be a Tap or a Macvtap, not 'vnet0'"),
        (None, "spec must be a Tap or a Macvtap, not None"),
    ],
)
def test_a_wrong_type_in_a_request_is_named(
    host: Host, spec: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        host.acquire(spec)
    assert host.leases() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda host: host.acquire_all(Tap()), "specs must be several"),
        (lambda host: host.acquire_all(7), "specs must be several"),
        (lambda host: host.acquire_waiting([], wait="1"), "wait must be a number"),
        (lambda host: host.acquire_waiting([], wait=-1), "wait must be 0 or more"),
        (lambda host: host.acquire_waiting([], wait=NAN), "wait must be 0 or more"),
        (lambda host: host.differing(7), "leases must be several, such as a list"),
        (lambda host: host.differing("vnet0"), "leases must be several"),
        (lambda host: host.differing(["vnet0"]), "each of leases must be a Lease"),
        (lambda host: host.history("vnet0"), "query must be a HistoryQuery, not"),
        (lambda host: host.history(None), "query must be a HistoryQuery, not None"),
        (lambda host: host.events(None), "query must be an EventQuery, not None"),
        (lambda host: host.acquire(Tap(), pid="1"), "pid must be an int or None"),
        (lambda host: host.acquire(Tap(), on_close=1), "on_close must be True or"),
        (lambda host: host.release(7), "a lease is given by its id"),
        (lambda host: host.release(None), "a lease is given by its id"),
        (lambda host: host.bind("0" * 16, None), "leases must be several"),
        (lambda host: host.bind(7, None), "leases must be several"),
        (lambda host: host.bind([], "1"), "pid must be an int or None, not '1'"),
        (lambda host: host.reopen([]), "a lease is given by its id"),
        (lambda host: host.device(3), "a lease is given by its id"),
        (lambda host: host.differences(b"x"), "a lease is given by its id"),
        (lambda host: host.set(3, up=False), "a lease is given by its id"),
        (lambda host: host.set("0" * 16, up=1), "up must be True or False, not 1"),
        (lambda host: host.set("0" * 16, color=1), "color cannot be changed"),
        (lambda host: host.find(3), "name_or_id must be a str, not 3"),
        (lambda host: host.who(3), "name must be a str, not 3"),
        (lambda host: host.who(None), "name must be a str, not None"),
        (lambda host: host.who("a", "b"), "at must be a number or None, not 'b'"),
        (lambda host: host.reap(now=2), "now must be True or False, not 2"),
        (lambda host: host.recover(dry_run=None), "dry_run must be True or False"),
        (lambda host: host.leases(all="no"), "all must be True or False, not 'no'"),
        (lambda host: host.remove_leftovers(8), "ledger must be a str, not 8"),
        (lambda host: refused(7), "ledger must be a str or a PathLike or None, not 7"),
        (lambda host: refused(netns=7), "netns must be a str or None, not 7"),
        (lambda host: refused(system=7), "system must be a System or None, not 7"),
        (lambda host: refused(backends=7), "backends must be a function or None"),
        (lambda host: refused(reaper=False), "reaper must be a function or None, not"),
        (lambda host: refused("a\0b"), r"the ledger's path 'a\x00b' has a character"),
        (lambda host: refused("\ud800"), r"the ledger's path '\ud800' has a"),
    ],
)
def test_a_wrong_type_in_a_call_is_named(host: Host, call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        call(host)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"limit": 0}, "limit must be 1 to 9223372036854775807, not 0"),
        ({"limit": -5}, "limit must be 1 to"),
        ({"limit": 1 << 70}, "limit must be 1 to"),
        ({"caller_uid": -1}, "caller_uid must be 0 to 4294967295, not -1"),
        ({"caller_uid": 1 << 70}, "caller_uid must be 0 to"),
        ({"since": NAN}, "since must be a time in seconds since 1970, not nan"),
        ({"until": 1e300}, "until must be a time in seconds since 1970"),
        ({"since": 10**400}, "since must be a time in seconds since 1970"),
    ],
)
def test_a_query_that_nothing_fits_is_refused(
    host: Host, query: Any, message: str
) -> None:
    for look in (host.history, host.events):
        kind: Any = HistoryQuery if look == host.history else EventQuery
        with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
            look(kind(**query))


def test_a_mac_in_a_query_may_have_capital_letters(host: Host) -> None:
    with host.acquire(Tap(mac="52:54:00:ab:cd:ef")) as device:
        found = host.history(HistoryQuery(mac="52:54:00:AB:CD:EF"))
    assert [entry.lease for entry in found] == [device.id]
    with pytest.raises(RequestError, match="MAC 'ab-cd' is not of the form"):
        host.history(HistoryQuery(mac="ab-cd"))


def test_a_generator_gives_requests_leases_and_names(host: Host) -> None:
    devices = host.acquire_all(Tap(bridge="br0") for _ in range(2))
    waited = host.acquire_waiting((Tap(bridge="br0") for _ in range(2)), wait=0)
    everything = [*devices, *waited]
    assert [device.name for device in everything] == [f"vnet{n}" for n in range(4)]
    host.bind((device for device in everything), None)
    assert host.differing(device.lease for device in everything) == frozenset()
    for device in everything:
        device.close()
        host.release(device)
    assert host.reap(device for device in everything) == 4


def test_a_name_that_is_no_text_is_that_of_no_lease(host: Host) -> None:
    with pytest.raises(NoSuchLease, match=r"name or id '\\udcff'"):
        host.look_up("\udcff")


# References


def test_every_verb_takes_an_id_a_lease_or_an_open_device(
    host: Host, system: FakeSystem
) -> None:
    system.start(7)
    with host.acquire(Tap(bridge="br0")) as opened:
        pass
    for reference in (opened, opened.lease, opened.id):
        device = host.device(reference)
        assert device is not None
        assert device.ifindex == opened.ifindex
        assert host.differences(reference) == {}
        assert host.set(reference, isolated=True).wiring.isolated
        host.bind([reference], 7)
        with host.reopen(reference) as again:
            assert again.id == opened.id
            assert len(again.fds) == 1
    for reference in (opened, opened.lease, opened.id):
        host.release(reference)
    assert not system.stranger().carrier("vnet0")


@pytest.mark.parametrize("verb", ["release", "reopen", "device", "differences", "set"])
def test_no_verb_takes_a_name(host: Host, verb: str) -> None:
    host.acquire(Tap(bridge="br0")).close()
    with pytest.raises(NoSuchLease, match=r"find\('vnet0', owner=") as caught:
        getattr(host, verb)("vnet0")
    assert caught.value.reference == "vnet0"
    with pytest.raises(NoSuchLease):
        host.bind(["vnet0"], None)


# Open devices


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_an_open_device_owns_its_descriptors(host: Host) -> None:
    opened = host.acquire(Tap(bridge="br0", queues=2))
    assert isinstance(opened.lease, Lease)
    assert (opened.name, opened.mac) == ("vnet0", opened.lease.mac)
    fds = opened.fds
    assert [is_open(fd) for fd in fds] == [True, True]
    with opened:
        pass
    assert [is_open(fd) for fd in fds] == [False, False]
    assert opened.fds == ()
    opened.close()
    assert host.leases() == [opened.lease], "a close ends no lease"


def test_a_forgotten_device_is_closed_with_a_warning(host: Host) -> None:
    devices = [host.acquire(Tap(bridge="br0"))]
    (fd,) = devices[0].fds
    with pytest.warns(ResourceWarning, match="OpenDevice vnet0 .* was not closed"):
        devices.clear()
    assert not is_open(fd)


def test_a_device_that_is_open_at_the_end_of_a_program_is_closed_silently() -> None:
    program = (
        "from tapster import OpenDevice\n"
        "import os\n"
        "device = OpenDevice(None, (os.open('/dev/null', os.O_RDONLY),))\n"
        "OpenDevice.__repr__ = lambda _: 'device'\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_open_device_has_no_copy_that_would_close_its_descriptors(
    host: Host, copied: Any
) -> None:
    with host.acquire(Tap(bridge="br0")) as opened:
        with pytest.raises(RequestError, match="cannot be copied or pickled"):
            copied(opened)
        gc.collect()
        assert is_open(opened.fds[0])
        copied(opened.lease)


def test_a_descriptor_that_the_program_closed_keeps_no_other_open(host: Host) -> None:
    opened = host.acquire(Tap(bridge="br0", queues=3))
    fds = opened.fds
    os.close(fds[0])
    with pytest.raises(RequestError, match=rf"descriptors \[{fds[0]}\] of vnet0 were"):
        opened.close()
    assert [is_open(fd) for fd in fds] == [False] * 3
    opened.close()


def test_detached_descriptors_are_the_callers(host: Host) -> None:
    opened = host.acquire(Tap(bridge="br0"))
    (fd,) = opened.detach_fds()
    del opened
    gc.collect()
    assert is_open(fd)
    os.close(fd)


# Use after the end


def test_a_closed_host_says_so(host: Host) -> None:
    host.close()
    host.close()
    with pytest.raises(RequestError, match="closed: open another"):
        host.leases()
    with pytest.raises(RequestError, match="closed"):
        host.acquire(Tap(bridge="br0"))


def test_a_forked_child_is_refused_while_the_parent_goes_on(host: Host) -> None:
    inside, release = threading.Event(), threading.Event()

    def hold() -> None:
        with host.operations.context.gate:
            inside.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()  # so the child has a lock that nobody will ever release
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            host.leases()
        except RequestError as error:
            os.write(writing, str(error).encode())
        host.close()  # which must not touch what the parent uses
        os._exit(0)
    os.close(writing)
    release.set()
    holder.join()
    os.waitpid(pid, 0)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    assert f"process {os.getpid()}" in said
    assert "open another Host" in said
    host.acquire(Tap(bridge="br0")).close()
    assert len(host.leases()) == 1


# Errors


def test_a_taken_name_says_by_whom_and_until_when(
    host: Host, system: FakeSystem
) -> None:
    opened = host.acquire(Tap(name="web", owner="vm1", fin_wait=7))
    opened.close()
    with pytest.raises(NameTaken) as caught:
        host.acquire(Tap(name="web"))
    error = caught.value
    assert (error.name, error.lease, error.owner) == ("web", opened.id, "vm1")
    assert error.until is None
    host.release(opened)
    with pytest.raises(NameTaken) as caught:
        host.acquire(Tap(name="web"))
    assert caught.value.until == system.boottime() + 7
    system.stranger().add_tap("lan")
    with pytest.raises(NameTaken) as caught:
        host.acquire(Tap(name="lan"))
    assert (caught.value.name, caught.value.lease) == ("lan", None)


def test_a_refusal_has_the_value_that_was_wrong(host: Host) -> None:
    with pytest.raises(BadName) as bad:
        host.acquire(Tap(name="a/b"))
    assert bad.value.name == "a/b"
    with pytest.raises(NoSuchLink) as missing:
        host.acquire(Tap(bridge="br9"))
    assert missing.value.name == "br9"
    mac = "52:54:00:00:00:01"
    opened = host.acquire(Tap(bridge="br0", mac=mac, owner="vm1"))
    opened.close()
    with pytest.raises(MacTaken) as taken:
        host.acquire(Tap(bridge="br0", mac=mac))
    error = taken.value
    assert (error.mac, error.lease, error.owner) == (mac, opened.id, "vm1")


def test_an_error_takes_only_the_fields_of_its_type() -> None:
    with pytest.raises(TypeError, match="owner"):
        NoSuchLease("gone", owner="vm1")


def test_a_fault_of_ours_is_an_internal_error(host: Host, system: FakeSystem) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError("by zero")

    system.step = fail
    with pytest.raises(InternalError, match=r"ZeroDivisionError: by zero; .* report"):
        host.acquire(Tap(bridge="br0"))
    assert issubclass(InternalError, TapsterError)
