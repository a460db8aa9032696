# SPDX-License-Identifier: Apache-2.0
"""The account of a storm as a table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from soak.judge import BLIND, LEAK, WRONG, Finding


def table(seed: int, tally: Mapping[str, int], findings: Sequence[Finding]) -> str:
    """Return the lines of the table: what happened, then the harm."""
    lines = [f"seed {seed}", ""]
    lines += [f"{what:<52}{count:>9}" for what, count in _rows(tally, findings)]
    return "\n".join(lines)


def _rows(
    tally: Mapping[str, int], findings: Sequence[Finding]
) -> Iterator[tuple[str, int]]:
    kinds = Counter(finding.kind for finding in findings)

    def group(
        prefix: str, counts: Mapping[str, int] = tally
    ) -> Iterator[tuple[str, int]]:
        parts = {key: count for key, count in counts.items() if key.startswith(prefix)}
        yield prefix.rstrip(": "), sum(parts.values())
        for key in sorted(parts):
            yield f"  {key.removeprefix(prefix)}", parts[key]

    def one(what: str) -> tuple[str, int]:
        return what, tally.get(what, 0)

    yield one("VMs")
    yield one("talks over the wire")
    yield from group("kills: ")
    yield one("standstills")
    yield one("devices of squatters")
    yield one("foreign names stepped around")
    yield from group("refused: ")
    yield from group("admin: ")
    yield one("changes of running VMs by administrators")
    yield one("changes of running VMs by Tapster, as wanted")
    yield from group("stranger: ")
    yield one("late cleanups that met a waiting device")
    yield one("late cleanups that Tapster could not fend off")
    yield one("foreign objects hit by outsiders")
    yield from group("removed again: ")
    yield from group("recover: ")
    yield from group("hindered: ")
    yield one("events")
    yield one("samples of the ledgers")
    yield "not seen", kinds[BLIND]
    yield "leaks", kinds[LEAK]
    yield from group(WRONG, kinds)
