# SPDX-License-Identifier: Apache-2.0
"""A host that refuses things, and the judges of what becomes of our devices.

They look by `ip -j`, /proc/PID/fd and the ledger's tables, and never by Tapster.
"""

import json
import os
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

from lab import iproute, library, shell
from tapster import Host, Lease, Macvtap, Tap, TapsterError
from tests.faults.faulty_child import Fault, FaultyChild, Script

Operation = Callable[[Host], object]
Opened = Callable[[], AbstractContextManager[Any]]
"""Opens the Host that an operation is given."""
Errnos = Mapping[str, tuple[int, ...]]
"""With which errors each kind of system call is to fail."""
Check = Callable[[str, Exception | None], object]
"""Checks the state after a fault, given its description and the error it caused."""


MANY = 16
"""Devices that may be there before they are cleared away, several at a time."""


class RecordedLease(NamedTuple):
    """A lease, as the ledger's file has it."""

    id: str
    name: str
    ifindex: int
    state: str
    manager: int | None
    bridge: str | None
    pid: int | None


class FaultLab:
    """One network namespace: the devices of others in it, and what is ours."""

    def __init__(self, ledger: Path, netns: str | None = None) -> None:
        self.ledger = ledger
        self.netns = netns
        ip = f"ip -n {netns}" if netns else "ip"
        shell.sh(f"{ip} tuntap add vnet1 mode tap")  # in the way
        shell.sh(f"{ip} link set vnet1 master br0")
        shell.sh(f"{ip} link add low type veth peer name far")
        shell.sh(f"{ip} link set low up")
        shell.sh(f"{ip} link add br1 address 02:00:00:00:00:03 type bridge")
        shell.sh(f"{ip} link set br1 mtu 1300")  # by hand: it stays so
        # One process for all looks: each would cost as much as an acquire.
        self._ip = subprocess.Popen(
            f"{ip} -d -j -batch -".split(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._foreign = iproute.links(netns)
        self._foreign, _ = self._look()
        self.host().close()  # so that there is a ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ip.communicate()

    def host(self, netns: str | None = None) -> Host:
        """A Host. It is closed before a child is forked: SQLite does not survive it."""
        return Host(self.ledger, netns=netns, reaper=library.no_reaper)

    def there(self) -> Host:
        """A Host whose devices are made where this lab is."""
        return self.host(self.netns)

    def rows(self) -> list[RecordedLease]:
        columns = ", ".join(RecordedLease._fields)
        with closing(sqlite3.connect(self.ledger)) as db:
            found = db.execute(f"SELECT {columns} FROM lease ORDER BY rowid")  # noqa: S608 - ours
            return [RecordedLease(*row) for row in found]

    def sql(self, statement: str, *values: str) -> None:
        """Change the ledger as Tapster would not."""
        with closing(sqlite3.connect(self.ledger)) as db, db:
            db.execute(statement, values)

    def judge(self, where: str, *, settled: bool = True) -> list[RecordedLease]:
        """Every device of ours has a lease, and no foreign one has changed.

        If `settled`, every lease has a device, too, and it looks as it must.
        """
        foreign, ours = self._look()
        rows = self.rows()
        leased = {(row.ifindex, row.name): row for row in rows}
        assert set(ours) <= set(leased), f"{where}: a device has no lease"
        assert foreign == self._foreign, f"{where}: a foreign device has changed"
        if settled:
            assert set(ours) == set(leased), f"{where}: a lease has no device"
            for key, row in leased.items():
                link = ours[key]
                assert row.manager is None, f"{where}: {row} is claimed for ever"
                assert row.state in ("active", "fin_wait"), f"{where}: {row}"
                backends = row.state == "active"
                assert ("UP" in link["flags"]) is backends, f"{where}: {link}"
                on = row.bridge if backends else None
                assert link.get("master") == on, f"{where}: {link}"
                data = link["linkinfo"].get("info_data", {})
                nobody = data.get("user", "root") == "root"
                assert backends or nobody, f"{where}: {link}"
                assert link["ifalias"].endswith(f":{row.id}"), f"{where}: {link}"
        return rows

    def repair(self, then: Operation = Host.leases) -> list[RecordedLease]:
        """Recover, and judge that all is in order; then do some more."""
        with self.there() as host:
            host.recover()
            rows = self.judge("recover")
            assert (again := host.recover()) == [], again
            then(host)
        return rows

    def _look(self) -> tuple[dict[str, Any], dict[tuple[int, str], dict[str, Any]]]:
        """The devices of others, and ours."""
        assert self._ip.stdin
        assert self._ip.stdout
        self._ip.stdin.write(b"link\n")
        self._ip.stdin.flush()
        found = json.loads(self._ip.stdout.readline())
        links = {link["ifname"]: link for link in found}
        foreign = {name: iproute.steady(links.pop(name)) for name in self._foreign}
        foreign["low"] = {}  # what lies below a macvtap shows some of it
        return foreign, {(link["ifindex"], name): link for name, link in links.items()}


def acquire(host: Host, spec: Tap | Macvtap) -> Lease:
    """Acquire, and keep nothing open."""
    lease = library.acquire(host, spec)
    return lease


def release(host: Host) -> None:
    """Release all there is."""
    for lease in host.leases(all=False):
        host.release(lease.id)


def clear(host: Host) -> None:
    """Have no lease left."""
    release(host)
    host.reap(now=True)


class Before:
    """What there was before an acquire: the one that fails adds nothing to it."""

    def __init__(self, lab: FaultLab) -> None:
        self._lab = lab
        self._rows: list[RecordedLease] = []

    def remember(self) -> None:
        self._rows = self._lab.rows()
        if len(self._rows) > MANY:
            self._lab.repair(clear)
            self._rows = []

    def check(self, where: str, error: Exception | None) -> None:
        made = [row for row in self._lab.judge(where) if row not in self._rows]
        assert len(made) == (error is None), f"{where}: {error}"


def sweep(
    opened: Opened,
    operate: Operation,
    errnos: Errnos,
    check: Check,
    *,
    prepare: Callable[[], object] = lambda: None,
    lasting: bool = False,
) -> None:
    """Let each system call of an operation fail, one at a time, with each error.

    In the first run no call fails. In each run the operation must succeed, or end with
    a clear error of Tapster's; then the state is checked. After that the same Host must
    succeed with the same operation, and close with no descriptor lost.
    """

    def once(fault: Fault | None) -> Counter[str]:
        prepare()
        child.step()
        error = child.step(fault)
        calls = child.calls
        if error is not None:
            assert fault is not None, repr(error)
            assert calls[fault.call] >= fault.number, repr(error)
            assert_clear(error, fault.errno, str(fault))
        check(str(fault), error)
        again = child.step()
        assert again is None, f"{fault}, {error!r}; then: {again!r}"
        lost = child.step()
        assert not lost, f"{fault}, {error!r}; still there: {lost}"
        return calls

    with FaultyChild(lambda: _twice(opened, operate), errnos) as child:
        made = once(None)
        assert made
        for call in filter(made.get, errnos):
            for errno in errnos[call]:
                for number in count(1):
                    fault = Fault(call, errno, number, lasting)
                    if once(fault)[call] < number:
                        break


def _twice(opened: Opened, operate: Operation) -> Script:
    """An operation, and then once more, by the same Host."""
    while True:
        before = set(held())
        with opened() as host:
            yield None
            yield attempt(operate, host)
            yield attempt(operate, host)
        yield set(held()) - before


def attempt(operate: Callable[..., object], *of: object) -> Exception | None:
    """How an operation fails, if it does."""
    try:
        operate(*of)
    except Exception as error:  # noqa: BLE001 - it is for the test to judge
        return error
    return None


def assert_clear(error: Exception, errno: int, where: str) -> None:
    """An error of the tree, which says what was refused, and of what."""
    assert isinstance(error, TapsterError), f"{where}: {error!r}"
    assert os.strerror(errno) in str(error) or "ledger" in str(error), (
        f"{where}: {error}"
    )


def held() -> Iterator[str]:
    """What this process has open, and the network namespace it is in."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            yield f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}"
    yield os.readlink("/proc/thread-self/ns/net")
