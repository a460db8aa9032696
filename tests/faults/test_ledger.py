# SPDX-License-Identifier: Apache-2.0
"""I5, I6: the ledger's file refuses what is asked of it."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from errno import EACCES, EFBIG, EIO, ENOSPC
from itertools import count
from pathlib import Path

import pytest

from lab import iproute, shell
from lab.library import no_reaper
from tapster import Host, LedgerError, Tap
from tests.faults.faulty_child import FaultyChild, Script
from tests.faults.sweep import (
    Before,
    Errnos,
    FaultLab,
    Operation,
    acquire,
    assert_clear,
    attempt,
    clear,
    release,
    sweep,
)

WRITES: Errnos = {
    "pwrite64": (EIO,),
    "pread64": (EIO,),
    "fdatasync": (EIO,),
    "ftruncate": (EIO,),
    "openat": (EACCES,),
    "unlink": (EACCES,),
}
FULL: Errnos = {"pwrite64": (ENOSPC,), "ftruncate": (ENOSPC,)}

TAP = Tap(bridge="br0", fin_wait=3600)


def add(host: Host) -> None:
    acquire(host, TAP)


def reap(host: Host) -> None:
    host.reap(now=True)


@pytest.mark.parametrize("errnos", [WRITES, FULL], ids=["I/O error", "full"])
def test_an_acquire_that_cannot_be_written_leaves_nothing_I6(
    here: FaultLab, errnos: Errnos
) -> None:
    before = Before(here)
    sweep(here.host, add, errnos, before.check, prepare=before.remember)


def test_recover_repairs_what_a_full_disk_left_I5(here: FaultLab) -> None:
    def check(where: str, error: Exception | None) -> None:
        here.judge(where, settled=error is None)

    def prepare() -> None:
        here.repair(clear)

    sweep(here.host, add, FULL, check, prepare=prepare, lasting=True)


@pytest.mark.parametrize("operate", [release, reap, Host.recover])
def test_an_operation_whose_write_failed_can_be_repeated_I5_I7(
    here: FaultLab, operate: Operation
) -> None:
    def make(host: Host) -> None:
        clear(host)
        waiting, lost = acquire(host, TAP), acquire(host, TAP)
        host.release(waiting.id)
        shell.sh(f"ip link del {lost.name}")

    def check(where: str, _: Exception | None) -> None:
        here.judge(where, settled=False)

    sweep(here.host, operate, WRITES, check, prepare=lambda: here.repair(make))


@pytest.mark.parametrize("errnos", [WRITES, FULL], ids=["I/O error", "full"])
@pytest.mark.parametrize("made", [False, True], ids=["made", "opened"])
def test_a_ledger_that_cannot_be_made_or_opened_can_be_the_next_time(
    here: FaultLab, errnos: Errnos, made: bool
) -> None:
    def open_it(_: object) -> None:
        here.host().close()

    def prepare() -> None:
        if not made:
            shutil.rmtree(here.ledger.parent)
            here.ledger.parent.mkdir()

    def check(where: str, _: Exception | None) -> None:
        here.host().close()
        assert here.judge(where) == []

    sweep(nullcontext, open_it, errnos, check, prepare=prepare)


@pytest.fixture
def small(world: None, tmp_path: Path) -> Iterator[Path]:
    """A ledger on a small file system of its own, with nothing else there."""
    place = tmp_path / "small"
    place.mkdir()
    shell.sh(f"mount -t tmpfs -o size=512k tmpfs {place}")
    yield place / "ledger.db"
    shell.sh(f"umount -l {place}")


def test_a_read_only_file_system_is_said_to_be_so(world: None, tmp_path: Path) -> None:
    """As an error of the disk leaves it. SQLite says that it cannot open the file."""
    place = tmp_path / "disk"
    place.mkdir()
    shell.sh(f"mount -t tmpfs tmpfs {place}")
    ledger = place / "ledger.db"
    with Host(ledger, reaper=no_reaper) as host, host.acquire(TAP) as device:
        name = device.name
    shell.sh(f"mount -o remount,ro {place}")
    with pytest.raises(LedgerError, match="its file system is read-only"):
        Host(ledger, reaper=no_reaper)
    assert iproute.links()[name]["master"] == "br0"
    shell.sh(f"mount -o remount,rw {place}")
    with Host(ledger, reaper=no_reaper) as host:
        host.release(device)


def test_a_full_disk_is_an_error_and_no_loss_I5(small: Path) -> None:
    """With room for nothing, then for a page, and so on until it is enough."""
    with FaultLab(small) as lab, lab.host() as host:
        filler = small.with_name("filler")
        for pages in count():
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            os.truncate(filler, filler.stat().st_size - 4096 * pages)
            error = attempt(add, host)
            # There may be no room to undo an acquire: then its lease waits for recover.
            lab.judge(f"{pages} pages", settled=False)
            if error is None:
                break
            assert_clear(error, ENOSPC, f"{pages} pages")
        assert pages > 0
        filler.unlink()
        host.recover()
        add(host)
        assert len(lab.judge("there is room again")) == 2


STEP = 65536
"""Bytes. Each attempt adds some to the log, which has to be outrun."""


def test_a_file_that_may_not_grow_is_an_error_and_no_loss_I5(here: FaultLab) -> None:
    def steps() -> Script:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        with here.host() as host:
            for size in count(0, STEP):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
                yield attempt(add, host)

    with FaultyChild(steps) as child:
        for size in count(0, STEP):
            error = child.step()
            here.judge(f"{size} bytes", settled=False)
            if error is None:
                break
            assert_clear(error, EFBIG, f"{size} bytes")
    assert size > 0
    assert len(here.repair()) == 1


def test_a_read_only_file_system_is_an_error_and_no_loss_I5(small: Path) -> None:
    with FaultLab(small) as lab:
        with lab.host() as host:
            add(host)
        shell.sh(f"mount -o remount,ro {small.parent}")
        for operate in (add, release, reap, Host.recover):
            with pytest.raises(LedgerError, match=str(small)), lab.host() as host:
                operate(host)
        shell.sh(f"mount -o remount,rw {small.parent}")
        assert len(lab.judge("it can be written again")) == 1
        lab.repair(clear)


def test_a_ledger_of_others_is_an_error(here: FaultLab) -> None:
    """A process may make devices, but may not open root's files."""

    def steps() -> Script:
        os.setresuid(65534, 65534, 65534)
        yield attempt(lambda: here.host().close())

    with FaultyChild(steps) as child:
        error = child.step()
    assert isinstance(error, LedgerError)
    assert "Permission denied; run as root" in str(error)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_ledger_that_goes_while_it_is_open_is_not_written_to(
    here: FaultLab, replaced: bool
) -> None:
    with here.host() as host:
        add(host)
        aside = here.ledger.with_name("aside")
        here.ledger.rename(aside)
        if replaced:
            here.ledger.touch()
        for operate in (add, release, reap):
            with pytest.raises(LedgerError, match="deleted or replaced"):
                operate(host)
        aside.rename(here.ledger)
        assert len(here.judge("it is back")) == 1
        clear(host)
        assert here.judge("cleared") == []
