# SPDX-License-Identifier: Apache-2.0
"""The page docs/filter.md: `python -m lab.frame_kinds.page` writes it."""

from collections.abc import Iterable
from pathlib import Path

from lab.frame_kinds import frame_kinds
from lab.frame_kinds.kind import FrameKind

PAGE = Path(__file__).parents[2] / "docs" / "filter.md"
HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
# Which frames pass a filtered port

The first column is for a port with `--filter` alone, the second for a port that also
has an `--address` of IPv4 and one of IPv6. The kinds are frames that the guest sends:
all frames to the guest pass. This page is made of the table in `lab/frame_kinds`, and
`tests/backends/test_kinds.py` sends each of these {count} kinds through real taps.

Ports that are isolated, and ports without learning, forward what a port without a
filter forwards.
"""


def page() -> str:
    """Return the text of docs/filter.md."""
    every = frame_kinds("52:54:00:12:34:56")
    lines = [HEAD.format(count=len(every))]
    for group in dict.fromkeys(kind.group for kind in every):
        lines.append(f"## {group[0].upper()}{group[1:]}\n")
        lines.append("| frame | MAC alone | MAC and addresses |\n| --- | --- | --- |")
        lines += _rows(kind for kind in every if kind.group == group)
        lines.append("")
    return "\n".join(lines)


def _rows(group: Iterable[FrameKind]) -> list[str]:
    return [
        f"| {kind.name} | {' | '.join('yes' if yes else 'no' for yes in kind.passes)} |"
        for kind in group
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
