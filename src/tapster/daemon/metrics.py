# SPDX-License-Identifier: Apache-2.0
"""The figures that the daemon counts, in the text format of Prometheus. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from tapster.light import NamedTuple
from tapster.rpc.interface import Count

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds of the latency histograms, in seconds."""


class Family(NamedTuple):
    """A family of figures, as Prometheus calls it."""

    says: str
    type: str
    label: str = ""


FAMILIES: Mapping[str, Family] = {
    "leases": Family("Leases by state.", "gauge", "state"),
    "labelled_leases": Family("Active leases by label.", "gauge", "label"),
    "connections": Family("Open connections.", "gauge"),
    "calls": Family("Calls by method.", "counter", "method"),
    "failures": Family("Calls that failed, by error.", "counter", "error"),
    "refused": Family("Calls refused, by reason.", "counter", "reason"),
    "delayed": Family(
        "Waits of clients that sent more than the rate allows.", "counter"
    ),
    "dropped": Family("Connections dropped, by reason.", "counter", "reason"),
    "events": Family("Events, by what happened.", "counter", "event"),
    "overruns": Family("Times that reports of the kernel were lost.", "counter"),
    "collisions": Family("Names found taken by foreign devices.", "counter"),
    "reap_batches": Family("Batches of devices reaped.", "counter"),
    "reaped": Family("Leases whose FIN WAIT was ended.", "counter"),
    "recovered": Family("What recover did, by action.", "counter", "action"),
    "fleet": Family("The part of this host in its fleet.", "gauge", "figure"),
    "fleet_registrations": Family(
        "MACs that the fleet was asked for, by result.", "counter", "result"
    ),
}
HISTOGRAMS: Mapping[str, str] = {
    "acquire_seconds": "Time that an acquire took.",
    "release_seconds": "Time that a release took.",
    "fleet_request_seconds": "Time that the fleet took to answer an acquire.",
}


class Metrics:
    """The counts of one daemon since it started."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], float] = {}
        self._buckets = {name: [0] * (len(BUCKETS) + 1) for name in HISTOGRAMS}
        self._sums = dict.fromkeys(HISTOGRAMS, 0.0)

    def add(self, name: str, label: str = "", by: float = 1) -> None:
        assert name in FAMILIES
        key = (name, label)
        self._counts[key] = self._counts.get(key, 0) + by

    def put(self, name: str, value: float, label: str = "") -> None:
        assert name in FAMILIES
        self._counts[name, label] = value

    def replace(self, name: str, values: Mapping[str, float]) -> None:
        """Set a figure for these labels, and for no others."""
        assert name in FAMILIES
        for key in [key for key in self._counts if key[0] == name]:
            del self._counts[key]
        for label, value in values.items():
            self._counts[name, label] = value

    def observe(self, name: str, seconds: float) -> None:
        self._buckets[name][bisect_left(BUCKETS, seconds)] += 1
        self._sums[name] += seconds

    def counts(self) -> tuple[Count, ...]:
        """Return every figure; for a histogram, its count and its sum."""
        plain = [
            Count(name, value, label or None)
            for (name, label), value in sorted(self._counts.items())
        ]
        for name, buckets in self._buckets.items():
            plain += [
                Count(f"{name}_count", sum(buckets)),
                Count(f"{name}_sum", self._sums[name]),
            ]
        return tuple(plain)

    def text(self) -> str:
        """Return the figures in Prometheus' text format, version 0.0.4."""
        return "\n".join([*self._simple(), *self._histograms()]) + "\n"

    def _simple(self) -> Iterator[str]:
        for name, kind in FAMILIES.items():
            full = f"tapster_{name}" + ("_total" if kind.type == "counter" else "")
            yield from _head(full, kind.says, kind.type)
            found = {
                label: value
                for (family, label), value in sorted(self._counts.items())
                if family == name
            }
            for label, value in found.items() if found or kind.label else [("", 0)]:
                where = f'{{{kind.label}="{_escaped(label)}"}}' if kind.label else ""
                yield f"{full}{where} {value:g}"

    def _histograms(self) -> Iterator[str]:
        for name, says in HISTOGRAMS.items():
            full = f"tapster_{name}"
            yield from _head(full, says, "histogram")
            below = 0
            for bound, number in zip(
                (*(f"{bound:g}" for bound in BUCKETS), "+Inf"),
                self._buckets[name],
                strict=True,
            ):
                below += number
                yield f'{full}_bucket{{le="{bound}"}} {below}'
            yield f"{full}_sum {self._sums[name]:.6f}"
            yield f"{full}_count {below}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _head(name: str, says: str, type: str) -> Iterable[str]:
    return (f"# HELP {name} {says}", f"# TYPE {name} {type}")
