# SPDX-License-Identifier: Apache-2.0
"""Clients in processes of their own, which begin at the same moment."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from tapster import AnyHost, Tap

Report = Callable[[Any], None]
"""Ends the clock of a client, and says what the client found, as JSON can hold it."""
Work = Callable[[AnyHost, Report], None]

READY = b"-"


class Together(NamedTuple):
    """What clients found."""

    seconds: float
    """From the moment at which all began, to the last report."""
    found: list[Any]


def together(
    opening: Callable[[], AbstractContextManager[AnyHost]],
    works: Sequence[Work],
    first: Tap,
) -> Together:
    """Let a process do each work with a Host or a Client of its own.

    The clock begins when each has opened it and has made the `first` device with it:
    what a process takes to start is no part of a call.
    """
    going, go = os.pipe()
    pipes = [_client(opening, work, first, going, go) for work in works]
    os.close(going)
    for pipe in pipes:
        assert os.read(pipe, 1) == READY, "a client has failed"
    before = time.monotonic()
    os.close(go)  # every client sees the end of the pipe
    reports = []
    for pipe in pipes:
        with os.fdopen(pipe) as answer:
            reports.append(json.load(answer))
    for _ in pipes:
        os.wait()
    last = max(moment for moment, _ in reports)
    return Together(last - before, [found for _, found in reports])


def _client(
    opening: Callable[[], AbstractContextManager[AnyHost]],
    work: Work,
    first: Tap,
    going: int,
    go: int,
) -> int:
    """Start a client; a pipe on which it says that it is ready, and reports."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return reader

    def report(found: Any) -> None:
        answer = json.dumps([time.monotonic(), found]).encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
        os.close(writer)

    try:
        os.close(go)
        with opening() as host:
            lease = host.acquire(first)
            lease.close()
            host.release(lease)
            os.write(writer, READY)
            os.read(going, 1)
            work(host, report)
    finally:
        os._exit(0)
