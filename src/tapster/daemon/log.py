# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: a line an event, `key=value`, as the journal takes it.

Under systemd each line begins with its priority (sd-daemon(3)).
"""

import os
import sys

from tapster.light import Any

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7
_NAMES = {ERROR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug"}


class Log:
    """Lines to standard error, down to a level."""

    def __init__(self, level: int = INFO) -> None:
        self._level = level
        self._journal = "JOURNAL_STREAM" in os.environ

    def __call__(self, level: int, event: str, **fields: Any) -> None:
        if level > self._level:
            return
        start = f"<{level}>" if self._journal else f"level={_NAMES[level]} "
        words = [f"event={event}"] + [
            f"{key}={_quoted(value)}"
            for key, value in fields.items()
            if value is not None
        ]
        try:
            sys.stderr.write(start + " ".join(words) + "\n")
            sys.stderr.flush()
        except OSError:
            self._level = -1  # nobody reads it any more


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not set(text) & set(' ="') and text
    if plain:
        return text
    # Not by a codec: it may have to be loaded, when no descriptor is left for that.
    inside = ascii(text)[1:-1].replace('"', '\\"')
    return f'"{inside}"'
