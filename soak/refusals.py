# SPDX-License-Identifier: Apache-2.0
"""The refusals that a storm expects, and a check that they leave nothing behind."""

import re

from soak import books
from soak.marks import Marker
from soak.messages import Leak, Tally
from soak.part import Part

DELETED = r"No such device|File descriptor in bad state|is gone"
NO_BRIDGE = r"there is no bridge|was deleted while the device joined it"
REFUSED = {
    r"belongs to a foreign device|was taken by a foreign device": "foreign name",
    r"is leased|is in FIN WAIT": "leased or waiting name",
    DELETED: "an outsider deleted the device",
    NO_BRIDGE: "an outsider deleted the bridge",
    r"making macvtap .*Device or resource busy|cannot carry a": "lower device busy",
}
"""Why a VM may not be started."""
HINDERED = {
    DELETED: "an outsider deleted the device",
    NO_BRIDGE: "an outsider deleted the bridge",
    r"another process works on": "another process works on the lease",
    r"is released": "it was released in between",
}
"""Why moving a running VM, or a repair, can be refused."""


def refused(marker: Marker, part: Part, owner: str, said: str) -> None:
    """Count a VM that was not started, and check that nothing of it is left."""
    count = {f"refused: {_why(REFUSED, said)}": 1}
    marker.say(part.netns, Tally(count))
    for row in books.rows_of(part.ledger, f"{owner}."):
        what = f"after {said[-60:]!r}: {row.name} of {row.owner} ({row.state})"
        marker.say(part.netns, Leak(what))


def hindered(marker: Marker, part: Part, said: str) -> None:
    """Count an operation that was refused because another process works on the
    lease."""
    count = {f"hindered: {_why(HINDERED, said)}": 1}
    marker.say(part.netns, Tally(count))


def _why(reasons: dict[str, str], said: str) -> str:
    for pattern, why in reasons.items():
        if re.search(pattern, said):
            return why
    raise AssertionError(f"unexpected: {said}")
