# SPDX-License-Identifier: Apache-2.0
"""`python -m explorer.fleet [MORE]`: a table; MORE is how many losses are added.

Ends with 1 if a scenario has a violation, or if a wrong version is not found.
"""

import sys
import time

from explorer.fleet.scenarios import SCENARIOS
from explorer.fleet.variants import VARIANTS, applied
from explorer.fleet.world import FleetResult, explore

COLUMNS = "{:<74} {:>9} {:>7} {:>8}  {}"


def main(arguments: list[str]) -> int:
    more = int(arguments[0]) if arguments else 0
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    right = True
    say(COLUMNS.format("", "states", "steps", "seconds", "violation"))
    for variant in VARIANTS:
        began = time.monotonic()
        with applied(variant):
            found = explore(by_name[variant.scenario])
        right &= bool(found.broken)
        show(variant.name, found, began, found.broken or "NOT FOUND")
    for scenario in SCENARIOS:
        began = time.monotonic()
        found = explore(scenario, more=more)
        right &= not found.broken
        show(f"Tapster: {scenario.name}", found, began, found.broken or "-")
        say("".join(f"    {step}\n" for step in found.steps))
    return 0 if right else 1


def show(name: str, found: FleetResult, began: float, violation: str) -> None:
    seconds = f"{time.monotonic() - began:.1f}"
    steps = len(found.steps) or "-"
    say(COLUMNS.format(name, found.states, steps, seconds, violation[:60]))


def say(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n" if text else "")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
