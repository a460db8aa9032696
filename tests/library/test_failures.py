# SPDX-License-Identifier: Apache-2.0
"""A batch that fails in several places reports every failure."""

import pytest

from tapster.errors import (
    ConflictError,
    KernelError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.operations.failures import Failures


def raised(*errors: TapsterError) -> TapsterError:
    failures = Failures()
    for error in errors:
        failures.add(error)
    with pytest.raises(TapsterError) as caught:
        failures.raise_any()
    return caught.value


def test_nothing_is_raised_if_nothing_failed() -> None:
    Failures().raise_any()


def test_the_first_is_raised_with_a_note_for_each_other() -> None:
    one, two, three = ConflictError("one"), KernelError(1, "two"), ConflictError("3")
    three.add_note("a note of the third")
    error = raised(one, two, three)
    assert error is one
    assert error.__notes__ == [
        "another failure: two: Operation not permitted",
        "another failure: 3",
        "another failure: a note of the third",
    ]


def test_the_leases_that_no_error_concerns_are_not_left() -> None:
    failures = Failures()
    error = ConflictError("in use")
    failures.add(error, ["b"])
    assert failures.left(error, ["a", "b", "c"]) == ["b"]


def test_all_leases_are_left_if_the_batch_ended_early_or_no_error_names_one() -> None:
    failures = Failures()
    error = ConflictError("in use")
    failures.add(error)
    assert failures.left(error, ["a", "b"]) == ["a", "b"]
    failures.add(error, ["b"])
    assert failures.left(KernelError(1, "another"), ["a", "b"]) == ["a", "b"]


def test_the_same_failure_is_reported_once() -> None:
    error = raised(ServiceUnavailable("away"), ServiceUnavailable("away"))
    assert not hasattr(error, "__notes__")


def test_a_lasting_failure_is_raised_before_a_service_that_is_away() -> None:
    conflict = ConflictError("in use")
    error = raised(ServiceUnavailable("away"), conflict)
    assert error is conflict
    assert error.__notes__ == ["another failure: away"]
