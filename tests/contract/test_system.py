# SPDX-License-Identifier: Apache-2.0
"""Clocks, the boot, and processes."""

import uuid

from lab.fake_and_real import ContractLab
from tapster.model import Life


def test_the_boot_has_an_id(lab: ContractLab) -> None:
    assert str(uuid.UUID(lab.system.boot_id)) == lab.system.boot_id


def test_the_clocks_do_not_go_back(lab: ContractLab) -> None:
    system = lab.system
    assert 0 < system.boottime() <= system.boottime()
    assert 0 < system.wallclock() <= system.wallclock()


def test_the_wall_clock_has_whole_milliseconds(lab: ContractLab) -> None:
    wallclock = lab.system.wallclock()
    assert float(f"{wallclock:.3f}") == wallclock


def test_a_process_runs_until_it_has_ended(lab: ContractLab) -> None:
    pid = lab.start()
    process = lab.system.process(pid)
    assert process
    assert process.pid == pid
    assert lab.system.process(pid) == process
    assert lab.system.life(process) is Life.LIVES
    lab.end(pid)
    assert lab.system.life(process) is Life.ENDED
    assert lab.system.process(pid) is None


def test_another_process_of_the_same_pid_is_not_it(lab: ContractLab) -> None:
    process = lab.system.process(lab.start())
    assert process
    assert lab.system.life(process._replace(start=process.start - 5)) is Life.ENDED
