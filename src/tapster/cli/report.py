# SPDX-License-Identifier: Apache-2.0
"""Write a picture of the history: one HTML page that shows who had which name.

A row for each name, time to the right, a bar for each lease, coloured by
owner; FIN WAIT is hatched, and marks show events. The page has search, zoom
and a table.
"""

import os
import sys
import time
from datetime import datetime

from tapster.cli import output, times
from tapster.cli.options import Options
from tapster.cli.values import given_text
from tapster.errors import HostError
from tapster.light import TYPE_CHECKING, Any, suppress
from tapster.model import EventQuery, HistoryEntry, HistoryEvent, HistoryQuery

if TYPE_CHECKING:
    from tapster.api import AnyHost
    from tapster.cli.parser import Parser

LIMIT = 10_000
TEMPLATE = os.path.join(os.path.dirname(__file__), "report.html")
MARGIN = 0.02
"""The part of the shown time that stays empty at each end."""


def declare(parser: "Parser") -> None:
    option = parser.add_argument
    option(
        *("-o", "--output"),
        metavar="FILE",
        type=given_text,
        help="write to FILE; default: standard output",
    )
    times.declare(parser, LIMIT, "leases")


def run(options: Options, host: "AnyHost") -> int:
    since, until = times.interval(options, datetime.now())
    query = HistoryQuery(since=since, until=until, limit=options.limit)
    page = write(
        host.history(query), host.events(EventQuery(since, until)), since, until
    )
    if options.output in (None, "-"):
        # The page says that it is UTF-8, whatever the locale is.
        sys.stdout.buffer.write(page.encode())
        return 0
    try:
        _save(options.output, page)
    except OSError as error:
        raise HostError(f"{options.output}: {error.strerror}") from error
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _save(path: str, page: str) -> None:
    """Write a page. An earlier page stays until the new one is whole."""
    if os.path.lexists(path) and not os.path.isfile(path):
        partial = path  # a pipe or a device
    else:
        path = os.path.realpath(path)
        partial = f"{path}.{os.getpid()}.tmp"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(page)
        if partial != path:
            if os.path.exists(path):
                os.chmod(partial, os.stat(path).st_mode & 0o777)
            os.replace(partial, path)
    except OSError:
        if partial != path:
            with suppress(OSError):
                os.unlink(partial)
        raise


def write(
    entries: list[HistoryEntry],
    events: list[HistoryEvent],
    since: float | None = None,
    until: float | None = None,
) -> str:
    """Return the page of these leases and events."""
    import json

    with open(TEMPLATE, encoding="utf-8") as file:
        template = file.read()
    document = json.dumps(
        content(entries, events, since, until),
        separators=(",", ":"),
        ensure_ascii=False,
    )
    # No text can end the script element.
    before, _, after = template.partition("DATA</script>")
    return f"{before}{document.replace('<', chr(92) + 'u003c')}</script>{after}"


def content(
    entries: list[HistoryEntry],
    events: list[HistoryEvent],
    since: float | None,
    until: float | None,
) -> dict[str, Any]:
    """Return the data of the page: texts once, times from the earliest."""
    now = time.time()
    times = [entry.created for entry in entries]
    begin = since if since is not None else min(times, default=now - 60)
    end = until if until is not None else now
    margin = max((end - begin) * MARGIN, 1.0)
    start = int(min([*times, begin]))
    names, owners, namespaces = _Texts(), _Texts(), _Texts()
    leases = [
        [
            names.place(entry.name),
            owners.place(entry.owner),
            namespaces.place(output.netns_name(entry.netns)),
            entry.mac,
            _since(start, entry.created),
            _since(start, entry.released),
            _since(start, entry.ended),
            entry.lease,
            *([" ".join(f"{k}={v}" for k, v in entry.labels)] if entry.labels else []),
        ]
        for entry in entries
    ]
    return {
        "start": start,
        "since": round(begin - margin, 3),
        "until": round(end + margin, 3),
        "names": names.texts,
        "owners": owners.texts,
        "netns": namespaces.texts,
        "leases": leases,
        "events": [
            [_since(start, event.time), event.event, event.lease, event.detail]
            for event in events
            if event.lease
        ],
    }


class _Texts:
    """Texts by their places, each once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def _since(start: float, moment: float | None) -> float | None:
    return None if moment is None else round(moment - start, 3)
