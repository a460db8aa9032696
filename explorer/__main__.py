# SPDX-License-Identifier: Apache-2.0
"""`python -m explorer [--bound small|full]`: a table.

Exit with 1 if Tapster breaks a promise, or if a known fault is not found.
"""

import sys
import time

from explorer import protocol
from explorer.faults import known_faults
from explorer.scenarios import full, small
from explorer.search import Counterexample, Explorer, Scenario

BOUNDS = {"small": small, "full": full}
COLUMNS = "{:<74} {:>10} {:>10} {:>9} {:>10} {:>9} {:>7}"


def main(arguments: list[str]) -> int:
    bound = arguments[1] if arguments[:1] == ["--bound"] and arguments[1:] else "small"
    if bound not in BOUNDS or len(arguments) not in (0, 2):
        say("usage: python -m explorer [--bound small|full]")
        return 2
    say(f"bound: {bound}; known faults: up to the first violation, shortest first\n")
    say(
        COLUMNS.format(
            "", "states", "steps", "schedules", "violations", "shortest", "seconds"
        )
    )
    right = check_protocol()
    for scenario in known_faults():
        right &= look_for(scenario) is not None
    for scenario in BOUNDS[bound]():
        right &= explore(scenario)
    say("" if right else "\nNOT as it should be: see above")
    return 0 if right else 1


def check_protocol() -> bool:
    """Check the model of the protocol between processes, with and without each rule."""
    right = True
    for name, rules, number in protocol.VARIANTS:
        found = protocol.explore(protocol.SCENARIOS[number], rules)
        right &= bool(found.broken)
        length = len(found.steps) or "-"
        line(
            f"protocol {name}", found.states, 1 if found.broken else "NOT FOUND", length
        )
    for scenario in protocol.SCENARIOS:
        found = protocol.explore(scenario)
        right &= not found.broken
        length = len(found.steps) or "-"
        line(
            f"protocol: {scenario.name}", found.states, int(bool(found.broken)), length
        )
        for step in found.steps:
            say(f"    {step}")
    return right


def line(name: str, states: int, violations: object, length: object) -> None:
    say(COLUMNS.format(name, states, "-", "-", violations, length, "-"))


def look_for(scenario: Scenario) -> Counterexample | None:
    """Look for a known fault, and show how it was found."""
    began = time.monotonic()
    with Explorer(scenario) as explorer:
        result = explorer.shortest()
    length = len(result.counterexample.schedule) if result.counterexample else "-"
    found = 1 if result.counterexample else "NOT FOUND"
    row(scenario, result.states, result.steps, "-", found, length, began)
    return result.counterexample


def explore(scenario: Scenario) -> bool:
    """Explore a scenario of Tapster; return whether every promise was kept."""
    began = time.monotonic()
    with Explorer(scenario) as explorer:
        result = explorer.explore()
        found = explorer.shortest().counterexample if result.broken else None
        idle = explorer.idle()
    length = len(found.schedule) if found else "-"
    schedules = f"{result.schedules:.1e}"
    violations = len(result.broken)
    name = f"Tapster: {scenario.name}"
    row(
        scenario._replace(name=name),
        result.states,
        result.steps,
        schedules,
        violations,
        length,
        began,
    )
    if found:
        say("".join(f"    {line}\n" for line in found.lines))
        say(f"    {found.schedule}")
    if idle:
        say(f"    never acquired anything: {', '.join(sorted(idle))}")
    return not result.broken and not idle


def row(scenario: Scenario, states: int, steps: int, *cells: object) -> None:
    *shown, began = cells
    assert isinstance(began, float)
    seconds = f"{time.monotonic() - began:.1f}"
    say(COLUMNS.format(scenario.name, states, steps, *map(str, shown), seconds))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
