# SPDX-License-Identifier: Apache-2.0
"""Figures about leases: by label only where the configuration says so."""

from pathlib import Path

import pytest

from tapster import Tap
from tapster.daemon.config import Config, MetricsConfig
from tapster.daemon.metrics import Metrics
from tests.daemon.parts import Parts


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ((), set()),
        (("tenant",), {'{label="tenant=a"} 2', '{label="tenant=b\\"c"} 1'}),
        (("zone", "other"), {'{label="zone=1"} 1'}),
    ],
)
def test_leases_are_counted_by_the_labels_that_the_configuration_lists(
    tmp_path: Path, labels: tuple[str, ...], shown: set[str]
) -> None:
    parts = Parts(tmp_path, Config(metrics=MetricsConfig(labels=labels)))
    try:
        for given in (
            (("tenant", "a"), ("zone", "1")),
            (("tenant", "a"),),
            (("tenant", 'b"c'),),
            (),
        ):
            parts.host.acquire(Tap(bridge="br0", labels=given)).close()
        released = parts.host.acquire(Tap(bridge="br0", labels=(("tenant", "z"),)))
        released.close()
        parts.service.figures.measure()
        parts.host.release(released)
        parts.service.figures.measure()
        lines = parts.metrics.text().splitlines()
        name = "tapster_labelled_leases"
        found = {line[len(name) :] for line in lines if line.startswith(name + "{")}
        assert found == shown
    finally:
        parts.close()


def test_text_of_users_cannot_break_the_format() -> None:
    metrics = Metrics()
    metrics.put("labelled_leases", 1, 'a=\\"\n} 1')
    assert 'tapster_labelled_leases{label="a=\\\\\\"\\n} 1"} 1\n' in metrics.text()
