# SPDX-License-Identifier: Apache-2.0
"""The events of a VM X, of its clone z, and of their hosts.

A VM in capitals has a name of its own in the fleet (`--vm`); any other VM is its
lease.
"""

from explorer.fleet.world import FleetEvent, FleetScenario


def _start(
    host: str, vm: str, lease: str, *, given: bool = False, goes_on: bool = False
) -> FleetEvent:
    return FleetEvent("start", host, vm, lease, given=given, goes_on=goes_on)


def _move(vm: str, source: str, host: str, lease: str) -> tuple[FleetEvent, ...]:
    """Hand a VM over with its epoch; the release of the source comes later."""
    return (
        FleetEvent("standby", host, vm, lease, source=source),
        FleetEvent("take", host, vm, lease),
    )


def _release(host: str, vm: str, lease: str) -> FleetEvent:
    return FleetEvent("release", host, vm, lease)


CLONE = (_start("B", "z", "z1", given=True), _release("B", "z", "z1"))

SCENARIOS = (
    FleetScenario(
        "start and stop beside a clone",
        ("A", "B"),
        ((_start("A", "X", "a1"), _release("A", "X", "a1")), CLONE),
    ),
    FleetScenario(
        "start goes on without an answer",
        ("A", "B"),
        (
            (_start("A", "X", "a1", goes_on=True), _release("A", "X", "a1")),
            (FleetEvent("start", "B", "X", "b1"), _release("B", "X", "b1")),
        ),
    ),
    FleetScenario(
        "a VM without a name of its own, twice",
        ("A", "B"),
        (
            (_start("A", "x", "a1"), _release("A", "x", "a1")),
            (
                _start("B", "z", "b1"),
                _release("B", "z", "b1"),
                _start("B", "z", "b2"),
                _release("B", "z", "b2"),
            ),
        ),
    ),
    FleetScenario(
        "there and back",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                *_move("X", "a1", "B", "b1"),
                *_move("X", "b1", "A", "a2"),
                _release("A", "X", "a2"),
            ),
            (_release("A", "X", "a1"),),
            (_release("B", "X", "b1"),),
        ),
    ),
    FleetScenario(
        "there and back, without epochs",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                *_move("X", "", "B", "b1"),
                *_move("X", "", "A", "a2"),
            ),
            (_release("A", "X", "a1"),),
            (_release("B", "X", "b1"),),
        ),
    ),
    FleetScenario(
        "a move beside a clone",
        ("A", "B", "C"),
        (
            (_start("A", "X", "a1"), *_move("X", "a1", "B", "b1")),
            (_release("A", "X", "a1"),),
            (_start("C", "z", "z1"), _release("C", "z", "z1")),
        ),
    ),
    FleetScenario(
        "a host dies and its VM starts elsewhere",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                FleetEvent("die", "A"),
                FleetEvent("fence", "A"),
                FleetEvent("restart", "B", "X", "b1"),
                _release("B", "X", "b1"),
            ),
            (FleetEvent("back", "A"),),
        ),
    ),
    FleetScenario(
        "a VM moves, its host dies, it starts where it was, and both come back",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                *_move("X", "a1", "B", "b1"),
                FleetEvent("die", "B"),
                FleetEvent("fence", "B"),
                FleetEvent("restart", "A", "X", "a2"),
            ),
            (_release("A", "X", "a1"),),
            (FleetEvent("back", "B"),),
        ),
    ),
    FleetScenario(
        "a user gives up a host that is cut off",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                FleetEvent("restart", "B", "X", "b1", given_up=True),
            ),
            (_release("A", "X", "a1"),),
        ),
    ),
    FleetScenario(
        "a clone asks for a MAC in the block of another host",
        ("A", "B"),
        (
            (_start("A", "x", "a1", goes_on=True), _release("A", "x", "a1")),
            (_start("B", "z", "z1", given=True),),
        ),
        blocks={"0a:54:00:00:00": "A"},
    ),
    FleetScenario(
        "registrations of VMs that are gone are deleted",
        ("A", "B"),
        (
            (
                _start("A", "x", "a1"),
                _release("A", "x", "a1"),
                FleetEvent("sweep", "A"),
            ),
            (_start("B", "z", "b1"), _release("B", "z", "b1")),
        ),
    ),
    FleetScenario(
        "an administrator forgets a VM",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                _release("A", "X", "a1"),
                _start("A", "X", "a2"),
            ),
            (FleetEvent("forget", "A"),),
            (_start("B", "Z", "b1"), _release("B", "Z", "b1")),
        ),
    ),
    FleetScenario(
        "a dead host is evicted, and joins again",
        ("A", "B"),
        (
            (
                _start("A", "X", "a1"),
                FleetEvent("die", "A"),
                FleetEvent("evict", "A"),
                FleetEvent("restart", "B", "X", "b1"),
                _release("B", "X", "b1"),
            ),
            (FleetEvent("back", "A"), FleetEvent("join", "A")),
        ),
    ),
    FleetScenario(
        "the registrations of an evicted host go to other VMs",
        ("A", "B"),
        (
            (
                _start("A", "x", "a1"),
                FleetEvent("die", "A"),
                FleetEvent("evict", "A"),
                FleetEvent("free MACs", "A"),
            ),
            (_start("B", "z", "b1"),),
            (FleetEvent("back", "A"), FleetEvent("join", "A")),
        ),
    ),
    FleetScenario(
        "over three hosts",
        ("A", "B", "C"),
        (
            (
                _start("A", "X", "a1"),
                *_move("X", "a1", "B", "b1"),
                *_move("X", "b1", "C", "c1"),
            ),
            (_release("A", "X", "a1"), _release("B", "X", "b1")),
        ),
    ),
    FleetScenario(
        "a host dies with a hand-over that it never pushed",
        ("A", "B", "C"),
        (
            (
                _start("A", "X", "a1"),
                *_move("X", "a1", "B", "b1"),
                *_move("X", "b1", "C", "c1"),
                _release("A", "X", "a1"),
                FleetEvent("die", "C"),
                FleetEvent("restart", "A", "X", "a2"),
            ),
            (FleetEvent("back", "C"),),
        ),
        losses=0,
    ),
)
