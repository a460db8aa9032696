# SPDX-License-Identifier: Apache-2.0
"""Known faults of a fleet: wrong rules. The search must find what each rule breaks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from tapster.fleet import registration, steps
from tapster.fleet.keys import Keys
from tapster.fleet.registration import (
    RELEASED,
    PushAction,
    Record,
    RecordState,
    Registration,
    Standing,
)
from tapster.fleet.steps import Me, Push

_stand = registration.stand
_wanted = registration.wanted
make_plan = steps.make_plan

PushPlan = steps.PushPlan


def _release_by_host(
    host: str, record: Record, found: Registration | None, *, lost: bool
) -> Standing:
    if found is not None and record.state in RELEASED and found.host == host:
        return Standing.OURS
    return _stand(host, record, found, lost=lost)


def _epoch_from_the_store(
    host: str, record: Record, found: Registration | None, *, lost: bool
) -> Standing:
    standing = _stand(host, record, found, lost=lost)
    if record.epoch is not None and standing is Standing.NEWER:
        return Standing.OLDER
    return standing


def _next_step(
    host: str, record: Record, action: PushAction, found: Registration | None
) -> Registration | None:
    new = _wanted(host, record, action, found)
    if new is not None and found is not None and found.lease != new.lease:
        return new._replace(epoch=registration.handed_over(found.epoch))
    return new


def _step_as_term(
    host: str, record: Record, action: PushAction, found: Registration | None
) -> Registration | None:
    new = _wanted(host, record, action, found)
    if new is not None and action is PushAction.NEW_TERM and found is not None:
        return new._replace(epoch=registration.handed_over(found.epoch))
    return new


def _changed(change: Callable[[PushPlan, Record, str, str], PushPlan]) -> Any:
    def plan(
        where: Keys,
        me: Me,
        one: Push,
        running: frozenset[str],
        values: Mapping[str, str],
        *,
        lost: bool = False,
    ) -> PushPlan:
        made = make_plan(where, me, one, running, values, lost=lost)
        key = where.registration(one.record.segment, one.record.mac)
        return change(made, one.record, key, where.permit(me.host))

    return plan


def _deletes(plan: PushPlan, record: Record, key: str, permit: str) -> PushPlan:
    if record.state in RELEASED:
        return plan._replace(writes=plan.writes | {key: None})
    return plan


def _deletes_its_own(plan: PushPlan, record: Record, key: str, permit: str) -> PushPlan:
    if record.state in RELEASED and key in plan.writes:
        return plan._replace(writes=plan.writes | {key: None})
    return plan


def _without_compare(plan: PushPlan, record: Record, key: str, permit: str) -> PushPlan:
    return plan._replace(expected={permit: plan.expected[permit]})


def _without_permit(plan: PushPlan, record: Record, key: str, permit: str) -> PushPlan:
    return plan._replace(expected={key: plan.expected[key]})


def _permit_unchanged(
    plan: PushPlan, record: Record, key: str, permit: str
) -> PushPlan:
    return plan._replace(writes={k: v for k, v in plan.writes.items() if k != permit})


class Variant(NamedTuple):
    name: str
    scenario: str
    """The scenario that shows the violation."""
    functions: Mapping[str, Any] = {}
    """The replacements of functions of `registration` and `steps`."""
    lines: Mapping[tuple[RecordState, Standing], PushAction] = {}
    """The replacements of lines of the table."""


@contextmanager
def applied(variant: Variant) -> Iterator[None]:
    """Apply the wrong rules during a block."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(registration.TABLE, variant.lines))
        for name, function in variant.functions.items():
            stack.enter_context(patch(f"tapster.fleet.{name}", function))
        yield


VARIANTS = (
    Variant(
        "a release compares the host alone",
        "a VM without a name of its own, twice",
        {"registration.stand": _release_by_host},
    ),
    Variant(
        "a release deletes the registration",
        "start and stop beside a clone",
        {"steps.make_plan": _changed(_deletes)},
    ),
    Variant(
        "a release deletes its own registration",
        "a move beside a clone",
        {"steps.make_plan": _changed(_deletes_its_own)},
    ),
    Variant(
        "a later epoch does not stop a take",
        "there and back",
        lines={(RecordState.ACTIVE, Standing.NEWER): PushAction.PUT},
    ),
    Variant(
        "the target derives its epoch from the store",
        "start goes on without an answer",
        {
            "registration.stand": _epoch_from_the_store,
            "registration.wanted": _next_step,
        },
    ),
    Variant(
        "a restart takes the next step instead of a new term",
        "a host dies with a hand-over that it never pushed",
        {"registration.wanted": _step_as_term},
    ),
    Variant(
        "a commit does not compare the registration",
        "start and stop beside a clone",
        {"steps.make_plan": _changed(_without_compare)},
    ),
    Variant(
        "a commit does not compare the permit",
        "start and stop beside a clone",
        {"steps.make_plan": _changed(_without_permit)},
    ),
    Variant(
        "a release does not change the permit",
        "start and stop beside a clone",
        {"steps.make_plan": _changed(_permit_unchanged)},
    ),
    Variant(
        "a registration of another VM is no obstacle",
        "start and stop beside a clone",
        lines={(RecordState.ACTIVE, Standing.OTHER): PushAction.NEW_TERM},
    ),
    Variant(
        "a VM that runs elsewhere is no obstacle",
        "start goes on without an answer",
        lines={(RecordState.ACTIVE, Standing.HELD): PushAction.NEW_TERM},
    ),
    Variant(
        "a VM that no host runs is reported",
        "start goes on without an answer",
        lines={(RecordState.ACTIVE, Standing.VACANT): PushAction.REPORT},
    ),
    Variant(
        "a release of an older lease counts",
        "start goes on without an answer",
        lines={(RecordState.PARKED, Standing.NEWER): PushAction.PUT},
    ),
    Variant(
        "the block of another host is not looked at",
        "a clone asks for a MAC in the block of another host",
        {"steps._foreign_block": lambda *_: None},
    ),
)
