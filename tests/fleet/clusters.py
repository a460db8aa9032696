# SPDX-License-Identifier: Apache-2.0
"""A running etcd for the tests of a module, and stores that use it."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from lab.fleet.etcd import Cluster
from tapster.fleet.etcd import Etcd, parse_endpoint
from tapster.fleet.store import FleetUnavailable


def store_of(cluster: Cluster, *, timeout: float = 2.0) -> Etcd:
    return Etcd([parse_endpoint(url) for url in cluster.endpoints], timeout=timeout)


def seconds_until(call: Callable[[], object], *, within: float) -> float:
    """Call until it is not refused; the seconds that took."""
    began = monotonic()
    while monotonic() - began < within:
        with suppress(FleetUnavailable):
            call()
            return monotonic() - began
    call()
    return monotonic() - began
