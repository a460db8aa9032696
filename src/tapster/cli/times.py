# SPDX-License-Identifier: Apache-2.0
"""The options for a range of times, shared by `who` and `report`."""

import time
from datetime import datetime, timedelta
from math import isfinite

from tapster.cli import values
from tapster.cli.options import BadValue, Options
from tapster.errors import RequestError
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.cli.parser import Parser


def declare(parser: "Parser", limit: int, what: str) -> None:
    """Add the options to `parser`. At most `limit` `what` are shown by default."""
    option = parser.add_argument
    option("--since", metavar="TIME", help="only from this time on")
    option("--until", metavar="TIME", help="only up to this time")
    option(
        "--limit",
        metavar="N",
        type=values.count,
        default=limit,
        help=f"at most N {what}, the latest; default: {limit}",
    )


def interval(options: Options, now: datetime) -> tuple[float | None, float | None]:
    """Return the range of times that the options give. Raises RequestError."""
    since, until = parse(options.since, now), parse(options.until, now)
    if since is not None and until is not None and until < since:
        raise RequestError(
            f"--until {options.until!r} is before --since {options.since!r}"
        )
    return since, until


def parse(text: str | None, now: datetime) -> float | None:
    """Return seconds since the epoch; None for None.

    Raises RequestError also for the future.
    """
    if text is None:
        return None
    moment = _parse(text.strip(), now)
    if moment is None or not isfinite(moment):
        raise RequestError(
            f"time {text!r} is not of the form 2026-01-31T14:05, 14:05, "
            "'yesterday 14:05', 2h (ago), or 1769860800"
        )
    if moment > time.time() + 1:
        raise RequestError(f"time {text!r} is in the future")
    return moment


def _parse(text: str, now: datetime) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    day, _, clock = text.partition(" ")
    days = {"today": 0, "yesterday": 1}
    if day in days:
        date = now.date() - timedelta(days=days[day])
        text = f"{date}T{clock or '00:00'}"
    for candidate in (text, f"{now:%Y-%m-%d}T{text}"):
        try:
            return datetime.fromisoformat(candidate).timestamp()
        except ValueError:
            continue
    try:
        return now.timestamp() - values.duration(text)
    except BadValue:
        return None
